//! Hostile templates end as errors: soon, in bounded memory, without a file read and without an abort.
//!
//! Each template runs in a process of its own, this test binary once more, so that an abort is seen as one and the peak
//! of its memory is its own.

use proptest::prelude::*;
use std::io::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use tokenizer::chat::json::Json;
use tokenizer::chat::template::{ChatTemplate, Inputs};

const CHILD: &str = "FLINT_HOSTILE_TEMPLATE";
const MAX_PEAK_KB: u64 = 256 << 10;
/// Unoptimised code is slower by an order of magnitude.
const MAX_TIME: Duration =
    if cfg!(debug_assertions) { Duration::from_secs(15) } else { Duration::from_secs(1) };

/// The templates with what their errors say.
fn hostile() -> Vec<(&'static str, String, &'static str)> {
    let deep = |open: &str, middle: &str, close: &str, n: usize| open.repeat(n) + middle + &close.repeat(n);
    let text = |template: &str| template.to_owned();
    let many = |line: &str, n: usize| line.repeat(n);
    vec![
        ("long range", text("{% for i in range(10**9) %}x{% endfor %}"), "`range` has more than"),
        (
            "loops",
            text("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"),
            "more work",
        ),
        (
            "printing loops",
            text("{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}"),
            "more work",
        ),
        ("recursive macro", text("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"), "nest deeper"),
        (
            "recursive caller",
            text(
                "{% macro m() %}{{ caller() }}{% call m() %}{{ m() }}{% endcall %}{% endmacro %}{% call m() %}{% endcall %}",
            ),
            "",
        ),
        (
            "fanning macro",
            text(
                "{% macro m(n) %}{% for i in range(9) %}{{ m(n+1) if n < 50 }}{% endfor %}{% endmacro %}{{ m(0) }}",
            ),
            "more work",
        ),
        (
            "deep macro",
            deep(
                "{% macro m() %}{% if 1 %}{% for x in [1] %}",
                "{{ (((((((((m()))))))))) }}",
                "{% endfor %}{% endif %}{% endmacro %}",
                1,
            ) + "{{ m() }}",
            "nest deeper",
        ),
        ("brackets", text("{{ ") + &deep("(", "1", ")", 100_000) + " }}", "nest deeper than"),
        ("lists", text("{{ ") + &deep("[", "1", "]", 100_000) + " }}", "nest deeper than"),
        ("dicts", text("{{ ") + &deep("{1:", "1", "}", 100_000) + " }}", "nest deeper than"),
        ("calls", text("{{ ") + &deep("x(", "1", ")", 100_000) + " }}", "nest deeper than"),
        ("subscripts", text("{{ ") + &deep("x[", "1", "]", 100_000) + " }}", "nest deeper than"),
        ("negations", text("{{ ") + &many("not ", 100_000) + "1 }}", "nest deeper than"),
        ("minus signs", text("{{ ") + &many("- ", 100_000) + "1 }}", "nest deeper than"),
        ("ternaries", text("{{ ") + &many("1 if 0 else ", 80_000) + "1 }}", "nest deeper than"),
        (
            "targets",
            text("{% for ") + &deep("(", "a", ")", 100_000) + " in x %}{% endfor %}",
            "nest deeper than",
        ),
        ("ifs", deep("{% if 1 %}", "x", "{% endif %}", 40_000), "nest deeper than"),
        ("huge ifs", deep("{% if 1 %}", "x", "{% endif %}", 100_000), "limit"),
        ("fors", deep("{% for x in y %}", "x", "{% endfor %}", 30_000), "nest deeper than"),
        ("repeat", text("{{ 'a' * 10**9 }}"), "intermediate"),
        ("repeat list", text("{{ [1] * 10**9 }}"), "intermediate"),
        ("repeat twice", text("{{ ('a' * 10**6) * 10**6 }}"), "intermediate"),
        (
            "double ~",
            text(
                "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            ),
            "intermediate",
        ),
        (
            "double +",
            text(
                "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
            ),
            "intermediate",
        ),
        (
            "double lists",
            text(
                "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
            ),
            "intermediate",
        ),
        (
            "double join",
            text(
                "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = [n.s, n.s]|join %}{% endfor %}",
            ),
            "intermediate",
        ),
        (
            "double replace",
            text(
                "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s|replace('a', 'aa') %}{% endfor %}",
            ),
            "",
        ),
        (
            "double format",
            text(
                "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = '%s%s' % (n.s, n.s) %}{% endfor %}",
            ),
            "intermediate",
        ),
        (
            "double str.format",
            text(
                "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = '{0}{0}'.format(n.s) %}{% endfor %}",
            ),
            "intermediate",
        ),
        (
            "double block",
            text(
                "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
            ),
            "",
        ),
        (
            "double macro",
            text("{% macro m(s, n) %}{{ m(s ~ s, n - 1) if n else s }}{% endmacro %}{{ m('ab', 55) }}"),
            "intermediate",
        ),
        (
            "keep strings",
            text(
                "{% set n = namespace(l=[]) %}{% set s = 'a' * 9**7 %}{% for i in range(999) %}{% set n.l = n.l + [s ~ i] %}{% endfor %}",
            ),
            "intermediate",
        ),
        (
            "keep dicts",
            text(
                "{% set n = namespace(d={}) %}{% for i in range(99999) %}{% set n.d = dict(n.d, **{'k' ~ i: i}) %}{% endfor %}",
            ),
            "",
        ),
        (
            "keep namespaces",
            text(
                "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% set n.x = namespace(x=n.x, a=1, b=2, c=3) %}{% endfor %}{{ 'a' * 10**9 }}",
            ),
            "",
        ),
        (
            "nest lists",
            text("{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}"),
            "nest deeper than",
        ),
        (
            "nest dicts",
            text(
                "{% set n = namespace(l={}) %}{% for i in range(99999) %}{% set n.l = {'a': n.l} %}{% endfor %}",
            ),
            "nest deeper than",
        ),
        (
            "nest loops",
            text(
                "{% set n = namespace(l=[]) %}{% for i in range(999) %}{% for j in [n.l] %}{% set n.l = loop %}{% endfor %}{% endfor %}",
            ),
            "nest deeper than",
        ),
        (
            "shared lists",
            text(
                "{% set n = namespace(l=[]) %}{% for i in range(99) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
            ),
            "",
        ),
        (
            "equal lists",
            text(
                "{% set n = namespace(l=[], m=[]) %}{% for i in range(99) %}{% set n.l = [n.l, n.l] %}{% set n.m = [n.m, n.m] %}{% endfor %}{{ n.l == n.m }}",
            ),
            "more work",
        ),
        (
            "shared json",
            text(
                "{% set n = namespace(l=[]) %}{% for i in range(99) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l|tojson(indent=1000) }}",
            ),
            "",
        ),
        ("indent", text("{{ 'a\nb'|indent(10**9) }}"), "too wide"),
        ("wide indent", text("{{ ('a\n' * 10**6)|indent(1000) }}"), "intermediate"),
        ("json indent", text("{{ [1]|tojson(indent=10**9) }}"), "must be at most"),
        ("json indent many", text("{{ ([1]*99999)|tojson(indent=1000) }}"), "intermediate"),
        ("format width", text("{{ '%999999999s' % 'a' }}"), "intermediate"),
        ("str.format width", text("{{ '{:999999999}'.format('a') }}"), "intermediate"),
        ("format precision", text("{{ '%.999999999f' % 1.5 }}{{ 'a' * 10**9 }}"), "intermediate"),
        ("center", text("{{ 'a'.center(10**9) }}"), "intermediate"),
        ("center filter", text("{{ 'a'|center(10**9) }}"), "intermediate"),
        ("ljust", text("{{ 'a'.ljust(10**30) }}"), "intermediate"),
        ("zfill", text("{{ 'a'.zfill(10**9) }}"), "intermediate"),
        ("chars", text("{{ ('a' * 3*10**7)|list }}"), "intermediate"),
        ("split", text("{{ ('a ' * 10**7).split() }}"), "intermediate"),
        ("batch", text("{{ [1]|batch(10**9, 0)|list }}"), "intermediate"),
        ("slice", text("{{ [1]|slice(10**9)|list }}"), "intermediate"),
        ("powers", text("{{ 10**10**10 }}"), "too large"),
        ("integers", text("{{ -(-(2**126) * 2) }}"), "too large"),
        (
            "output",
            text("{% set s = 'a' * 10**6 %}{% for i in range(99) %}{{ s }}{% endfor %}"),
            "output has more",
        ),
        ("insides", text("{{ ''.__class__.__mro__[1].__subclasses__() }}"), "`__class__`"),
        ("insides by item", text("{{ ''['__class__'] }}"), "`__class__`"),
        ("insides by filter", text("{{ ''|attr('__class__') }}"), "`__class__`"),
        ("insides of functions", text("{{ raise_exception.__globals__ }}"), "`__globals__`"),
        ("changing", text("{% set l = [] %}{{ l.append(1) }}"), "may not change"),
        ("include", text("{% include '/etc/passwd' %}"), "`include` is refused"),
        ("import", text("{% import '/etc/passwd' as p %}"), "`import` is refused"),
        ("from", text("{% from '/etc/passwd' import p %}"), "`from` is refused"),
        ("extends", text("{% extends '/etc/passwd' %}"), "`extends` is refused"),
        ("long source", many("x", 2 << 20), "limit"),
        (
            "many names",
            text("") + &(0..40_000).map(|i| format!("{{% set a{i}=1 %}}")).collect::<String>(),
            "",
        ),
        ("long sum", text("{{ 1") + &many("+1", 400_000) + " }}{{ 'a' * 10**9 }}", "intermediate"),
        ("long attributes", text("{{ x") + &many(".a", 400_000) + " }}", "undefined"),
        (
            "long concatenation",
            text("{% set s = 'a' * 10**5 %}{{ s") + &many("~s", 200_000) + " }}",
            "intermediate",
        ),
        (
            "long elif",
            text("{% if 0 %}") + &many("{% elif 0 %}", 80_000) + "{% endif %}{{ 'a' * 10**9 }}",
            "intermediate",
        ),
        (
            "many parameters",
            text("{% macro f(")
                + &(0..120_000).map(|i| format!("a{i},")).collect::<String>()
                + "z) %}{% endmacro %}",
            "",
        ),
        ("one parameter", text("{% macro f(a") + &many(",a", 500_000) + ") %}{% endmacro %}", "comes twice"),
        (
            "parameters bound",
            text("{% macro f(z")
                + &(0..100_000).map(|i| format!(",a{i}")).collect::<String>()
                + ") %}{% endmacro %}{{ f() }}",
            "more work",
        ),
        (
            "long names",
            (0..500).map(|i| format!("{{% set {}{i:03}=1 %}}", many("a", 1900))).collect::<String>()
                + "{% for i in range(99999) %}{% if "
                + &many("a", 1900)
                + "499 %}{% endif %}{% endfor %}",
            "more work",
        ),
        (
            "long strip set",
            text(
                "{% set s = 'a' * 10**6 %}{% set c = 'b' * 999 ~ 'a' %}{% for i in range(20) %}{{ s.strip(c) }}{% endfor %}",
            ),
            "more work",
        ),
        (
            "long trim set",
            text(
                "{% set s = 'é' * 10**6 %}{% set c = 'è' * 999 ~ 'é' %}{% for i in range(20) %}{{ s|trim(c) }}{% endfor %}",
            ),
            "more work",
        ),
        ("huge strip set", text("{{ 'b'.strip('a' * 3 * 10**7) }}"), ""),
        (
            "long key",
            text(
                "{% set k = 'a' * 10**6 %}{% set d = {k: 1} %}{% for i in range(99999) %}{% if d[k] %}{% endif %}{% endfor %}",
            ),
            "more work",
        ),
        (
            "long hashed key",
            text(
                "{% set k = 'a' * 10**6 %}{% set d = dict(range(40)|map('string')|batch(2), **{k: 1}) %}{% for i in range(99999) %}{% if d.get(k) %}{% endif %}{% endfor %}",
            ),
            "more work",
        ),
        (
            "long format key",
            text(
                "{% set k = 'a' * 10**6 %}{% set d = {k: 1} %}{% set f = '%(' ~ k ~ ')s' %}{{ (f * 9) % d }}{% for i in range(9999) %}{% set x = f % d %}{% endfor %}",
            ),
            "more work",
        ),
        (
            "splatted names",
            text(
                "{% macro f() %}{{ kwargs|length }}{% endmacro %}{% set d = dict(range(99998)|map('string')|batch(2)) %}{% for i in range(99999) %}{{ f(**d) }}{% endfor %}",
            ),
            "more work",
        ),
        (
            "splatted names not taken",
            text(
                "{% set d = dict(range(99998)|map('string')|batch(2)) %}{% for i in range(99999) %}{{ 'a'.format(**d) }}{% endfor %}",
            ),
            "more work",
        ),
        (
            "map with many arguments",
            text("{% set l = range(99999) %}{{ l|map('default', *l)|list|length }}{{ 'a' * 10**9 }}"),
            "intermediate",
        ),
        (
            "map with many names",
            text(
                "{% set d = dict(range(99998)|map('string')|batch(2)) %}{{ range(99999)|map('default', **d)|list|length }}",
            ),
            "more work",
        ),
        (
            "attributes with many names",
            text(
                "{% set d = dict(range(99998)|map('string')|batch(2)) %}{{ range(99999)|map(attribute='a', **d)|list|length }}",
            ),
            "more work",
        ),
        (
            "long attribute",
            text("{{ range(99999)|map(attribute='0' * 10**6 ~ '1')|list|length }}"),
            "more work",
        ),
        (
            "long fields",
            text(
                "{% set s = 'a' * 10**6 %}{% for i in range(999) %}{% set n = namespace(**{s ~ i: 1}) %}{% endfor %}",
            ),
            "intermediate",
        ),
        (
            "keep what changed",
            text(
                "{% set n = namespace(l=[]) %}{% set s = 'a' * 10**6 %}{% for i in range(999) %}{% for j in [1] %}{% if loop.changed(s ~ i) %}{% endif %}{% set n.l = n.l + [loop] %}{% endfor %}{% endfor %}",
            ),
            "intermediate",
        ),
        (
            "keep loops",
            text(
                "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% for j in range(9999) %}{% set n.l = n.l + [loop] %}{% break %}{% endfor %}{% endfor %}",
            ),
            "intermediate",
        ),
        (
            "long repr",
            text(
                "{% set s = 'é\u{2028}\u{85}' * 10**6 %}{% for i in range(999) %}{% if [s]|string %}{% endif %}{% endfor %}",
            ),
            "",
        ),
        (
            "many reprs",
            text(
                "{% set l = ['é\u{2028}\u{85}' * 10**5] %}{% for i in range(9999) %}{% if l|string %}{% endif %}{% endfor %}",
            ),
            "more work",
        ),
        (
            "many plain reprs",
            text(
                "{% set l = ['a' * 10**6] %}{% for i in range(9999) %}{% if l|string %}{% endif %}{% endfor %}",
            ),
            "more work",
        ),
        (
            "many jsons",
            text(
                "{% set s = 'é🙂\x01' * 10**5 %}{% for i in range(9999) %}{% if s|tojson(ensure_ascii=true) %}{% endif %}{% endfor %}",
            ),
            "more work",
        ),
        (
            "many cases",
            text(
                "{% set s = 'éaΣß' * 10**5 %}{% for i in range(9999) %}{% if s|upper %}{% endif %}{% if s.title() %}{% endif %}{% endfor %}",
            ),
            "more work",
        ),
        (
            "sorted without an order",
            text("{% set n = ['nan'|float] * 3 %}{{ (range(40)|list + n + range(40)|list + n)|sort }}"),
            "NaN has no place",
        ),
        (
            "sorted with a fault",
            text("{{ (range(50)|list + ['a'] + range(50)|list)|sort }}"),
            "cannot be ordered",
        ),
        (
            "sorted equals",
            text("{{ (['a' * 10**6] * 20000)|sort(case_sensitive=true)|length }}"),
            "more work",
        ),
        ("map of maps", text("{{ 'a'|map(") + &many("'map',", 100_000) + "'x')|list }}", ""),
        ("open string", text("{{ 'aaa"), "not closed"),
        ("open tag", text("{% if "), "not closed"),
        ("open comment", text("{# "), "not closed"),
        ("stray end", text("{% endif %}"), "unknown or out of place"),
    ]
}

/// Pieces of templates, among them the places where the reader looks ahead.
const PIECES: &[&str] = &[
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "{{-",
    "-}}",
    "{%-",
    "-%}",
    "{%+",
    "+%}",
    "\n",
    " ",
    "é",
    "\u{a0}",
    "🙂",
    "'",
    "\"",
    "\\",
    "\\x",
    "\\u12",
    "'a'",
    "'é\\n'",
    "s",
    "l",
    "d",
    "n",
    "zz",
    "loop",
    "0",
    "1",
    "-1",
    "2",
    "1.5",
    "1e",
    "1.",
    "0x",
    "0b1_",
    "9999999999999999999999999999999999999999",
    "+",
    "-",
    "*",
    "**",
    "/",
    "//",
    "%",
    "~",
    "==",
    "<",
    "in",
    "not",
    "is",
    "and",
    "or",
    "if",
    "else",
    "elif",
    "endif",
    "for",
    "endfor",
    "set",
    "endset",
    "macro",
    "endmacro",
    "call",
    "endcall",
    "raw",
    "endraw",
    "filter",
    "endfilter",
    "with",
    "endwith",
    "generation",
    "endgeneration",
    "break",
    "continue",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "|",
    ".",
    "=",
    ";",
    "x",
    "f",
    "f()",
    "range",
    "namespace",
    "dict",
    "raise_exception",
    "strftime_now",
    "[::-1]",
    "[1:]",
    "[-9:9:2]",
    ".split",
    ".strip",
    ".replace",
    ".format",
    ".items",
    ".get",
    ".center",
    ".partition",
    ".splitlines",
    "upper",
    "tojson",
    "join",
    "indent",
    "truncate",
    "map",
    "select",
    "selectattr",
    "batch",
    "slice",
    "sort",
    "groupby",
    "int",
    "round",
    "format",
    "replace",
    "title",
    "first",
    "last",
    "list",
    "dictsort",
    "unique",
    "length",
    "default",
    "defined",
    "string",
    "{{ s",
    "{{ l",
    "{{ u|",
    "{% if s %}",
    "{% endif %}",
    "{% for x in l %}",
    "{% endfor %}",
    "{% set x = ",
    "'%s' % ",
    "'{}'.format(",
    "'{:>3}'.format(u)",
    "u",
    "u[1:3]",
    "u.find('日')",
    "'%c%5.1f' % 1",
    "'%(' % d",
    "'{a' ",
    "'{0!r}'.format(1)",
    "u.split('日')",
];

fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(PIECES).prop_map(str::to_owned);
    let soup = prop::collection::vec(piece.clone(), 0..30).prop_map(|pieces| pieces.concat());
    let expr =
        prop::collection::vec(piece, 1..12).prop_map(|pieces| format!("{{{{ {} }}}}", pieces.join(" ")));
    prop_oneof![soup, expr, "\\PC{0,20}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_template_panics(source in pieces()) {
        let variables = r#"{"s": " a b ", "u": "naïve 日本🙂", "l": [3, 1, "x"], "d": {"a": 1, "é": [null]}, "n": null}"#;
        let Ok(Json::Dict(kwargs)) = Json::parse(variables) else { panic!("an object") };
        let inputs = Inputs { kwargs, ..Inputs::default() };
        // An error is as good as a text.
        if let Ok(template) = ChatTemplate::new(&source) {
            let _ = template.render(&inputs);
        }
    }
}

