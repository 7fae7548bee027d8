"""Drives a running `flint serve` by OpenAI's official Python client, and says what differs from the API reference.

    pip install openai
    flint serve tiny=MODEL --embed minilm=ENCODER --port 8080
    python3 tools/openai_conformance.py http://127.0.0.1:8080/v1 tiny minilm [--key KEY]

The encoder may be left out. Ends with 1 if a check fails. Checks of raw HTTP, such as foreign hosts, use `http.client`.
"""

import argparse
import base64
import http.client
import json
import struct
import sys
import threading
import time
import traceback
import urllib.parse

import openai

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def refused(status, param, call, code=None):
    """`call` fails with this status and names this field."""
    try:
        call()
    except openai.APIStatusError as error:
        body = error.body or {}
        assert error.status_code == status, (error.status_code, body)
        assert body.get("param") == param, body
        assert body.get("message") and body.get("type"), body
        assert code is None or body.get("code") == code, body
        return error
    raise AssertionError(f"it was answered, though {param} cannot be")


@check
def models_list_and_single(t):
    models = t.client.models.list().data
    assert t.model in [model.id for model in models]
    assert t.client.models.retrieve(t.model).id == t.model
    refused(404, "model", lambda: t.client.models.retrieve("no-such-model"), "model_not_found")


@check
def chat_whole(t):
    answer = t.chat(max_tokens=8)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length") and answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@check
def chat_stream_equals_whole(t):
    whole = t.chat(max_tokens=24, seed=3)
    chunks = list(t.chat(max_tokens=24, seed=3, stream=True))
    assert all(chunk.object == "chat.completion.chunk" and chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content, (text, whole.choices[0].message.content)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1


@check
def usage_of_a_stream_only_when_asked(t):
    chunks = list(t.chat(max_tokens=4, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage.completion_tokens <= 4 and chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])


@check
def seed_n_stop_and_limits(t):
    two = t.chat(max_tokens=16, seed=9, n=2)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert t.chat(max_tokens=16, seed=9).choices[0].message.content == two.choices[0].message.content
    assert t.chat(max_tokens=16, seed=10).choices[0].message.content == two.choices[1].message.content
    whole = t.complete(max_tokens=32, temperature=0).choices[0].text
    middle = whole[len(whole) // 2 :][:2]
    cut = t.complete(max_tokens=32, temperature=0, stop=[middle]).choices[0]
    assert cut.text == whole[: whole.index(middle)] and cut.finish_reason == "stop"


@check
def logprobs_add_up(t):
    answer = t.chat(max_tokens=4, logprobs=True, top_logprobs=3, temperature=0)
    for token in answer.choices[0].logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert abs(token.logprob - token.top_logprobs[0].logprob) < 1e-4
        assert bytes(token.bytes).decode("utf-8", "replace") == token.token
    lists = t.complete(max_tokens=3, echo=True, logprobs=2).choices[0].logprobs
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.text_offset) == len(lists.top_logprobs)


@check
def completions_of_several_prompts_and_ids(t):
    answer = t.complete(prompt=["Once", "The"], max_tokens=4, temperature=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    alone = t.complete(prompt="The", max_tokens=4, temperature=0)
    assert answer.choices[1].text == alone.choices[0].text
    assert t.complete(prompt=[1, 5, 7], max_tokens=2).usage.prompt_tokens == 3
    echo = t.complete(prompt="Once", max_tokens=2, echo=True, temperature=0).choices[0].text
    assert echo.startswith("Once")
    stream = "".join(c.choices[0].text for c in t.complete(prompt="The", max_tokens=4, temperature=0, stream=True))
    assert stream == alone.choices[0].text


@check
def responses_whole_and_events(t):
    whole = t.client.responses.create(model=t.model, input=t.text, max_output_tokens=16, extra_body={"seed": 4})
    assert whole.status in ("completed", "incomplete") and whole.usage.output_tokens <= 16
    chat = t.chat(max_tokens=16, seed=4).choices[0].message.content
    assert whole.output_text == chat, (whole.output_text, chat)
    kinds, text, last = [], "", None
    stream = t.client.responses.create(
        model=t.model, input=t.text, max_output_tokens=16, extra_body={"seed": 4}, stream=True
    )
    for number, event in enumerate(stream):
        assert event.sequence_number == number
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
        last = event
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ], kinds
    assert kinds[-4:-1] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ], kinds
    assert text == whole.output_text == last.response.output_text
    items = [{"role": "user", "content": [{"type": "input_text", "text": t.text}]}]
    again = t.client.responses.create(model=t.model, input=items, max_output_tokens=16, extra_body={"seed": 4})
    assert again.output_text == whole.output_text


