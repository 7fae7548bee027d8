//! `flint tokenizer inspect`: how a text is cut into tokens, or what a tokenizer consists of.
//!
//! Tokens stand in a row, their ids below them. Spaces and line ends are made visible, and so are characters that would
//! steer the terminal: text may come from anyone.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use ratatui::text::Line;
use serde_json::{Value, json};
use tokenizer::{EncodeOptions, Split, Tokenizer};

use super::Common;
use crate::args::{Color, TokenizerInspect};
use crate::output;

/// Backgrounds of neighbours, numbers of the 256-color palette: light, for black letters.
const BACKGROUNDS: [u8; 5] = [153, 157, 223, 219, 229];

/// Background of special tokens.
const SPECIAL: u8 = 250;

/// Special tokens that are listed before the list is cut short.
const MOST_LISTED: usize = 12;

pub fn run(args: &TokenizerInspect, common: Common) -> Result<()> {
    let tokenizer = super::load(&args.tokenizer, args.split)?;
    let Some(text) = text(args, common)? else {
        return describe(&tokenizer, args);
    };
    super::note_truncation(&tokenizer, common);
    let cells = cells(&tokenizer, &text, args.special.options());
    if args.json {
        return Ok(output::json(&in_json(&tokenizer, &text, &cells))?);
    }
    let colored = match args.color {
        Color::Auto => output::wants_color(),
        Color::Always => true,
        Color::Never => false,
    };
    for line in rows(&cells, output::width(), colored) {
        output::line(&line)?;
    }
    common.note(&format!("{} tokens, {} bytes", cells.len(), text.len()));
    Ok(())
}

/// The text to show: what was typed, or what a file or stdin has.
fn text(args: &TokenizerInspect, common: Common) -> Result<Option<Vec<u8>>> {
    Ok(match (&args.text, &args.input) {
        (Some(text), _) => Some(text.clone().into_bytes()),
        (None, None) => None,
        (None, Some(input)) if input == "-" => Some(super::read(None)?),
        (None, Some(input)) if Path::new(input).is_file() => {
            common.note(&format!("the text of the file {input} (--text takes the words themselves)"));
            Some(super::read(Some(Path::new(input)))?)
        }
        (None, Some(input)) => Some(input.clone().into_bytes()),
    })
}

/// A token as it is shown.
struct Cell {
    id: u32,
    bytes: Vec<u8>,
    /// Start and end in the text, if that is UTF-8.
    range: Option<(usize, usize)>,
    is_special: bool,
}

fn cells(tokenizer: &Tokenizer, text: &[u8], options: EncodeOptions) -> Vec<Cell> {
    let cell = |id: u32, range| Cell {
        id,
        bytes: tokenizer.token_bytes(id).unwrap_or_default().to_vec(),
        range,
        is_special: tokenizer.is_special(id),
    };
    match std::str::from_utf8(text) {
        Ok(text) => {
            let tokens = tokenizer.encode_offsets(text, options).into_iter();
            tokens.map(|(id, range)| cell(id, Some((range.start, range.end)))).collect()
        }
        Err(_) => {
            super::encode_bytes(tokenizer, text, options).into_iter().map(|id| cell(id, None)).collect()
        }
    }
}

fn in_json(tokenizer: &Tokenizer, text: &[u8], cells: &[Cell]) -> Value {
    let token = |cell: &Cell| {
        json!({
            "id": cell.id,
            "token": tokenizer.id_to_token(cell.id),
            "text": String::from_utf8_lossy(&cell.bytes),
            "start": cell.range.map(|(start, _)| start),
            "end": cell.range.map(|(_, end)| end),
            "special": cell.is_special,
        })
    };
    json!({
        "text": String::from_utf8_lossy(text),
        "bytes": text.len(),
        "tokens": cells.iter().map(token).collect::<Vec<_>>(),
    })
}

/// Lines of tokens, each with a line of their ids below it. A line ends with the terminal's or with the text's.
fn rows(cells: &[Cell], width: usize, colored: bool) -> Vec<String> {
    let mut rows = Vec::new();
    let (mut tokens, mut ids, mut used) = (String::new(), String::new(), 0);
    for (idx, cell) in cells.iter().enumerate() {
        let (shown, id) = (visible(&cell.bytes), cell.id.to_string());
        let n_shown = Line::raw(shown.as_str()).width();
        let n_columns = n_shown.max(id.len());
        let between = usize::from(!colored);
        if used > 0 && used + between + n_columns > width {
            rows.extend([std::mem::take(&mut tokens), std::mem::take(&mut ids)]);
            used = 0;
        }
        if used > 0 && !colored {
            (tokens, ids, used) = (tokens + "|", ids + "|", used + 1);
        }
        let background = if cell.is_special { SPECIAL } else { BACKGROUNDS[idx % BACKGROUNDS.len()] };
        for (line, text, n) in [(&mut tokens, shown.as_str(), n_shown), (&mut ids, id.as_str(), id.len())] {
            let padding = " ".repeat(n_columns - n);
            match colored {
                true => line.push_str(&format!("\x1b[30;48;5;{background}m{text}{padding}\x1b[0m")),
                false => line.push_str(&format!("{text}{padding}")),
            }
        }
        used += n_columns;
        if cell.bytes.contains(&b'\n') {
            rows.extend([std::mem::take(&mut tokens), std::mem::take(&mut ids)]);
            used = 0;
        }
    }
    if used > 0 {
        rows.extend([tokens, ids]);
    }
    if !colored {
        rows.iter_mut().for_each(|row| row.truncate(row.trim_end().len()));
    }
    rows
}