#[test]
fn long_conversations_stay_within_the_bounds() {
    let Some(assets) = super::templates::assets() else { return };
    let mut messages = Vec::new();
    for turn in 0..1000 {
        for role in ["user", "assistant"] {
            let fields = [("role", role.to_owned()), ("content", format!("{turn} <think>").repeat(60))];
            let fields = fields.map(|(name, value)| (name.to_owned(), Json::Str(value)));
            messages.push(Json::Dict(fields.to_vec()));
        }
    }
    let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let inputs = Inputs {
        messages: Json::List(messages),
        special: special.map(|(name, token)| (name.to_owned(), token.to_owned())).to_vec(),
        ..Inputs::default()
    };
    for name in super::templates::names(&assets) {
        let template = ChatTemplate::new(&std::fs::read_to_string(assets.join(&name)).unwrap()).unwrap();
        let start = Instant::now();
        // One of the templates cannot do without tools, in Python neither.
        match template.render(&inputs) {
            Ok(rendered) => {
                let (time, len) = (start.elapsed().as_millis(), rendered.text.len());
                writeln!(std::io::stderr(), "{name}: {time} ms for {len} bytes").expect("stderr is open");
            }
            Err(error) => assert!(error.to_string().contains("object is not iterable"), "{name}: {error}"),
        }
    }
}

