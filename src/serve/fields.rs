//! The fields of a request, taken one by one: what nobody took is an error that names it.

use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::{ApiError, shortened};

/// Warnings of a request that are kept: who sends a thousand unknown fields is told of the first.
const MAX_WARNINGS: usize = 16;

/// Values of a body. Once it is read, each takes up to a hundred bytes, which may be two on the wire. OpenAI's interface takes
/// 300,000 ids of tokens.
const MAX_VALUES: usize = 320_000;

/// What was left out of a request that a lenient server answers nevertheless.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Arc<Mutex<Vec<String>>>);

impl Warnings {
    fn add(&self, warning: String) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < MAX_WARNINGS {
            all.push(warning);
        }
    }

    /// All of them.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The fields that an object may have, and of which shape the objects in some of them are, alone or in a list.
#[derive(Debug)]
pub struct Shape {
    /// Those it may have.
    pub names: &'static [&'static str],
    /// Those it may have that say nothing here.
    pub ignored: &'static [&'static str],
    /// Those that hold objects.
    pub within: &'static [(&'static str, &'static Shape)],
}

/// The object of a body.
#[derive(Debug)]
pub struct Fields(Map<String, Value>, Option<Warnings>);

impl Fields {
    /// Reads a body.
    ///
    /// # Errors
    /// If it is not a JSON object.
    pub fn read(body: &[u8]) -> Result<Self, ApiError> {
        if n_values(body) > MAX_VALUES {
            return Err(ApiError::malformed(format!("the body has more than {MAX_VALUES} values")));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields, None)),
            Ok(_) => Err(ApiError::malformed("the body must be a JSON object")),
            Err(error) => Err(ApiError::malformed(format!("the body is not JSON: {error}"))),
        }
    }

    /// Warns of what would be an error because it is unknown or cannot be done, if there is somebody to warn.
    pub fn lenient(self, warnings: Option<Warnings>) -> Self {
        Self(self.0, warnings)
    }

    /// Whether a field is there and nobody took it.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// What a field has, unless it is absent or null or was taken.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Gives a field a value.
    pub fn put(&mut self, name: &str, value: Value) {
        self.0.insert(name.to_owned(), value);
    }

    /// Gives a field that is there another value.
    pub fn change(&mut self, name: &str, value: impl FnOnce(Value) -> Value) {
        if let Some(old) = self.0.get_mut(name) {
            *old = value(old.take());
        }
    }

    /// The value of a field, unless it is absent or null.
    ///
    /// # Errors
    /// If it is of another type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|error| ApiError::invalid(name, format!("`{name}`: {error}")).coded("invalid_type")),
        }
    }

    /// The value of a field whose objects are of a shape, unless it is absent or null.
    ///
    /// # Errors
    /// If one has a field that it may not have, or the value is of another type.
    pub fn take_shaped<T: DeserializeOwned>(
        &mut self,
        name: &str,
        shape: &Shape,
    ) -> Result<Option<T>, ApiError> {
        if let Some(mut value) = self.0.remove(name) {
            self.check(&mut value, shape, name)?;
            self.0.insert(name.to_owned(), value);
        }
        self.take(name)
    }

    /// Leaves out what an object at `path` may not have. What is no object is left to who reads it.
    fn check(&self, value: &mut Value, shape: &Shape, path: &str) -> Result<(), ApiError> {
        match value {
            Value::Array(list) => {
                let mut items = list.iter_mut().enumerate();
                items.try_for_each(|(i, item)| self.check(item, shape, &format!("{path}[{i}]")))
            }
            Value::Object(object) => {
                // What is null is not there.
                object.retain(|name, value| !value.is_null() && !shape.ignored.contains(&&**name));
                let is_known = |name: &String| shape.names.contains(&&**name);
                for name in object.keys().filter(|name| !is_known(name)) {
                    let name = shortened(name);
                    self.unknown(&format!("{path}.{name}"), format!("`{name}` is no field of `{path}`"))?;
                }
                object.retain(|name, _| is_known(name));
                let mut within = shape.within.iter();
                within.try_for_each(|(name, shape)| match object.get_mut(*name) {
                    Some(value) => self.check(value, shape, &format!("{path}.{name}")),
                    None => Ok(()),
                })
            }
            _ => Ok(()),
        }
    }

    /// The value of a field that must be there.
    ///
    /// # Errors
    /// If it is not, or of another type.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.take(name)?.ok_or_else(|| ApiError::missing(name))
    }

    /// A whole number in a range.
    ///
    /// # Errors
    /// If it is something else.
    pub fn whole(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.take::<Value>(name)? else { return Ok(None) };
        let code = match value.as_u64() {
            Some(n) if range.contains(&n) => return Ok(Some(n)),
            Some(n) if n > *range.end() => "integer_above_max_value",
            None if !value.is_i64() => "invalid_type",
            _ => "integer_below_min_value",
        };
        let (shown, least, most) = (shortened(&value.to_string()), range.start(), range.end());
        let why = format!("`{name}` is {shown}: must be a whole number from {least} to {most}");
        Err(ApiError::invalid(name, why).coded(code))
    }

    /// A field that changes nothing for this server.
    pub fn ignore(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// A field that only has one value that this server can do.
    ///
    /// # Errors
    /// If it has another.
    pub fn only(&mut self, name: &str, allowed: &[Value]) -> Result<(), ApiError> {
        match self.take::<Value>(name)?.map(without_nulls) {
            Some(value) if !allowed.contains(&value) => {
                self.refuse(name, format!("`{name}` is not supported by this server but for its default"))
            }
            _ => Ok(()),
        }
    }

    /// Whether all fields were taken.
    ///
    /// # Errors
    /// The first that was not.
    pub fn finish(self) -> Result<(), ApiError> {
        self.0.iter().filter(|(_, value)| !value.is_null()).try_for_each(|(name, _)| {
            if NOT_SUPPORTED.contains(&&**name) {
                return self.refuse(name, format!("`{name}` is not supported by this server"));
            }
            let name = shortened(name);
            self.unknown(&name, format!("`{name}` is no field of this request"))
        })
    }

    /// The same of what no request has.
    ///
    /// # Errors
    /// `why`, unless there is somebody to warn.
    pub fn unknown(&self, name: &str, why: String) -> Result<(), ApiError> {
        self.refuse(name, why).map_err(|error| error.coded("unknown_parameter"))
    }

    /// Refuses what is unknown or cannot be done, or warns of it.
    ///
    /// # Errors
    /// `why`, unless there is somebody to warn.
    pub fn refuse(&self, name: &str, why: String) -> Result<(), ApiError> {
        match &self.1 {
            Some(warnings) => {
                warnings.add(format!("{why}: it was left out"));
                Ok(())
            }
            None => Err(ApiError::invalid(name, why)),
        }
    }
}

