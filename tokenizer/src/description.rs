//! What a tokenizer's file says about its parts, for people: names, never contents.
//!
//! Decides no ids. The parts are those of a `tokenizer.json`, whatever format the file has.

use serde_json::Value;

use crate::{Split, Tokenizer};

/// Description.
impl Tokenizer {
    /// The published pattern by which text is cut, if it is one that this crate knows.
    pub fn split(&self) -> Option<Split> {
        self.inner().def.pre_tokenizer.as_ref().and_then(split)
    }

    /// The parts around the model that are there, each with the names of its steps, as in a `tokenizer.json`.
    pub fn parts(&self) -> Vec<(&'static str, String)> {
        let def = &self.inner().def;
        let parts = [
            ("normalizer", &def.normalizer),
            ("pre_tokenizer", &def.pre_tokenizer),
            ("post_processor", &def.post_processor),
            ("decoder", &def.decoder),
        ];
        parts.into_iter().filter_map(|(name, json)| Some((name, steps(json.as_ref()?)))).collect()
    }

    /// To how many tokens the file wants texts cut. Encoding never cuts: this is for whoever makes batches.
    pub fn truncation(&self) -> Option<usize> {
        self.inner().def.truncation.as_ref().map(|truncation| truncation.max_length)
    }
}

/// The last step that cuts by a pattern of ours: DeepSeek's stands behind two simpler ones.
fn split(json: &Value) -> Option<Split> {
    if let Some(steps) = json.get("pretokenizers").and_then(Value::as_array) {
        return steps.iter().rev().find_map(split);
    }
    match json.get("type")?.as_str()? {
        "ByteLevel" if json.get("use_regex") != Some(&Value::Bool(false)) => Some(Split::Gpt2),
        "Split" => Split::from_regex(json.get("pattern")?.get("Regex")?.as_str()?),
        _ => None,
    }
}

/// The names of the steps of a part, in order.
fn steps(json: &Value) -> String {
    let lists = ["normalizers", "pretokenizers", "processors", "decoders"];
    match lists.iter().find_map(|list| json.get(list)?.as_array()) {
        Some(parts) => parts.iter().map(steps).collect::<Vec<_>>().join(", "),
        None => json.get("type").and_then(Value::as_str).unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use crate::train::Trainer;
    use crate::{Kind, Split};

    #[test]
    fn a_trained_tokenizer_is_described_by_its_parts() {
        for name in Split::names() {
            let split = Split::from_name(name).unwrap();
            let tokenizer = Trainer::new(Kind::Bpe, 300).with_split(split).train(["a text"]).unwrap();
            assert_eq!(tokenizer.split(), Some(split));
            let cut = if split == Split::Gpt2 { "ByteLevel" } else { "Split, ByteLevel" };
            let parts = [("pre_tokenizer", cut.to_owned()), ("decoder", "ByteLevel".to_owned())];
            assert_eq!(tokenizer.parts(), parts);
            assert_eq!(tokenizer.around(), (&[][..], &[][..]));
            assert_eq!(tokenizer.truncation(), None);
        }
        let chars = Trainer::new(Kind::Char, 300).train(["a text"]).unwrap();
        assert_eq!(
            (chars.split(), chars.parts()),
            (None, vec![("decoder", "ByteFallback, Fuse".to_owned())])
        );
    }
}