/// Processor time of this process, which other programs do not lengthen as they do the clock's; in hundredths of a
/// second, the unit of Linux's `/proc`.
fn cpu_time() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

/// The most memory that this process has held, in kB, if the system tells.
fn peak_kb() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[test]
fn hostile_templates_end_as_errors() {
    if let Ok(wanted) = std::env::var(CHILD) {
        let (_, source, said) =
            hostile().into_iter().find(|(name, ..)| *name == wanted).expect("a known template");
        let before = peak_kb().unwrap_or_default();
        let start = Instant::now();
        let inputs = Inputs { messages: Json::List(Vec::new()), ..Inputs::default() };
        let ended = ChatTemplate::new(&source).and_then(|template| template.render(&inputs));
        let time = cpu_time().unwrap_or_else(|| start.elapsed());
        let peak = peak_kb().unwrap_or_default();
        let message = match &ended {
            Ok(rendered) => format!("{} bytes", rendered.text.len()),
            Err(error) => error.to_string(),
        };
        writeln!(
            std::io::stderr(),
            "{wanted}: {} ms, {} kB (before: {before}): {}",
            time.as_millis(),
            peak,
            message.chars().take(90).collect::<String>()
        )
        .expect("stderr is open");
        assert!(said.is_empty() || ended.is_err(), "no error");
        assert!(message.contains(said), "{message}");
        assert!(time < MAX_TIME, "{time:?}");
        assert!(peak < MAX_PEAK_KB, "{peak} kB");
        return;
    }
    let mut failed = Vec::new();
    for (name, ..) in hostile() {
        let this = "chat::bounds::hostile_templates_end_as_errors";
        let child = Command::new(std::env::current_exe().unwrap())
            .args([this, "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, name)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stderr);
        for line in said.lines().filter(|line| line.contains(" ms, ")) {
            writeln!(std::io::stderr(), "{line}").expect("stderr is open");
        }
        if !child.status.success() {
            let said: Vec<&str> = said.lines().filter(|line| !line.contains(" at ")).take(4).collect();
            failed.push(format!("{name}: {}: {}", child.status, said.join(" / ")));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
