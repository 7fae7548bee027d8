//! The four normalization forms of Unicode, as Hugging Face has them.
//!
//! Its tables are of an older Unicode version than ours, so characters that it does not know, [`Props::INERT`], are
//! borders that nothing crosses: each part between them is normalized by itself. Between ASCII characters nothing
//! happens in any form, so runs of ASCII are copied, and only the rest is looked at.

use unicode_normalization::char::{
    canonical_combining_class, compose, decompose_canonical, decompose_compatible,
};
use unicode_normalization::{IsNormalized, is_nfc_quick, is_nfd_quick, is_nfkc_quick, is_nfkd_quick};

use super::normalized::{Normalized, Rewrite};
use super::properties::Props;

/// A normalization form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Canonical composition.
    Nfc,
    /// Canonical decomposition.
    Nfd,
    /// Compatible decomposition, then composition.
    Nfkc,
    /// Compatible decomposition.
    Nfkd,
}

impl Form {
    /// Brings a text into this form.
    pub(super) fn apply(self, text: &mut Normalized<'_>) {
        if self.is_kept(text.text()) {
            return;
        }
        let mut changes = Vec::new();
        text.rewrite(|out| {
            while !out.rest().is_empty() {
                let rest = out.rest();
                let ascii = rest.bytes().take_while(u8::is_ascii).count();
                if ascii == rest.len() {
                    out.keep(ascii);
                    break;
                }
                // The last ASCII character before others may be composed with them.
                out.keep(ascii.saturating_sub(1));
                let rest = &rest[ascii.saturating_sub(1)..];
                let first = usize::from(ascii > 0);
                let len = rest[first..].bytes().position(|byte| byte.is_ascii());
                self.apply_to(&rest[..len.map_or(rest.len(), |at| first + at)], &mut changes, out);
            }
        });
    }

    /// Writes the form of `part`, which is the start of what is left to read and ends where nothing is composed.
    fn apply_to(self, part: &str, changes: &mut Vec<Change>, out: &mut Rewrite<'_>) {
        if self.is_kept(part) {
            return out.keep(part.len());
        }
        let is_inert = |c| Props::of(c).is(Props::INERT);
        for piece in part.split_inclusive(is_inert) {
            let inert = piece.chars().next_back().filter(|&c| is_inert(c)).map_or(0, char::len_utf8);
            self.write(&piece[..piece.len() - inert], changes, out);
            out.keep(inert);
        }
    }

    /// Each character carries how many characters it adds (1) or takes the place of beyond one (negative), and origins
    /// are handed out in order of the old text.
    fn write(self, text: &str, changes: &mut Vec<Change>, out: &mut Rewrite<'_>) {
        changes.clear();
        let mut is_ordered = true;
        let mut last_class = 0;
        for c in text.chars() {
            let mut change = 0;
            let emit = |part| {
                let class = class_of(part);
                is_ordered &= class == 0 || last_class <= class;
                last_class = class;
                changes.push((part, change));
                change = 1;
            };
            match self {
                Self::Nfc | Self::Nfd => decompose_canonical(c, emit),
                Self::Nfkc | Self::Nfkd => decompose_compatible(c, emit),
            }
        }
        if !is_ordered {
            for run in changes.chunk_by_mut(|_, next| class_of(next.0) != 0) {
                // A starter, of class 0, stands only first in a run, so it stays there.
                run.sort_by_key(|&(c, _)| class_of(c));
            }
        }
        if matches!(self, Self::Nfc | Self::Nfkc) {
            compose_all(changes);
        }
        let mut old = text.chars().map(char::len_utf8);
        for &(c, change) in changes.iter() {
            if change > 0 {
                out.insert(c);
            } else {
                out.replace(c, old.by_ref().take(change.unsigned_abs() + 1).sum());
            }
        }
        out.skip(old.sum());
    }

