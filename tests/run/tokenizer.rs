//! `flint tokenizer`: vocabularies trained, texts encoded, decoded, compared and shown.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{command, fails, json, keys, stderr, succeeds, write};

/// Some text with repetitions, many scripts and a special token spelled out.
fn text() -> String {
    let line = |i: usize| format!("The {} cats, größer 日本 — {}!\n\tfn main() {{}}\n", i % 17, i * i % 101);
    (0..300).map(line).collect::<String>() + "<|end|> \u{1F600}\n"
}

/// A folder with a text and a vocabulary `t.json` trained on it.
fn workplace() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    write(dir.path(), "text.txt", &text());
    succeeds(dir.path(), &["tokenizer", "train", "text.txt", "--vocab-size", "400", "-o", "t.json", "-q"]);
    dir
}

/// Runs with this input; it must succeed.
fn pipe(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut child = command(dir, args).stdin(Stdio::piped()).spawn().expect("flint starts");
    child.stdin.take().expect("a pipe").write_all(input).expect("written");
    let output = child.wait_with_output().expect("waited");
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    output
}

/// Runs with this input; it must end with exit code 2 and an error that has all these words.
fn pipe_fails(dir: &Path, args: &[&str], input: &[u8], words: &[&str]) {
    let mut child = command(dir, args).stdin(Stdio::piped()).spawn().expect("flint starts");
    // A program that refuses its arguments reads nothing.
    let _ = child.stdin.take().expect("a pipe").write_all(input);
    let output = child.wait_with_output().expect("waited");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: no `{word}` in: {said}");
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Names in a folder, in order.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("listed");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("listed").file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// Gives `t.json` a token before and after every text, and a length to cut at, as files of others have them.
fn with_template(dir: &Path) {
    let mut file: Value = serde_json::from_slice(&fs::read(dir.join("t.json")).expect("read")).expect("JSON");
    let id = |token: &str| {
        let added = file["added_tokens"].as_array().expect("a list");
        added.iter().find(|added| added["content"] == token).expect("a special token")["id"].clone()
    };
    let special = |token: &str| json!({"id": token, "ids": [id(token)], "tokens": [token]});
    let (bos, eos) = ("<|user|>", "<|end|>");
    let piece = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [piece(bos), sequence("A"), piece(eos)],
        "pair": [sequence("A"), sequence("B")],
        "special_tokens": {bos: special(bos), eos: special(eos)},
    });
    file["post_processor"] = template;
    file["truncation"] =
        json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    write(dir, "around.json", &file.to_string());
}