@check
def responses_call_functions_and_keep_to_forms(t):
    city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"]}
    city["additionalProperties"] = False
    tool = {"type": "function", "name": "get_weather", "parameters": city, "strict": True}
    asked = {"model": t.model, "input": t.text, "tools": [tool], "tool_choice": "required", "extra_body": {"seed": 4}}
    whole = t.client.responses.create(max_output_tokens=90, **asked)
    calls = [item for item in whole.output if item.type == "function_call"]
    assert calls and all(call.name == "get_weather" and json.loads(call.arguments)["city"] is not None for call in calls)
    arguments, done = "", []
    for event in t.client.responses.create(max_output_tokens=90, stream=True, **asked):
        arguments += event.delta if event.type == "response.function_call_arguments.delta" else ""
        done += [event.arguments] if event.type == "response.function_call_arguments.done" else []
    assert arguments == "".join(done) and done == [call.arguments for call in calls]
    items = [{"role": "user", "content": t.text}, calls[0].model_dump(exclude_none=True)]
    items.append({"type": "function_call_output", "call_id": calls[0].call_id, "output": "sunny"})
    assert t.client.responses.create(model=t.model, input=items, tools=[tool], max_output_tokens=4).output
    form = {"type": "json_schema", "name": "n", "schema": {"enum": ["red", "green"]}, "strict": True}
    text = t.client.responses.create(model=t.model, input=t.text, max_output_tokens=30, text={"format": form})
    assert json.loads(text.output_text) in ("red", "green"), text.output_text


@check
def responses_store_nothing(t):
    create = t.client.responses.create
    refused(400, "previous_response_id", lambda: create(model=t.model, input="a", previous_response_id="resp_1"))
    refused(400, "store", lambda: create(model=t.model, input="a", store=True))
    refused(400, "input[0].content", lambda: create(model=t.model, input=[{"role": "user", "content": 3}]))


@check
def embeddings_in_both_forms(t):
    if t.encoder is None:
        return "no encoder was named"
    create = t.client.embeddings.create
    # The client asks for base64 by itself, and reads it.
    plain = create(model=t.encoder, input=["one", "two"])
    numbers = create(model=t.encoder, input="two", encoding_format="float").data[0].embedding
    assert [entry.index for entry in plain.data] == [0, 1]
    as_f32 = struct.unpack(f"<{len(numbers)}f", struct.pack(f"<{len(numbers)}f", *numbers))
    assert tuple(plain.data[1].embedding) == as_f32
    short = create(model=t.encoder, input="two", dimensions=3, encoding_format="float").data[0].embedding
    length = lambda vector: sum(x * x for x in vector) ** 0.5
    assert len(short) == 3 and abs(length(short) - length(numbers)) < 1e-4
    refused(400, "input", lambda: create(model=t.encoder, input="word " * 20000), "context_length_exceeded")
    refused(400, "input", lambda: create(model=t.encoder, input=[]))
    raw = t.post("/v1/embeddings", {"model": t.encoder, "input": "two", "encoding_format": "base64"})[1]
    packed = base64.b64decode(json.loads(raw)["data"][0]["embedding"])
    assert struct.unpack(f"<{len(packed) // 4}f", packed) == as_f32


@check
def wrong_values_name_their_field(t):
    for field, value in [
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("n", 0),
        ("n", 10**9),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("stop", [""]),
        ("stop", ["x"] * 500),
        ("stream", "yes"),
        ("seed", "x"),
        ("top_logprobs", 10**9),
        ("no_such_field", 1),
        ("store", True),
    ]:
        refused(400, field, lambda: t.chat(extra_body={field: value}))
    refused(400, "messages", lambda: t.client.chat.completions.create(model=t.model, messages=[]))
    refused(404, "model", lambda: t.client.chat.completions.create(model="x", messages=t.messages), "model_not_found")
    refused(400, "prompt", lambda: t.complete(prompt=[2**31]))
    error = None
    try:
        t.chat(max_tokens=10**6)
    except openai.BadRequestError as bad:
        error = bad
    assert error is not None and error.code == "context_length_exceeded", error


