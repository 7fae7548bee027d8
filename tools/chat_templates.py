"""Makes tokenizer/tests/fixtures/chat/templates.json: what jinja2 renders, as `transformers` sets it up.

Also tokenizer/tests/fixtures/chat/snippets.json, from snippets.txt beside it: for each line, a template whose `\\n` and
`\\r` are line breaks, what it renders with the VARIABLES, or null.

Run with a Python that has jinja2 and transformers:

    python tools/chat_templates.py ASSETS            # writes the fixture
    python tools/chat_templates.py ASSETS --show TEMPLATE CASE   # prints one expected text

ASSETS is the folder with suites/chat-templates. The fixture holds the conversations and, for each template and case,
the length and FNV-1a hash of the text in UTF-8, or null where Python raises. The clock stands at NOW. The filter `from_json`
is added to what transformers has, for the two templates that need it.
"""

import datetime
import json
import pathlib
import sys

from transformers.utils import chat_template_utils

NOW = 1_721_995_200  # 2024-07-26 12:00:00 UTC
OUT = pathlib.Path(__file__).parent.parent / "tokenizer/tests/fixtures/chat/templates.json"
SNIPPETS = OUT.with_name("snippets.txt")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the \"current\" weather — it's quick.",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {"type": "string", "description": "City and country, e.g. 'Zürich, CH'"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                    "days": {"type": "integer", "minimum": 1, "maximum": 14},
                    "detail": {"type": "number", "default": 0.5},
                    "flags": {"type": "array", "items": {"type": "boolean"}},
                },
                "required": ["location"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search <the> web & more",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string"},
                    "filter": {
                        "type": "object",
                        "properties": {"site": {"type": ["string", "null"]}, "after": {"type": "string"}},
                        "required": [],
                    },
                    "any": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                },
                "required": ["query", "filter"],
            },
            "return": {"type": "string", "description": "Results"},
        },
    },
]
NO_ARGS = [{"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}}]


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, call_id="call00001"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = say("system", "You are terse.")
HELLO = say("user", "Hello!")
HI = say("assistant", "Hi, how can I help?")
MORE = say("user", "Tell me more.")
ASK = say("user", "Weather in Zürich?")
ARGS = {"location": "Zürich, CH", "days": 3, "detail": 1.0, "deep": {"a": [1, 2.5, None, True], "b": "it's \"x\""}}
CALLS = say("assistant", "", tool_calls=[call("get_weather", ARGS)])
RESULT = say("tool", '{"temp": 21.5, "sky": "clear"}', tool_call_id="call00001", name="get_weather")
ANSWER = say("assistant", "It is 21.5 °C and clear.")


def conversations():
    yield "user", [HELLO]
    yield "system", [SYSTEM, HELLO]
    yield "turn", [HELLO, HI]
    yield "turns", [SYSTEM, HELLO, HI, MORE]
    yield "long", [SYSTEM, HELLO, HI, MORE, say("assistant", "More."), say("user", "Bye"), say("assistant", "Bye.")]
    yield "unicode", [say("system", "Sé útil 🙂"), say("user", "日本語 \u202e\u00a0é 👩‍👩‍👧 \x07"), say("assistant", "नमस्ते")]
    yield "quotes", [say("user", "He said \"it's <b>\\n</b> & 'fine'\" {{ x }} {% y %} `z`"), say("assistant", "a'b\"c\\d\ttab\r\nline")]
    yield "spaces", [say("system", "  \n"), say("user", "  leading\n\n"), say("assistant", "\n trailing  \n"), say("user", "")]
    yield "empty", [say("user", "")]
    yield "empty_assistant", [HELLO, say("assistant", ""), MORE]
    yield "null", [HELLO, say("assistant", None), MORE]
    yield "parts", [say("system", [{"type": "text", "text": "Be nice."}]), say("user", [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]), say("assistant", [{"type": "text", "text": "Three."}])]
    yield "image", [say("user", [{"type": "image"}, {"type": "text", "text": "What is this?"}])]
    yield "think", [HELLO, say("assistant", "<think>\nhm, well\n</think>\n\nHello."), MORE, say("assistant", "<think>a</think>b</think>c"), HELLO]
    yield "reasoning", [HELLO, say("assistant", "Hello.", reasoning_content="Greet back.", thinking="Greet back."), MORE]
    yield "reasoning_last", [HELLO, say("assistant", "Hello.", reasoning_content="Greet\nback.")]
    yield "tools", [ASK], {"tools": TOOLS}
    yield "tools_system", [SYSTEM, ASK], {"tools": TOOLS}
    yield "no_args", [ASK], {"tools": NO_ARGS}
    yield "call", [ASK, CALLS], {"tools": TOOLS}
    yield "result", [ASK, CALLS, RESULT], {"tools": TOOLS}
    yield "answer", [SYSTEM, ASK, CALLS, RESULT, ANSWER], {"tools": TOOLS}
    yield "answer_more", [SYSTEM, ASK, CALLS, RESULT, ANSWER, MORE], {"tools": TOOLS}
    yield "result_untold", [ASK, CALLS, RESULT, ANSWER]
    two = say("assistant", None, tool_calls=[call("get_weather", {"location": "Bern"}, "callaaaa1"), call("search", {"query": "a < b && c", "filter": {"site": None}}, "callaaaa2")])
    yield "two", [ASK, two, say("tool", "12", tool_call_id="callaaaa1", name="get_weather"), say("tool", "none\nfound", tool_call_id="callaaaa2", name="search")], {"tools": TOOLS}
    yield "two_answer", [ASK, two, say("tool", "12", tool_call_id="callaaaa1", name="get_weather"), say("tool", "none", tool_call_id="callaaaa2", name="search"), ANSWER], {"tools": TOOLS}
    text = say("assistant", "Let me look.", tool_calls=[call("search", '{"query": "x", "filter": {}}', "callbbbb1")])
    yield "text_args", [ASK, text, say("tool", "ok", tool_call_id="callbbbb1", name="search")], {"tools": TOOLS}
    thought = say("assistant", "Looking.", reasoning_content="I need data.", tool_calls=[call("search", {"query": "x"}, "callcccc1")])
    yield "thought_call", [ASK, thought, say("tool", "ok", tool_call_id="callcccc1"), say("assistant", "Done.", reasoning_content="Fine.")], {"tools": TOOLS}
    bare = say("assistant", "", tool_calls=[{"name": "search", "arguments": {"query": "x"}}])
    yield "bare_call", [ASK, bare, RESULT], {"tools": TOOLS}
    yield "bare_tools", [ASK], {"tools": [tool["function"] for tool in TOOLS]}
    yield "result_parts", [ASK, CALLS, say("tool", [{"type": "text", "text": "21"}], tool_call_id="call00001")], {"tools": TOOLS}
    yield "result_object", [ASK, CALLS, say("tool", {"temp": 21.5, "ok": True}, tool_call_id="call00001", name="get_weather")], {"tools": TOOLS}
    yield "thinking_off", [SYSTEM, HELLO], {"enable_thinking": False, "thinking": False}
    yield "thinking_on", [SYSTEM, HELLO, HI, MORE], {"enable_thinking": True, "thinking": True}
    yield "effort", [HELLO], {"reasoning_effort": "low"}
    yield "documents", [SYSTEM, HELLO], {"documents": [{"title": "A \"title\"", "text": "Some text."}, {"title": "B", "text": "Ünïcode"}]}
    yield "developer", [say("developer", "Obey."), HELLO]
    yield "late_system", [HELLO, SYSTEM, MORE]
    yield "two_systems", [SYSTEM, say("system", "And kind."), HELLO]
    yield "users", [HELLO, MORE]
    yield "assistant_first", [HI, HELLO]
    yield "no_messages", []
    yield "odd_role", [say("critic", "Bad."), HELLO]
    yield "no_content", [{"role": "user"}]
    yield "no_role", [{"content": "x"}]
    yield "number", [say("user", 5)]


def cases():
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    for name, messages, *more in conversations():
        for prompt in (False, True):
            inputs = {"messages": messages, "add_generation_prompt": prompt, "tools": None, "documents": None}
            inputs |= special | (more[0] if more else {})
            yield f"{name}+prompt" if prompt else name, inputs


VARIABLES = {
    "s": " Hello, Wörld! ",
    "e": "",
    "u": "naïve 日本 🙂",
    "q": "it's \"q\"\n\t\\\x07\u00a0\u200b",
    "n": None,
    "i": 7,
    "f": 2.5,
    "t": True,
    "l": [3, 1, 2],
    "w": ["b", "A", "c", "a"],
    "d": {"b": 1, "a": [1, {"x": None}], "C": "é<>&'"},
    "m": [{"role": "user", "k": {"v": 2}, "c": "x"}, {"role": "tool", "k": {"v": 1}, "c": ""}, {"role": "user", "k": {}}],
}


def snippets():
    compiled = []
    for line in SNIPPETS.read_text("utf-8").splitlines():
        try:
            template = chat_template_utils._compile_jinja_template(line.replace("\\n", "\n").replace("\\r", "\r"))
            compiled.append([line, render(template, VARIABLES)])
        except Exception:
            compiled.append([line, None])
    fixture = {"variables": VARIABLES, "snippets": compiled}
    text = json.dumps(fixture, ensure_ascii=False, indent=0)
    SNIPPETS.with_suffix(".json").write_text(text + "\n", "utf-8")
    print(f"{len(compiled)} snippets of which {sum(text is None for _, text in compiled)} raise")


def fnv(data):
    digest = 0xCBF29CE484222325
    for byte in data:
        digest = (digest ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{digest:016x}"


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


def render(compiled, inputs):
    # Two templates use this filter, which their own programs define and transformers lacks.
    compiled.environment.filters["from_json"] = json.loads
    # Through JSON, so that the template gets values of its own.
    return compiled.render(**json.loads(json.dumps(inputs)))


def main():
    chat_template_utils.datetime = Clock
    folder = pathlib.Path(sys.argv[1]) / "suites/chat-templates"
    if sys.argv[2:3] == ["--show"]:
        compiled = chat_template_utils._compile_jinja_template((folder / sys.argv[3]).read_text("utf-8"))
        sys.stdout.write(render(compiled, dict(cases())[sys.argv[4]]))
        return
    snippets()
    expected = {}
    n_errors = 0
    for path in sorted(folder.glob("*.jinja")):
        digests = {}
        try:
            compiled = chat_template_utils._compile_jinja_template(path.read_text("utf-8"))
        except Exception as error:
            print(path.name, type(error).__name__, error)
            expected[path.name] = None
            continue
        for name, inputs in cases():
            try:
                text = render(compiled, inputs).encode()
                digests[name] = [len(text), fnv(text)]
            except Exception:
                digests[name] = None
                n_errors += 1
        expected[path.name] = digests
    OUT.parent.mkdir(parents=True, exist_ok=True)
    fixture = {"now": NOW, "cases": dict(cases()), "expected": expected}
    OUT.write_text(json.dumps(fixture, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    n_cases = sum(len(digests or ()) for digests in expected.values())
    print(f"{len(expected)} templates, {n_cases} texts of which {n_errors} raise: {OUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()