#[test]
fn every_kind_is_trained_and_gives_the_text_back() {
    let dir = workplace();
    let dir = dir.path();
    let recipes: [&[&str]; 7] = [
        &["--vocab-size", "300", "--split", "gpt2"],
        &["--vocab-size", "300", "--split", "o200k", "--min-frequency", "3"],
        &["--vocab-size", "300", "--special", "<|a|>", "--special", "<|b|>"],
        &["--vocab-size", "300", "--char"],
        &["--vocab-size", "300", "--kind", "char"],
        &["--vocab-size", "340", "--kind", "sentencepiece", "--special", "<|a|>"],
        &["--vocab-size", "340", "--kind", "unigram"],
    ];
    for recipe in recipes {
        let args = [&["tokenizer", "train", "text.txt", "-o", "out.json"][..], recipe].concat();
        let said = stderr(&succeeds(dir, &args));
        let read = format!("from {} bytes", text().len());
        assert!(said.contains(&read) && said.contains("MB/s") && said.contains("out.json"), "{said}");
        let ids = succeeds(dir, &["tokenizer", "encode", "out.json", "text.txt"]).stdout;
        let back = pipe(dir, &["tokenizer", "decode", "out.json"], &ids);
        assert_eq!(stdout(&back), text(), "{recipe:?}");
    }
    let special = |file: &str| {
        let described = json(&succeeds(dir, &["tokenizer", "inspect", file, "--json"]));
        let tokens = described["special_tokens"].as_array().expect("a list").clone();
        tokens.iter().map(|token| token["token"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(special("t.json"), ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]);
    assert_eq!(special("out.json"), ["<unk>", "<s>", "</s>"]);
}

#[test]
fn a_corpus_gives_one_vocabulary_however_it_is_read() {
    let dir = workplace();
    let dir = dir.path();
    let trained = |name: &str, more: &[&str]| {
        let common = ["tokenizer", "train", "--vocab-size", "400", "-q", "-o", name];
        succeeds(dir, &[&common[..], more].concat());
        fs::read(dir.join(name)).expect("read")
    };
    let expected = fs::read(dir.join("t.json")).expect("read");
    for threads in ["1", "2", "5"] {
        assert!(trained("threads.json", &["text.txt", "-t", threads]) == expected, "{threads} threads");
    }
    // Counts are looked at after each 4 MB; those of 200,000 words outgrow a quarter of the limit.
    let letter = |n: usize, place: u32| char::from(b'a' + (n / 26usize.pow(place) % 26) as u8);
    let word = |n: usize| [' ', letter(n, 3), letter(n, 2), letter(n, 1), letter(n, 0)];
    write(dir, "words.txt", &(0..200_000).flat_map(word).collect::<String>().repeat(6));
    let limited = trained("limit.json", &["words.txt", "--memory-limit", "28M"]);
    assert!(limited == trained("free.json", &["words.txt"]), "memory limit");
    // Lines as files, as lines and as JSON.
    fs::create_dir_all(dir.join("lines/more")).expect("made");
    let mut jsonl = String::new();
    for (idx, line) in text().lines().enumerate() {
        write(dir, &format!("lines/more/{idx:04}.txt"), line);
        jsonl += &format!("{}\n", json!({"other": idx, "body": line}));
    }
    write(dir, "lines.jsonl", &jsonl);
    let by_line = trained("a.json", &["text.txt", "--documents", "line"]);
    assert!(trained("b.json", &["lines"]) == by_line, "a folder");
    assert!(trained("c.json", &["lines.jsonl", "--field", "body"]) == by_line, "JSON lines");
    let piped = ["tokenizer", "train", "-", "--vocab-size", "400", "-q", "-o", "d.json"];
    pipe(dir, &piped, text().as_bytes());
    assert!(fs::read(dir.join("d.json")).expect("read") == expected, "stdin");
    // A text longer than what is in memory at a time, whole and cut into its words.
    let long = text().repeat(9_000_000 / text().len() + 1);
    write(dir, "long.txt", &long);
    assert!(trained("e.json", &["long.txt"]) == trained("f.json", &["long.txt", "-t", "1"]), "a long file");
    for kind in ["sentencepiece", "unigram"] {
        let more = ["--kind", kind, "--special", "<|a|>", "--documents", "file"];
        let a = trained("g.json", &[&["long.txt"][..], &more].concat());
        let input = [&["tokenizer", "train", "-", "--vocab-size", "400", "-q", "-o", "h.json"][..], &more];
        pipe(dir, &input.concat(), long.as_bytes());
        assert!(a == fs::read(dir.join("h.json")).expect("read"), "{kind} in parts");
        // A pipe is not held until its end: what is wrong in it is found too late to leave it out.
        let wrong = [&text().into_bytes()[..], b"\xff"].concat();
        let place = format!("byte {}", wrong.len() - 1);
        pipe_fails(dir, &input.concat(), &wrong, &["stdin", &place, "not UTF-8"]);
    }
}

#[test]
fn pieces_of_sentencepiece_end_with_the_line_unless_documents_are_files() {
    let dir = workplace();
    let dir = dir.path();
    let has_line_end = |kind: &str, more: &[&str]| {
        let args = ["tokenizer", "train", "text.txt", "--kind", kind, "--vocab-size", "400", "-o", "o.json"];
        succeeds(dir, &[&args[..], more].concat());
        let file: Value = serde_json::from_slice(&fs::read(dir.join("o.json")).expect("read")).expect("JSON");
        let text = "a\nb\r\n\n c ▁ <0x0A>\n";
        let ids = pipe(dir, &["tokenizer", "encode", "o.json"], text.as_bytes()).stdout;
        assert_eq!(stdout(&pipe(dir, &["tokenizer", "decode", "o.json"], &ids)), text.replace('▁', " "));
        file["model"]["vocab"].to_string().contains("\\n")
    };
    for kind in ["sentencepiece", "unigram"] {
        assert!(!has_line_end(kind, &[]), "{kind}");
        assert!(has_line_end(kind, &["--documents", "file"]), "{kind}");
    }
}

#[test]
fn ranks_of_our_own_are_read_with_their_split() {
    let dir = workplace();
    let dir = dir.path();
    let train = ["tokenizer", "train", "text.txt", "--vocab-size", "400", "-q"];
    for (file, split) in [("a.tiktoken", "gpt4"), ("tokenizer.model", "gpt2")] {
        succeeds(dir, &[&train[..], &["-o", "ranks.tiktoken", "--split", split]].concat());
        fs::rename(dir.join("ranks.tiktoken"), dir.join(file)).expect("renamed");
        succeeds(dir, &[&train[..], &["-o", "same.json", "--split", split]].concat());
        let split = ["--split", split];
        let ids = succeeds(dir, &[&["tokenizer", "encode", file, "text.txt"][..], &split].concat()).stdout;
        let expected = succeeds(dir, &["tokenizer", "encode", "same.json", "text.txt"]).stdout;
        assert_eq!(ids, expected, "{file}");
        let decode = [&["tokenizer", "decode", file][..], &split].concat();
        assert_eq!(stdout(&pipe(dir, &decode, &ids)), text());
        let described =
            json(&succeeds(dir, &[&["tokenizer", "inspect", file, "--json"][..], &split].concat()));
        assert_eq!(described["split"], split[1]);
        let eval = ["tokenizer", "eval", "t.json", file, "--text", "text.txt", "--json"];
        assert_eq!(json(&succeeds(dir, &[&eval[..], &split].concat()))[1]["round_trip"], true);
        fails(dir, &["tokenizer", "encode", file, "text.txt"], &[file, "--split"]);
        fails(dir, &eval, &[file, "--split"]);
    }
    for verb in [&["encode", "t.json", "text.txt"][..], &["inspect", "t.json"]] {
        fails(dir, &[&["tokenizer"], verb, &["--split", "gpt4"]].concat(), &["--split", "t.json"]);
    }
    fails(dir, &["tokenizer", "inspect", "a.tiktoken", "--split", "gpt3"], &["gpt3", "o200k"]);
}

#[test]
fn without_text_the_file_stays_as_it_was() {
    let dir = workplace();
    let dir = dir.path();
    let before = fs::read(dir.join("t.json")).expect("read");
    fs::write(dir.join("image"), b"text\xff\xfe").expect("written");
    write(dir, "blank.txt", " \n\n");
    write(dir, "empty.jsonl", "{\"text\": \"\"}\n{\"text\": \" \"}\n");
    for kind in ["bpe", "char", "sentencepiece", "unigram"] {
        let train = ["tokenizer", "train", "--kind", kind, "-q", "-o", "t.json"];
        for input in [&b""[..], b" \n\t\n"] {
            pipe_fails(dir, &[&train[..], &["-"]].concat(), input, &["no text"]);
            pipe_fails(dir, &[&train[..], &["-", "--documents", "file"]].concat(), input, &["no text"]);
        }
        for file in ["image", "blank.txt", "empty.jsonl"] {
            fails(dir, &[&train[..], &[file]].concat(), &[file, "no text"]);
        }
    }
    assert!(fs::read(dir.join("t.json")).expect("read") == before);
}

#[test]
fn what_is_left_out_of_a_corpus_is_said() {
    let dir = workplace();
    let dir = dir.path();
    fs::create_dir(dir.join("mixed")).expect("made");
    write(dir, "mixed/a.txt", &text());
    write(dir, "mixed/blank.txt", " \n");
    fs::write(dir.join("mixed/image"), b"text\xff\xfe").expect("written");
    let mut large = text().repeat(9_000_000 / text().len() + 1).into_bytes();
    large.push(0xff);
    fs::write(dir.join("mixed/large"), &large).expect("written");
    for kind in ["bpe", "sentencepiece"] {
        let args = ["tokenizer", "train", "mixed", "--kind", kind, "--vocab-size", "400", "-o", "o.json"];
        let said = stderr(&succeeds(dir, &args));
        assert!(said.contains("2 documents are not UTF-8"), "{said}");
        assert!(said.contains(&Path::new("mixed").join("image, byte 4").display().to_string()), "{said}");
        assert!(said.contains("1 documents are empty"), "{said}");
    }
    assert!(names(dir).contains(&"o.json".to_owned()));
    let said = stderr(&succeeds(dir, &["tokenizer", "encode", "t.json", "mixed", "-o", "shards"]));
    assert!(said.contains("2 documents are not UTF-8") && said.contains("1 documents,"), "{said}");
}

#[test]
fn impossible_vocabularies_are_refused_before_any_work() {
    let dir = workplace();
    let dir = dir.path();
    write(dir, "a.jsonl", "{\"text\": \"a\"}\n{\"body\": \"b\"}\n");
    write(dir, "b.jsonl", "{\"text\": \"a\"}\n{\"text\": 3\n");
    write(dir, "c.jsonl", "{\"text\": 3}\n");
    let cases: [(&[&str], &[&str]); 21] = [
        (&["text.txt", "--vocab-size", "100"], &["100", "261"]),
        // There is nothing to count, so these are refused before.
        (&["c.jsonl", "--vocab-size", "259", "--kind", "sentencepiece"], &["259", "260"]),
        (&["c.jsonl", "--vocab-size", "277", "--kind", "unigram"], &["277", "278"]),
        (&["text.txt", "--field", "body"], &["--field", "JSON lines"]),
        (&["text.txt", "--memory-limit", "1K"], &["1024", "needs"]),
        (&["text.txt", "--split", "gpt3"], &["gpt3", "gpt2", "o200k", "tekken"]),
        (&["text.txt", "--kind", "word"], &["word", "unigram"]),
        (&["text.txt", "--kind", "unigram", "--split", "gpt2"], &["--split", "unigram"]),
        (&["text.txt", "--kind", "unigram", "--min-frequency", "2"], &["--min-frequency", "unigram"]),
        (&["text.txt", "--char", "--memory-limit", "1G"], &["--memory-limit", "char"]),
        (&["text.txt", "--memory-limit", "much"], &["much", "512M"]),
        (&["text.txt", "--min-frequency", "0"], &["0", "--min-frequency"]),
        (&["text.txt", "--special", "a"], &["`a`", "fewer than two"]),
        (&["missing.txt"], &["missing.txt"]),
        (&["a.jsonl"], &["a.jsonl, line 2", "`text`", "`body`", "--field"]),
        (&["b.jsonl"], &["b.jsonl, line 2"]),
        (&["c.jsonl"], &["c.jsonl, line 1", "`text` is no string"]),
        (&["b.jsonl", "--kind", "unigram"], &["b.jsonl, line 2"]),
        (&["text.txt", "-o", "no/t.json"], &["no", "folder"]),
        (&["text.txt", "-o", "."], &["folder", "tokenizer.json"]),
        (&["text.txt", "--char", "-o", "a.tiktoken"], &["a.tiktoken", "bpe"]),
    ];
    let before = names(dir);
    for (args, words) in cases {
        let out: &[&str] = if args.contains(&"-o") { &[] } else { &["-o", "never.json"] };
        fails(dir, &[&["tokenizer", "train"], args, out].concat(), words);
    }
    assert_eq!(names(dir), before, "nothing was written");
}

#[test]
fn ids_come_as_the_options_say() {
    let dir = workplace();
    let dir = dir.path();
    with_template(dir);
    let encode = |args: &[&str], input: &str| {
        let args = [&["tokenizer", "encode", "around.json"], args].concat();
        stdout(&pipe(dir, &args, input.as_bytes()))
    };
    let ids = |args: &[&str], input: &str| -> Vec<u32> {
        serde_json::from_str(&encode(&[&["--json"], args].concat(), input)).expect("ids")
    };
    let (start, end) = (1, 4);
    let plain = ids(&["--no-special"], "The cats<|end|>");
    assert!(!plain.contains(&end), "{plain:?}");
    assert_eq!(ids(&[], "The cats<|end|>"), [&[start][..], &plain, &[end]].concat());
    let parsed = ids(&["--no-special", "--parse-special"], "The cats<|end|>");
    assert_eq!(parsed.last(), Some(&end));
    assert_eq!(encode(&["--jsonl"], "\"\"\n\"\"\n"), "[1,4]\n[1,4]\n");
    assert_eq!(encode(&["--no-special"], ""), "\n");
    // What is not UTF-8 has ids too, with the same around it.
    let args = ["tokenizer", "encode", "around.json", "--json"];
    let bytes: Vec<u32> = serde_json::from_slice(&pipe(dir, &args, b"a\xffb").stdout).expect("ids");
    assert_eq!((bytes.len(), bytes[0], bytes[4]), (5, start, end));
    let back = |args: &[&str]| {
        let args = [&["tokenizer", "decode", "around.json"], args].concat();
        pipe(dir, &args, format!("{bytes:?}").as_bytes()).stdout
    };
    assert_eq!(back(&[]), b"<|user|>a\xffb<|end|>");
    assert_eq!(back(&["--skip-special"]), b"a\xffb");

    let offsets: Value = serde_json::from_str(&encode(&["--json", "--offsets"], "größer")).expect("JSON");
    let offsets = offsets.as_array().expect("a list");
    assert_eq!(offsets[0], json!({"id": 1, "start": 0, "end": 0, "token": "<|user|>"}));
    assert_eq!(offsets[1]["start"], 0);
    assert_eq!(offsets.last().expect("a token")["end"], "größer".len());

    let said = stderr(&succeeds(dir, &["tokenizer", "encode", "around.json", "text.txt"]));
    assert!(said.contains("cut to 8 tokens"), "{said}");
    let quiet = stderr(&succeeds(dir, &["tokenizer", "encode", "around.json", "text.txt", "-q"]));
    assert_eq!(quiet, "");
    fails(dir, &["tokenizer", "encode", "t.json", "a", "b"], &["-o DIR"]);
    fails(dir, &["tokenizer", "encode", "t.json", "text.txt", "--field", "a"], &["--field", "-o DIR"]);
    fails(dir, &["tokenizer", "encode", "t.json", "missing.txt"], &["missing.txt"]);
    fails(dir, &["tokenizer", "encode", "missing.json", "text.txt"], &["missing.json"]);
    fails(dir, &["tokenizer", "encode", "text.txt", "text.txt"], &["text.txt", "line 1"]);
    fails(dir, &["tokenizer", "encode", "t.json", "--offsets"], &["--json"]);
}

#[test]
fn a_line_that_is_wrong_is_named() {
    let dir = workplace();
    let dir = dir.path();
    let run = |verb: &str, input: &[u8], words: &[&str]| {
        pipe_fails(dir, &["tokenizer", verb, "t.json", "--jsonl"], input, words);
    };
    run("encode", b"\"a\"\nb\n", &["line 2"]);
    run("encode", b"\"\xff\"\n", &["line 1", "UTF-8"]);
    run("decode", b"[5]\n[5, 400]\n", &["line 2", "400"]);
    run("decode", b"[-1]\n", &["line 1"]);
}

#[test]
fn corpora_become_shards() {
    let dir = workplace();
    let dir = dir.path();
    let documents: Vec<String> = (0..50).map(|i| format!("Document {i}: größer cats\n")).collect();
    let lines = |i: usize| format!("{}\n", json!({"text": documents[i]}));
    write(dir, "a.jsonl", &(0..40).map(lines).collect::<String>());
    fs::create_dir(dir.join("b")).expect("made");
    (40..50).for_each(|i| write(dir, &format!("b/{i}.txt"), &documents[i]));
    let mut expected: Vec<u32> = Vec::new();
    for document in &documents {
        let ids = pipe(dir, &["tokenizer", "encode", "t.json", "--json"], document.as_bytes()).stdout;
        expected.extend(serde_json::from_slice::<Vec<u32>>(&ids).expect("ids"));
        expected.push(0);
    }
    let args = ["tokenizer", "encode", "t.json", "a.jsonl", "b", "-o", "out/shards"];
    for threads in ["1", "3"] {
        let outcome = json(&succeeds(dir, &[&args[..], &["--json", "-q", "-t", threads]].concat()));
        assert_eq!(outcome["documents"], 50);
        assert_eq!(outcome["tokens"], expected.len());
        assert_eq!(outcome["bytes"], documents.iter().map(String::len).sum::<usize>());
        assert_eq!(names(&dir.join("out/shards")), ["tokens-00000.tokens", "tokens.json"]);
        let tokenizer = ::tokenizer::Tokenizer::load(dir.join("t.json")).expect("a tokenizer");
        let paths = [dir.join("out/shards/tokens-00000.tokens")];
        let tokens = train::data::shards::Tokens::open(&paths, tokenizer.hash()).expect("shards");
        assert_eq!(tokens.range(0, tokens.len()), expected);
        fs::remove_dir_all(dir.join("out/shards")).expect("removed");
    }
    fs::create_dir(dir.join("empty")).expect("made");
    succeeds(dir, &["tokenizer", "encode", "t.json", "a.jsonl", "-o", "empty", "-q"]);
    let cases: [(&[&str], &[&str]); 7] = [
        (&["a.jsonl", "-o", "empty"], &["empty", "already"]),
        (&["a.jsonl", "-o", "text.txt"], &["text.txt", "already"]),
        (&["a.jsonl", "--field", "body", "-o", "new"], &["a.jsonl, line 1", "`text`"]),
        (&["a.jsonl", "--end-token", "<|x|>", "-o", "new"], &["<|x|>"]),
        (&["missing", "-o", "new"], &["missing"]),
        (&["b", "--field", "body", "-o", "new"], &["--field", "JSON lines"]),
        (&["-o", "new"], &["files"]),
    ];
    let before = names(dir);
    for (more, words) in cases {
        fails(dir, &[&["tokenizer", "encode", "t.json"], more].concat(), words);
    }
    assert_eq!(names(dir), before, "nothing is left behind");
    let none = ["tokenizer", "encode", "t.json", "b", "--end-token", "none", "-o", "none", "--json", "-q"];
    let n_last: usize = expected
        .iter()
        .rev()
        .scan(0, |n, &id| {
            *n += usize::from(id == 0);
            (*n <= 10).then_some(usize::from(id != 0))
        })
        .sum();
    assert_eq!(json(&succeeds(dir, &none))["tokens"], n_last);
}

/// A file and a pipe that are encoded in parts, on several threads, become the tokens of the whole.
#[test]
fn large_documents_become_shards_in_parts() {
    let dir = workplace();
    let dir = dir.path();
    with_template(dir);
    let large = text().repeat(19_000_000 / text().len());
    write(dir, "large.txt", &large);
    write(dir, "small.txt", "A small text.");
    for file in ["t.json", "around.json"] {
        let tokenizer = ::tokenizer::Tokenizer::load(dir.join(file)).expect("a tokenizer");
        let options = ::tokenizer::EncodeOptions { add_special: true, parse_special: false };
        assert!(tokenizer.safe_cut(&large, 0, options).is_some(), "{file}");
        let mut expected = Vec::new();
        for text in ["A small text.", &large] {
            let ids = tokenizer.encode_with(text, options);
            expected.extend_from_slice(&ids);
            expected.extend(tokenizer.eos_id().filter(|id| ids.last() != Some(id)));
        }
        for from in ["large.txt", "-"] {
            let args = ["tokenizer", "encode", file, "small.txt", from, "-o", "shards", "--json", "-q"];
            let outcome = json(&pipe(dir, &args, if from == "-" { large.as_bytes() } else { b"" }));
            assert_eq!((&outcome["documents"], &outcome["bytes"]), (&json!(2), &json!(large.len() + 13)));
            let paths = [dir.join("shards/tokens-00000.tokens")];
            let tokens = train::data::shards::Tokens::open(&paths, tokenizer.hash()).expect("shards");
            assert!(tokens.range(0, tokens.len()) == expected, "{file}, {from}");
            fs::remove_dir_all(dir.join("shards")).expect("removed");
        }
    }
    // What a pipe says too late cannot be left out any more.
    let broken = [large.as_bytes(), b"\xff"].concat();
    let place = format!("stdin: byte {} is not UTF-8", large.len());
    pipe_fails(dir, &["tokenizer", "encode", "t.json", "-", "-o", "shards"], &broken, &[&place]);
    assert!(!names(dir).iter().any(|name| name.contains("shards") || name.starts_with(".tokens")));
}

#[test]
fn tokenizers_are_compared() {
    let dir = workplace();
    let dir = dir.path();
    succeeds(dir, &["tokenizer", "train", "text.txt", "--char", "--vocab-size", "300", "-o", "c.json", "-q"]);
    write(dir, "other.txt", "Some other words.");
    let args = ["tokenizer", "eval", "t.json", "c.json", "--text", "text.txt", "other.txt"];
    let table = stdout(&succeeds(dir, &args));
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 5, "{table}");
    assert!(rows[0].starts_with("tokenizer  text") && rows[0].ends_with("round trip"), "{table}");
    assert!(rows[1..].iter().all(|row| row.ends_with("yes")), "{table}");
    let rows = json(&succeeds(dir, &[&args[..], &["--json"]].concat()));
    let chars = &rows[3];
    assert_eq!((chars["tokens"].as_u64(), chars["words"].as_u64()), (Some(17), Some(3)));
    assert_eq!((chars["bytes_per_token"].as_f64(), chars["used_tokens"].as_u64()), (Some(1.0), Some(12)));
    assert_eq!(
        chars["vocab_size"].as_u64(),
        Some(256 + 6),
        "no special tokens, six characters that are not ASCII"
    );
    assert_eq!(chars["unused_tokens"].as_u64(), Some(262 - 12));
    let known = [
        "bytes",
        "bytes_per_token",
        "differs_at",
        "mb_per_s",
        "round_trip",
        "text",
        "tokenizer",
        "tokens",
        "tokens_per_word",
        "unused_tokens",
        "used_tokens",
        "vocab_size",
        "words",
    ];
    assert_eq!(keys(chars), known);
    fails(dir, &["tokenizer", "eval", "t.json"], &["--text"]);
}

#[test]
fn texts_and_tokenizers_are_shown() {
    let dir = workplace();
    let dir = dir.path();
    with_template(dir);
    let inspect =
        |args: &[&str]| stdout(&succeeds(dir, &[&["tokenizer", "inspect", "around.json"], args].concat()));
    let described = inspect(&[]);
    for words in ["kind           bpe", "ids            344", "split          gpt4", "<|user|> (1)"] {
        assert!(described.contains(words), "no `{words}` in: {described}");
    }
    assert!(described.contains("8 tokens, not applied"), "{described}");
    let shown = inspect(&["The cats\nx", "--no-special"]);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 4, "{shown}");
    assert_eq!(lines[0].replace('|', ""), "The·cats↵");
    let colored = inspect(&["The", "--color", "always"]);
    assert!(colored.starts_with("\x1b[30;48;5;250m<|user|>\x1b[0m\x1b[30;48;5;157m"), "{colored:?}");
    let in_json: Value = serde_json::from_str(&inspect(&["--text", "text.txt", "--json"])).expect("JSON");
    assert_eq!(in_json["text"], "text.txt");
    let in_json: Value = serde_json::from_str(&inspect(&["text.txt", "--json"])).expect("JSON");
    assert_eq!(in_json["text"], text());
    assert_eq!(keys(&in_json["tokens"][0]), ["end", "id", "special", "start", "text", "token"]);
    // Nothing in a text reaches the terminal as a command.
    let hostile = stdout(&pipe(dir, &["tokenizer", "inspect", "t.json", "-"], b"\x1b[2J\xff\x07"));
    assert!(!hostile.contains('\x1b') && !hostile.contains('\x07'), "{hostile:?}");
    assert!(hostile.contains("<FF>"), "{hostile}");
}