    /// Whether a quick look shows that the form changes nothing.
    fn is_kept(self, text: &str) -> bool {
        let quick = || match self {
            Self::Nfc => is_nfc_quick(text.chars()),
            Self::Nfd => is_nfd_quick(text.chars()),
            Self::Nfkc => is_nfkc_quick(text.chars()),
            Self::Nfkd => is_nfkd_quick(text.chars()),
        };
        text.is_ascii() || quick() == IsNormalized::Yes
    }
}

/// A character, and how many characters it adds.
type Change = (char, isize);

/// The canonical combining class.
#[inline]
fn class_of(c: char) -> u8 {
    if c < '\u{300}' { 0 } else { canonical_combining_class(c) }
}

/// Canonical composition of decomposed characters in canonical order.
fn compose_all(parts: &mut Vec<Change>) {
    let mut n_composed = 0;
    let mut starter = None;
    // The class of the last character between the starter and this one, none if this one follows directly.
    let mut last_class = None;
    for idx in 0..parts.len() {
        let (c, change) = parts[idx];
        let class = class_of(c);
        if let Some(starter_idx) = starter
            && last_class.is_none_or(|last| last < class)
        {
            let (base, base_change): Change = parts[starter_idx];
            if let Some(joined) = compose(base, c) {
                parts[starter_idx] = (joined, base_change + change - 1);
                continue;
            }
        }
        if class == 0 {
            (starter, last_class) = (Some(n_composed), None);
        } else {
            last_class = Some(class);
        }
        parts[n_composed] = (c, change);
        n_composed += 1;
    }
    parts.truncate(n_composed);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_normalization::UnicodeNormalization;

    use super::*;

    const FORMS: [Form; 4] = [Form::Nfc, Form::Nfd, Form::Nfkc, Form::Nfkd];

    fn applied(form: Form, mut text: Normalized<'_>) -> String {
        form.apply(&mut text);
        text.into_text().into_owned()
    }

    #[test]
    fn what_is_in_the_form_stays_borrowed() {
        for (form, text) in [(Form::Nfkc, "plain"), (Form::Nfc, "é 한국"), (Form::Nfd, "e\u{301}")] {
            let mut normalized = Normalized::new(text);
            form.apply(&mut normalized);
            assert!(matches!(normalized.into_text(), std::borrow::Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn composing_takes_the_origin_of_the_first_character() {
        let mut text = Normalized::with_origins("xe\u{301}ﬁ");
        Form::Nfkc.apply(&mut text);
        assert_eq!(text.text(), "xéfi");
        assert_eq!(
            (text.origin_of(1..3), text.origin_of(3..4), text.origin_of(4..5)),
            (Some(1..2), Some(4..7), Some(4..7))
        );
    }

    fn text() -> impl Strategy<Value = String> {
        let hot = "aeE é\u{301}\u{323}\u{345}\u{334}ﬁ각가ᄀᆨᅡ\u{fb2c}\u{958}\u{b94}\u{1d1bf}\u{10d4d}\u{3099}が½\u{f71}\u{f73}";
        let hot: Vec<char> = hot.chars().collect();
        prop_oneof![
            proptest::collection::vec(proptest::sample::select(hot), 0..20).prop_map(String::from_iter),
            any::<String>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn forms_are_those_of_the_library(text in text()) {
            let known: String = text.chars().filter(|&c| !Props::of(c).is(Props::INERT)).collect();
            for form in FORMS {
                let theirs: String = match form {
                    Form::Nfc => known.nfc().collect(),
                    Form::Nfd => known.nfd().collect(),
                    Form::Nfkc => known.nfkc().collect(),
                    Form::Nfkd => known.nfkd().collect(),
                };
                prop_assert_eq!(&applied(form, Normalized::new(&known)), &theirs, "{:?}", form);
                prop_assert_eq!(&applied(form, Normalized::with_origins(&known)), &theirs, "{:?}", form);
            }
        }
    }
}
