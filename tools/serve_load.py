"""Many requests at a running `flint serve`: load with clients that hang up, or requests that are no requests.

    flint serve tiny=MODEL --port 8080 --parallel 64 --queue 1000 --cache-memory 16 --quiet
    python3 tools/serve_load.py load 127.0.0.1:8080 tiny --pid PID      10,000 requests over 64 connections
    python3 tools/serve_load.py fuzz 127.0.0.1:8080 tiny --pid PID      10,000 mutated ones

`load`: one in five hangs up in the middle of its stream; all others must say what they say alone. Afterwards nothing runs,
no page is in use, and the process takes as much memory as after the first tenth, within 5 %. (Pages keep beginnings that may
come again, up to `--cache-memory`: the first run fills them, judge memory by a second.)
`fuzz`: valid bodies with fields, values and bytes changed, headers changed, requests cut short. Every answer must be HTTP,
and its body JSON or events (errors in OpenAI's form); the server must not panic and must still answer.
Ends with 1 if something else happens. Needs nothing but Python's library.
"""

import argparse
import json
import random
import socket
import sys
import threading
import time

PROMPTS = ["Once upon a time", "The cat", "One day, a girl", "He said", "Tim and Sue", "In the park", "A big dog"]


class Http:
    """One connection, as bytes."""

    def __init__(self, address, timeout=60):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=timeout)
        self.file = self.socket.makefile("rb")

    def close(self):
        self.file.close()
        self.socket.close()

    def send(self, method, path, body=b"", headers=()):
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers]
        if body:
            lines.append("Content-Type: application/json")
        self.socket.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def head(self):
        line = self.file.readline()
        if not line:
            return None, {}
        version, status, _ = (line.decode("latin-1") + "  ").split(" ", 2)
        assert version.startswith("HTTP/1."), line
        headers = {}
        while (line := self.file.readline().decode("latin-1").strip()):
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(status), headers

    def pieces(self, headers):
        """The body as it comes."""
        if headers.get("transfer-encoding") == "chunked":
            while True:
                size = int(self.file.readline().strip(), 16)
                data = self.file.read(size)
                self.file.readline()
                if size == 0:
                    return
                yield data
        else:
            yield self.file.read(int(headers.get("content-length", 0)))


def request(model, rng):
    body = {"model": model, "prompt": rng.choice(PROMPTS), "max_tokens": rng.choice([4, 8, 16, 32])}
    if rng.random() < 0.5:
        body["temperature"] = 0
    else:
        body["seed"] = rng.randrange(5)
    return body


def key(body):
    return json.dumps({name: value for name, value in body.items() if name != "stream"}, sort_keys=True)


