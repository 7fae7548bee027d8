"""Drives tools and forms of answers of a running `flint serve` by OpenAI's official Python client.

    pip install openai
    flint serve tiny=MODEL --port 8080
    python3 tools/conformance_tools.py http://127.0.0.1:8080/v1 tiny [--key KEY]

Any model will do, however little it knows: what it may write is forced. Ends with 1 if a check fails.
"""

import argparse
import json
import sys
import traceback
from typing import Literal

import openai
from pydantic import BaseModel

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 30},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time of day"}},
]

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def well_formed(call):
    assert call.type == "function" and call.id.startswith("call_"), call
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert set(arguments) == {"city", "unit"} and len(arguments["city"]) <= 30, arguments
        assert arguments["unit"] in ("celsius", "fahrenheit"), arguments
    else:
        assert call.function.name == "now" and arguments == {}, call
    return call


def refused(param, call):
    try:
        call()
    except openai.BadRequestError as error:
        assert error.body["param"] == param and error.body["message"], error.body
        return
    raise AssertionError(f"it was answered, though {param} cannot be")


@check
def required_calls_are_well_formed(t):
    for seed in range(6):
        choice = t.chat(tools=TOOLS, tool_choice="required", seed=seed).choices[0]
        assert choice.finish_reason == "tool_calls" and choice.message.content is None, choice
        assert choice.message.tool_calls
        for call in choice.message.tool_calls:
            well_formed(call)


@check
def a_named_function_is_called_once(t):
    named = {"type": "function", "function": {"name": "get_weather"}}
    choice = t.chat(tools=TOOLS, tool_choice=named, seed=3).choices[0]
    assert [well_formed(call).function.name for call in choice.message.tool_calls] == ["get_weather"]


@check
def no_more_than_one_call_where_they_must_not_be_parallel(t):
    for seed in range(4):
        message = t.chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed).choices[0].message
        assert len(message.tool_calls) == 1


@check
def streamed_calls_are_those_of_the_whole(t):
    for seed in range(3):
        whole = t.chat(tools=TOOLS, tool_choice="required", seed=seed).choices[0].message
        calls, reason = {}, None
        for chunk in t.chat(tools=TOOLS, tool_choice="required", seed=seed, stream=True):
            choice = chunk.choices[0]
            reason = choice.finish_reason or reason
            for delta in choice.delta.tool_calls or []:
                call = calls.setdefault(delta.index, {"name": "", "arguments": "", "pieces": 0})
                if call["pieces"] == 0:
                    assert delta.id and delta.type == "function" and delta.function.name
                    call["name"] = delta.function.name
                call["arguments"] += delta.function.arguments or ""
                call["pieces"] += 1
        assert reason == "tool_calls"
        found = [(call["name"], call["arguments"]) for _, call in sorted(calls.items())]
        assert found == [(call.function.name, call.function.arguments) for call in whole.tool_calls]
        assert all(call["pieces"] > 2 for call in calls.values()), "arguments come in pieces"


@check
def the_clients_own_stream_helper_puts_calls_together(t):
    with t.client.chat.completions.stream(
        model=t.model, messages=t.messages, tools=TOOLS, tool_choice="required", max_tokens=160, seed=1
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls
    for call in final.choices[0].message.tool_calls:
        well_formed(call)


@check
def who_may_call_may_speak(t):
    choice = t.chat(tools=TOOLS, seed=1).choices[0]
    if choice.message.tool_calls:
        for call in choice.message.tool_calls:
            well_formed(call)
    else:
        assert choice.message.content and choice.finish_reason in ("stop", "length")
    assert t.chat(tools=TOOLS, tool_choice="none").choices[0].message.tool_calls is None


@check
def results_of_tools_come_back(t):
    message = t.chat(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=2).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "18 degrees"}
    messages = [*t.messages, message, result]
    answer = t.client.chat.completions.create(model=t.model, messages=messages, tools=TOOLS, max_tokens=8)
    assert answer.usage.completion_tokens <= 8


@check
def json_objects_are_whole_in_any_room(t):
    for n in (2, 5, 17, 60):
        choice = t.chat(response_format={"type": "json_object"}, max_tokens=n, seed=n).choices[0]
        assert isinstance(json.loads(choice.message.content), dict), choice


@check
def schemas_hold_and_parse(t):
    class Event(BaseModel):
        name: str
        day: Literal["monday", "friday"]
        guests: list[str]

    answer = t.client.chat.completions.parse(
        model=t.model, messages=t.messages, response_format=Event, max_tokens=90, seed=5
    )
    assert answer.choices[0].message.parsed.day in ("monday", "friday")


@check
def expressions_and_choices(t):
    text = t.chat(extra_body={"structured_outputs": {"regex": "[A-Z]{3}-[0-9]{2}"}}).choices[0].message.content
    assert len(text) == 6 and text[3] == "-", text
    assert t.chat(extra_body={"guided_choice": ["yes", "no"]}).choices[0].message.content in ("yes", "no")
    answer = t.client.completions.create(model=t.model, prompt="1 + 1 =", max_tokens=8, extra_body={"guided_regex": " ?[0-9]"})
    assert answer.choices[0].text.strip().isdigit()


@check
def what_cannot_be_names_the_field(t):
    bad = [{"type": "function", "function": {"name": "a b"}}]
    refused("tools[0].function.name", lambda: t.chat(tools=bad))
    refused("tool_choice", lambda: t.chat(tools=TOOLS, tool_choice="always"))
    refused("response_format.type", lambda: t.chat(response_format={"type": "xml"}))
    refused("guided_regex", lambda: t.chat(extra_body={"guided_regex": "("}))
    refused("max_tokens", lambda: t.chat(tools=TOOLS, tool_choice="required", max_tokens=2))


class Target:
    messages = [{"role": "user", "content": "What is the weather like in Paris today?"}]

    def __init__(self, client, model):
        self.client, self.model = client, model

    def chat(self, **more):
        more.setdefault("max_tokens", 160)
        return self.client.chat.completions.create(model=self.model, messages=self.messages, **more)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--key", default="none")
    args = parser.parse_args()
    target = Target(openai.OpenAI(base_url=args.url, api_key=args.key, max_retries=0, timeout=300), args.model)
    n_failed = 0
    for function in CHECKS:
        try:
            function(target)
            print(f"ok      {function.__name__}")
        except Exception as error:
            n_failed += 1
            print(f"FAILED  {function.__name__}: {error!r}")
            traceback.print_exc(limit=-1)
    sys.exit(1 if n_failed else 0)


if __name__ == "__main__":
    main()