@check
def hosts_origins_kinds_and_sizes(t):
    body = json.dumps({"model": t.model, "prompt": "a", "max_tokens": 1}).encode()
    path = "/v1/completions"
    assert t.raw("POST", path, body, {"Host": "evil.example.com"})[0] == 403
    status, _, headers = t.raw("POST", path, body, {"Origin": "http://evil.example.com"})
    assert status == 403 and "access-control-allow-origin" not in headers
    assert t.raw("POST", path, body, {"Content-Type": "text/plain"})[0] == 415
    assert t.raw("POST", path, b"{", {})[0] == 400
    assert t.raw("POST", path, b" " * (65 << 20), {})[0] == 413
    assert t.raw("GET", "/v1/models", None, {"X-Long": "x" * 300_000})[0] == 431
    assert t.raw("GET", path, None, {})[0] == 405
    assert t.raw("GET", "/nothing", None, {})[0] == 404


@check
def who_hangs_up_is_forgotten(t):
    for _ in range(20):
        stream = t.complete(max_tokens=200, stream=True)
        next(iter(stream))
        stream.close()
    begin = time.monotonic()
    while t.metric("flint_requests_running") or t.metric("flint_kv_blocks_used"):
        assert time.monotonic() - begin < 2, "somebody who is gone is still being answered"
        time.sleep(0.01)


@check
def slow_senders_hold_nobody_up(t):
    idle = [http.client.HTTPConnection(t.host, t.port, timeout=30) for _ in range(50)]
    for connection in idle:
        connection.connect()
        connection.sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: ")
    begin = time.monotonic()
    t.complete(max_tokens=1)
    elapsed = time.monotonic() - begin
    for connection in idle:
        connection.close()
    assert elapsed < 2, elapsed


@check
def many_at_once_are_answered_or_told_to_come_back(t):
    found, lock = [], threading.Lock()

    def ask():
        status, body, headers = t.post("/v1/completions", {"model": t.model, "prompt": "Once", "max_tokens": 8})
        with lock:
            found.append((status, "retry-after" in headers, "error" in json.loads(body)))

    threads = [threading.Thread(target=ask) for _ in range(192)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 192
    for status, has_time, has_error in found:
        assert (status, has_time, has_error) in [(200, False, False), (429, True, True)], (status, has_time)


@check
def metrics_and_openapi_can_be_read(t):
    text = t.raw("GET", "/metrics", None, {})[1].decode()
    for line in text.splitlines():
        if not line.startswith("#"):
            float(line.rsplit(" ", 1)[1])
    document = json.loads(t.raw("GET", "/openapi.json", None, {})[1])
    assert document["openapi"].startswith("3.1") and "/v1/responses" in document["paths"]


class Target:
    """The server and what is asked of it."""

    text = "Tell me of a cat."
    messages = [{"role": "user", "content": text}]

    def __init__(self, args):
        self.model, self.encoder, self.key = args.model, args.encoder, args.key
        address = urllib.parse.urlsplit(args.url)
        self.host, self.port = address.hostname, address.port
        self.client = openai.OpenAI(base_url=args.url, api_key=args.key or "none", max_retries=0, timeout=120)

    def chat(self, **more):
        return self.client.chat.completions.create(model=self.model, messages=self.messages, **more)

    def complete(self, prompt="Once upon a time", **more):
        return self.client.completions.create(model=self.model, prompt=prompt, **more)

    def raw(self, method, path, body, headers):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        base = {"Content-Type": "application/json", "Connection": "close"}
        if self.key:
            base["Authorization"] = f"Bearer {self.key}"
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in {**base, **headers}.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        try:
            connection.endheaders(body)
        except OSError:
            pass  # It may answer, and hang up, before it has read everything.
        answer = connection.getresponse()
        found = answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return found

    def post(self, path, body):
        return self.raw("POST", path, json.dumps(body).encode(), {})

    def metric(self, name):
        lines = self.raw("GET", "/metrics", None, {})[1].decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("encoder", nargs="?")
    parser.add_argument("--key")
    target = Target(parser.parse_args())
    failed = 0
    for function in CHECKS:
        name = function.__name__.replace("_", " ")
        try:
            note = function(target)
            print(f"ok      {name}{f' (left out: {note})' if note else ''}")
        except Exception as error:  # Every check is run, whatever the others do.
            failed += 1
            line = traceback.extract_tb(error.__traceback__)[-1].lineno
            print(f"FAILED  {name}: line {line}: {type(error).__name__}: {str(error)[:300]}")
    print(f"{len(CHECKS) - failed} of {len(CHECKS)} checks passed (openai {openai.__version__})")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