#[cfg(unix)]
#[test]
fn a_signal_ends_training_and_leaves_nothing() {
    let dir = workplace();
    let dir = dir.path();
    let before = names(dir);
    let verbs: [&[&str]; 3] = [
        &["tokenizer", "train", "-", "--vocab-size", "400", "-o", "never.json"],
        &["tokenizer", "train", "-", "--documents", "line", "--kind", "unigram", "-o", "never.json"],
        &["tokenizer", "encode", "t.json", "-", "--documents", "line", "-o", "never"],
    ];
    for args in verbs {
        let mut child = command(dir, args).stdin(Stdio::piped()).spawn().expect("flint starts");
        let mut input = child.stdin.take().expect("a pipe");
        // A text without an end; the writer ends when its reader does.
        let writer = std::thread::spawn(move || {
            let part = text().into_bytes();
            let mut n_written = 0;
            while input.write_all(&part).is_ok() {
                n_written += part.len();
            }
            n_written
        });
        std::thread::sleep(std::time::Duration::from_millis(500));
        let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(sent.expect("kill starts").success());
        let output = child.wait_with_output().expect("waited");
        assert!(writer.join().expect("joined") > 0, "{args:?}: nothing was read");
        assert_eq!(output.status.code(), Some(130), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("nothing was written"), "{args:?}: {}", stderr(&output));
        assert_eq!(names(dir), before, "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_stalled_input_is_left_at_a_signal_and_two_leave_no_more_than_one() {
    let dir = workplace();
    let dir = dir.path();
    let before = names(dir);
    let args = ["tokenizer", "encode", "t.json", "-", "-o", "never"];
    for n_signals in [1, 2] {
        let mut child = command(dir, &args).stdin(Stdio::piped()).spawn().expect("flint starts");
        let input = child.stdin.take().expect("a pipe");
        let patience = std::time::Instant::now();
        while names(dir) == before {
            assert!(patience.elapsed().as_secs() < 60, "no folder was made");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        for _ in 0..n_signals {
            let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
            assert!(sent.expect("kill starts").success());
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let output = child.wait_with_output().expect("waited");
        drop(input);
        assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
        assert!(stderr(&output).contains("nothing was written"), "{}", stderr(&output));
        assert_eq!(names(dir), before, "{n_signals} signals");
    }
}

#[cfg(unix)]
#[test]
fn a_folder_that_cannot_be_written_is_refused_before_any_work() {
    use std::os::unix::fs::PermissionsExt;
    let dir = workplace();
    let dir = dir.path();
    fs::create_dir(dir.join("locked")).expect("made");
    fs::set_permissions(dir.join("locked"), fs::Permissions::from_mode(0o555)).expect("locked");
    if fs::write(dir.join("locked/probe"), "").is_ok() {
        // Root may write anywhere, but not into what is no real folder.
        fails(dir, &["tokenizer", "train", "missing.txt", "-o", "/proc/t.json"], &["/proc", "cannot write"]);
    } else {
        fails(
            dir,
            &["tokenizer", "train", "missing.txt", "-o", "locked/t.json"],
            &["locked", "cannot write"],
        );
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let dir = workplace();
    let dir = dir.path();
    write(dir, "long.txt", &text().repeat(50));
    let verbs: [&[&str]; 2] =
        [&["tokenizer", "encode", "t.json", "long.txt"], &["tokenizer", "inspect", "t.json", "long.txt"]];
    for args in verbs {
        let mut child = command(dir, args).spawn().expect("flint starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("waited");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{args:?}: {}", stderr(&output));
    }
}