def text_of(pieces, is_stream):
    data = b"".join(pieces)
    if not is_stream:
        return json.loads(data)["choices"][0]["text"]
    events = [line[6:] for line in data.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def memory(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def open_files(pid):
    import os

    return len(os.listdir(f"/proc/{pid}/fd"))


def metric(address, name):
    http = Http(address)
    http.send("GET", "/metrics", headers=["Connection: close"])
    _, headers = http.head()
    lines = b"".join(http.pieces(headers)).decode().splitlines()
    http.close()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def wait_until_idle(address):
    begin = time.monotonic()
    while any(metric(address, f"flint_{name}") for name in ["requests_running", "requests_waiting", "kv_blocks_used"]):
        assert time.monotonic() - begin < 30, "something still runs though nobody asks"
        time.sleep(0.05)


def load(args):
    alone, lock, counts = {}, threading.Lock(), {"whole": 0, "streamed": 0, "dropped": 0, "turned away": 0}
    rng = random.Random(args.seed)
    bodies = [request(args.model, rng) for _ in range(args.n)]
    http = Http(args.address)
    for body in bodies:
        if key(body) not in alone:
            http.send("POST", "/v1/completions", json.dumps(body).encode())
            status, headers = http.head()
            assert status == 200, status
            alone[key(body)] = text_of(http.pieces(headers), False)
    http.close()
    print(f"{len(alone)} different requests were asked alone")
    wrong, work = [], iter(enumerate(bodies))
    memory_after_a_tenth = []

    def client(number):
        rng = random.Random(args.seed * 1000 + number)
        http = None
        while True:
            with lock:
                i, body = next(work, (None, None))
                if i == args.n // 10:
                    memory_after_a_tenth.append((memory(args.pid), open_files(args.pid)))
            if body is None:
                break
            kind = rng.choices(["dropped", "streamed", "whole"], [20, 40, 40])[0]
            sent = {**body, "stream": kind != "whole"}
            try:
                http = http or Http(args.address)
                http.send("POST", "/v1/completions", json.dumps(sent).encode())
                status, headers = http.head()
                if status == 429:
                    kind = "turned away"
                    assert "retry-after" in headers
                    b"".join(http.pieces(headers))
                elif kind == "dropped":
                    pieces = http.pieces(headers)
                    for _ in range(rng.randrange(3)):
                        next(pieces, None)
                    http.close()
                    http = None
                else:
                    text = text_of(http.pieces(headers), kind == "streamed")
                    if text != alone[key(body)]:
                        wrong.append((body, text, alone[key(body)]))
            except Exception as error:  # Counted: there must be none.
                wrong.append((sent, repr(error), ""))
                http = None
            with lock:
                counts[kind] += 1

    begin = time.monotonic()
    threads = [threading.Thread(target=client, args=[number]) for number in range(args.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begin
    wait_until_idle(args.address)
    (before, files_before), after, files = memory_after_a_tenth[0], memory(args.pid), open_files(args.pid)
    print(f"{args.n} requests in {seconds:.1f} s over {args.connections} connections: {counts}")
    print(f"memory after a tenth {before} KiB, at the end {after} KiB ({100 * (after / before - 1):+.1f} %)")
    print(f"open files after a tenth {files_before}, at the end {files}; nothing runs, no page is in use")
    for body, found, expected in wrong[:5]:
        print(f"wrong: {json.dumps(body)}\n  found    {found!r}\n  expected {expected!r}")
    print(f"{len(wrong)} answers differ from those alone")
    return not wrong and after <= before * 1.05


VALUES = [None, True, -1, 0, 1.5, 1e308, -(2**63), 2**64, "", "x" * 300, "\u0000", "\ud83d", [], {}, [[]], [None], [-1]]


def mutated(rng, model):
    """A request's bytes, and whether it is cut short."""
    messages = [{"role": "user", "content": "hi"}]
    path, body = rng.choice(
        [
            ("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 2}),
            ("/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 2}),
            ("/v1/responses", {"model": model, "input": messages, "max_output_tokens": 2}),
            ("/v1/embeddings", {"model": model, "input": "a"}),
            ("/tokenize", {"model": model, "prompt": "a"}),
            ("/detokenize", {"model": model, "tokens": [1, 2]}),
            ("/apply-template", {"model": model, "messages": messages}),
        ]
    )
    names = [*body, "temperature", "top_p", "n", "seed", "stop", "stream", "stream_options", "logprobs", "echo", "tools"]
    for _ in range(rng.randrange(4)):
        body[rng.choice(names) if rng.random() < 0.9 else "\u00e9" * rng.randrange(90)] = rng.choice(VALUES)
    if rng.random() < 0.1:
        body["prompt"] = json.loads("[" * 60 + "]" * 60)
    raw = bytearray(json.dumps(body).encode())
    if rng.random() < 0.05:
        raw = bytearray(b"[" * rng.choice([100, 200, 100_000]))
    for _ in range(rng.choice([0, 0, 0, 0, 0, 1, 5])):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    length = rng.choice([len(raw)] * 20 + [len(raw) - 1, 2**50, 10**30, "x", -5])
    headers = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {length}",
        "Connection: close",
    ]
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        headers.insert(
            rng.randrange(len(headers) + 1),
            rng.choice(
                [
                    "Host: localhost",
                    "Transfer-Encoding: chunked",
                    "Transfer-Encoding: gzip",
                    "Content-Length: 3",
                    "Expect: 100-continue",
                    "Authorization: Bearer " + "x" * 5000,
                    "X: " + "y" * 70000,
                    "\x00: 1",
                    ": empty",
                    " folded",
                    "Origin: null",
                    "Upgrade: h2c",
                    "POST / HTTP/9.9",
                ]
            ),
        )
    if rng.random() < 0.1:
        headers[0] = rng.choice(["GET /../etc/passwd HTTP/1.1", "PUT /v1/models HTTP/1.1", "x", "GET / HTTP/0.9",
                                 "PRI * HTTP/2.0", "GET /v1/models/%00 HTTP/1.1", "GET " + "/a" * 40000 + " HTTP/1.1"])
    whole = "\r\n".join(headers).encode("latin-1", "replace") + b"\r\n\r\n" + bytes(raw)
    return (whole[: rng.randrange(1, len(whole))], True) if rng.random() < 0.15 else (whole, False)


def checked(http):
    """The status of a well-formed answer, or None if it hung up without one."""
    status, headers = http.head()
    while status == 100:
        status, headers = http.head()
    if status is None:
        return None
    data = b"".join(http.pieces(headers))
    kind = headers.get("content-type", "")
    if status == 200 and kind == "text/event-stream":
        assert data.endswith(b"\n\n"), data[-40:]
    elif data and kind.startswith("application/json"):
        body = json.loads(data)
        if status >= 400:
            error = body["error"]
            assert error["message"] and error["type"] and {"param", "code"} <= set(error), body
            assert b"panicked" not in data and b".rs" not in data, body
    else:
        # Before there is a request, hyper answers by itself, with nothing.
        assert status in (200, 400, 414, 431) and (status == 200 or not data), (status, kind, data[:80])
    return status


def fuzz(args):
    rng, counts, wrong, lock = random.Random(args.seed), {}, [], threading.Lock()
    cases = iter([mutated(rng, args.model) for _ in range(args.n)])

    def client():
        while True:
            with lock:
                case = next(cases, None)
            if case is None:
                return
            data, is_cut = case
            try:
                http = Http(args.address, timeout=30)
                try:
                    http.socket.sendall(data)
                    if is_cut:
                        http.socket.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # It may answer, and hang up, before it has read everything.
                try:
                    status = checked(http)
                except ConnectionResetError:
                    status = None  # What it had not read made the answer's end a reset.
                http.close()
                with lock:
                    counts[status] = counts.get(status, 0) + 1
            except Exception as error:  # Counted: there must be none.
                wrong.append((data[:300], repr(error)))

    begin = time.monotonic()
    threads = [threading.Thread(target=client) for _ in range(args.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{args.n} requests in {time.monotonic() - begin:.1f} s; by status {counts} (None: hung up without an answer)")
    for data, error in wrong[:8]:
        print(f"wrong: {error}\n  {data!r}")
    wait_until_idle(args.address)
    http = Http(args.address)
    http.send("POST", "/v1/completions", json.dumps(request(args.model, rng)).encode())
    status, headers = http.head()
    text_of(http.pieces(headers), False)
    print(f"{len(wrong)} answers were ill-formed; it still answers, and takes {memory(args.pid)} KiB")
    return not wrong and status == 200 and not counts.get(500)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["load", "fuzz"])
    parser.add_argument("address", help="HOST:PORT")
    parser.add_argument("model")
    parser.add_argument("--pid", type=int, required=True, help="of the server, whose memory is looked at")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sys.exit(0 if {"load": load, "fuzz": fuzz}[args.what](args) else 1)


if __name__ == "__main__":
    main()