/// Fields of OpenAI's interface for what this server does not do.
const NOT_SUPPORTED: [&str; 11] = [
    "audio",
    "context_management",
    "function_call",
    "functions",
    "moderation",
    "prediction",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "verbosity",
    "web_search_options",
];

/// An object without the fields that are null.
fn without_nulls(mut value: Value) -> Value {
    if let Value::Object(object) = &mut value {
        object.retain(|_, value| !value.is_null());
    }
    value
}

/// Values of a JSON text, about: one more than it has commas outside of strings.
fn n_values(json: &[u8]) -> usize {
    let (mut n, mut in_string, mut is_escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_string,
            b'"' => in_string = !in_string,
            b',' if !in_string => n += 1,
            _ => {}
        }
    }
    n
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::read(value.to_string().as_bytes()).expect("an object")
    }

    fn error(result: Result<impl Sized, ApiError>) -> Value {
        result.map(|_| ()).expect_err("refused").body()["error"].clone()
    }

    #[test]
    fn fields_are_taken_once_and_the_rest_is_named() {
        let mut body = fields(json!({ "n": 3, "stop": null, "x": "y", "even": null, "odd": 1 }));
        assert_eq!(body.whole("n", 1..=8).expect("in range"), Some(3));
        assert_eq!(body.take::<String>("stop").expect("null is absent"), None);
        assert_eq!(body.need::<String>("x").expect("there"), "y");
        let error = error(body.finish());
        assert_eq!(error["param"], "odd");
        assert_eq!(error["message"], "`odd` is no field of this request");
    }

    #[test]
    fn what_has_too_many_values_is_not_read() {
        for (json, n) in
            [("", 1), ("[1,2,3]", 3), (r#"{"a":",,,","b":"\\","c":1}"#, 3), (r#"["\",",","]"#, 2)]
        {
            assert_eq!(n_values(json.as_bytes()), n, "{json}");
        }
        let list = |n: usize| format!("{{\"a\":[{}1]}}", "1,".repeat(n - 1));
        Fields::read(list(MAX_VALUES).as_bytes()).expect("enough");
        assert!(
            error(Fields::read(list(MAX_VALUES + 1).as_bytes()))["message"].to_string().contains("320000")
        );
        let text = format!("{{\"a\":\"{}\"}}", ",".repeat(2 * MAX_VALUES));
        Fields::read(text.as_bytes()).expect("a text may have as many commas as it likes");
    }

    #[test]
    fn a_lenient_reader_warns_of_what_it_leaves_out_and_of_nothing_else() {
        let warnings = Warnings::default();
        let mut body =
            fields(json!({ "tools": [1], "n": 99, "odd": 1, "even": 2 })).lenient(Some(warnings.clone()));
        body.only("tools", &[json!([])]).expect("left out");
        assert_eq!(error(body.whole("n", 1..=8))["param"], "n");
        body.finish().expect("left out");
        let all = warnings.take();
        assert_eq!(all.len(), 3, "{all:?}");
        for name in ["tools", "odd", "even"] {
            assert!(all.iter().any(|warning| warning.starts_with(&format!("`{name}` "))), "{all:?}");
        }
        assert!(warnings.take().is_empty());
    }

    #[test]
    fn fields_of_fields_are_named_by_their_place_or_left_out_with_a_warning() {
        const PART: Shape = Shape { names: &["text"], ignored: &["seen"], within: &[] };
        const SHAPE: Shape =
            Shape { names: &["role", "content"], ignored: &[], within: &[("content", &PART)] };
        let body = json!({ "messages": [
            { "role": "user", "content": "x", "odd": null },
            { "role": "user", "content": [{ "text": "a", "seen": 1 }, { "text": "b", "cache": 1 }], "odd": 2 },
            3,
        ] });
        let strict = error(fields(body.clone()).take_shaped::<Value>("messages", &SHAPE));
        assert_eq!(strict["param"], "messages[1].odd");
        assert_eq!(strict["message"], "`odd` is no field of `messages[1]`");
        let warnings = Warnings::default();
        let mut lenient = fields(body).lenient(Some(warnings.clone()));
        let left: Option<Value> = lenient.take_shaped("messages", &SHAPE).expect("left out");
        let parts = json!([{ "text": "a" }, { "text": "b" }]);
        assert_eq!(
            left,
            Some(json!([{ "role": "user", "content": "x" }, { "role": "user", "content": parts }, 3]))
        );
        assert_eq!(
            warnings.take(),
            [
                "`odd` is no field of `messages[1]`: it was left out",
                "`cache` is no field of `messages[1].content[1]`: it was left out",
            ]
        );
        assert_eq!(lenient.take_shaped::<Value>("absent", &SHAPE).expect("absent"), None);
    }

    #[test]
    fn wrong_values_name_the_field() {
        for (n, shown) in
            [(json!(0), "0"), (json!(9), "9"), (json!(-1), "-1"), (json!(1.5), "1.5"), (json!("3"), "\"3\"")]
        {
            let error = error(fields(json!({ "n": n })).whole("n", 1..=8));
            assert_eq!(error["param"], "n");
            assert_eq!(error["message"], format!("`n` is {shown}: must be a whole number from 1 to 8"));
        }
        assert_eq!(error(fields(json!({})).need::<String>("model"))["message"], "`model` is missing");
        assert_eq!(error(fields(json!({ "t": "x" })).take::<f32>("t"))["param"], "t");
        assert_eq!(error(fields(json!({ "tools": [1] })).only("tools", &[json!([])]))["param"], "tools");
        for body in ["", "[]", "{", "\u{feff}{}"] {
            assert_eq!(error(Fields::read(body.as_bytes()))["type"], "invalid_request_error", "{body}");
        }
    }
}