/// Bytes as characters that only stand there: `·` for a space, `↵` for a line feed, escapes for the rest.
fn visible(bytes: &[u8]) -> String {
    let mut shown = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                ' ' => shown.push('·'),
                '\n' => shown.push('↵'),
                '\t' => shown.push('→'),
                '\r' => shown.push('␍'),
                c if c.is_control() || is_invisible(c) => shown.extend(c.escape_unicode()),
                c => shown.push(c),
            }
        }
        chunk.invalid().iter().for_each(|byte| shown.push_str(&format!("<{byte:02X}>")));
    }
    shown
}

/// Characters that take no room or turn the direction of writing.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
        || c.is_whitespace()
}

fn describe(tokenizer: &Tokenizer, args: &TokenizerInspect) -> Result<()> {
    if args.json {
        return Ok(output::json(&description_in_json(tokenizer))?);
    }
    for (name, value) in description(tokenizer) {
        output::line(&format!("{name:<15}{value}"))?;
    }
    Ok(())
}

/// The kind of the model as the command line spells it.
fn kind(tokenizer: &Tokenizer) -> String {
    format!("{:?}", tokenizer.kind()).to_lowercase()
}

/// How many ids have a token.
fn n_tokens(tokenizer: &Tokenizer) -> usize {
    (0..tokenizer.vocab_size() as u32).filter(|&id| tokenizer.id_to_token(id).is_some()).count()
}

fn description_in_json(tokenizer: &Tokenizer) -> Value {
    let named = |id: u32| json!({"id": id, "token": tokenizer.id_to_token(id)});
    let all = |ids: &[u32]| ids.iter().map(|&id| named(id)).collect::<Vec<_>>();
    let (before, after) = tokenizer.around();
    json!({
        "kind": kind(tokenizer),
        "vocab_size": tokenizer.vocab_size(),
        "tokens": n_tokens(tokenizer),
        "special_tokens": tokenizer.special_tokens().map(|(_, id)| named(id)).collect::<Vec<_>>(),
        "split": tokenizer.split().map(Split::name),
        "parts": tokenizer.parts().into_iter().collect::<BTreeMap<_, _>>(),
        "before": all(before),
        "after": all(after),
        "bos": tokenizer.bos_id().map(named),
        "eos": tokenizer.eos_id().map(named),
        "truncation": tokenizer.truncation(),
        "has_chat_template": tokenizer.chat_template().is_some(),
        "hash": format!("{:016x}", tokenizer.hash()),
    })
}

fn description(tokenizer: &Tokenizer) -> Vec<(&'static str, String)> {
    let named = |ids: &[u32]| match ids {
        [] => "nothing".to_owned(),
        ids => ids.iter().map(|&id| name(tokenizer, id)).collect::<Vec<_>>().join(", "),
    };
    let special: Vec<u32> = tokenizer.special_tokens().map(|(_, id)| id).collect();
    let more = match special.len().saturating_sub(MOST_LISTED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let listed = named(&special[..special.len().min(MOST_LISTED)]);
    let (before, after) = tokenizer.around();
    let mut lines = vec![
        ("kind", kind(tokenizer)),
        ("ids", tokenizer.vocab_size().to_string()),
        ("tokens", n_tokens(tokenizer).to_string()),
        ("special", format!("{}: {listed}{more}", special.len())),
        ("split", tokenizer.split().map_or("none of the published ones", Split::name).to_owned()),
    ];
    lines.extend(tokenizer.parts());
    let cut = tokenizer.truncation().map_or("none".to_owned(), |n| format!("{n} tokens, not applied"));
    lines.extend([
        ("before a text", named(before)),
        ("after a text", named(after)),
        ("end of text", named(tokenizer.eos_id().as_slice())),
        ("chat template", if tokenizer.chat_template().is_some() { "yes" } else { "no" }.to_owned()),
        ("truncation", cut),
        ("hash", format!("{:016x}", tokenizer.hash())),
    ]);
    lines
}

fn name(tokenizer: &Tokenizer, id: u32) -> String {
    let token = tokenizer.id_to_token(id).unwrap_or_default();
    format!("{} ({id})", visible(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(id: u32, text: &[u8]) -> Cell {
        Cell { id, bytes: text.to_vec(), range: None, is_special: false }
    }

    #[test]
    fn nothing_in_a_text_steers_the_terminal() {
        assert_eq!(visible(b" a\n\t\r"), "·a↵→␍");
        assert_eq!(visible("\x1b[2J\u{202e}\u{a0}\u{9b}".as_bytes()), r"\u{1b}[2J\u{202e}\u{a0}\u{9b}");
        assert_eq!(visible(b"\xe2\x82"), "<E2><82>");
    }

    #[test]
    fn ids_stand_below_their_tokens() {
        let cells =
            [cell(5, b"the"), cell(1234, b" cat"), cell(7, "日本".as_bytes()), cell(9, b"\n"), cell(3, b"x")];
        assert_eq!(rows(&cells, 80, false), ["the|·cat|日本|↵", "5  |1234|7   |9", "x", "3"]);
        // Eight columns hold two of them.
        assert_eq!(rows(&cells[..3], 9, false), ["the|·cat", "5  |1234", "日本", "7"]);
        let colored = rows(&cells[..1], 80, true);
        assert_eq!(colored, ["\x1b[30;48;5;153mthe\x1b[0m", "\x1b[30;48;5;153m5  \x1b[0m"]);
    }
}
