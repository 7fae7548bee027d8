//! The fields of a request, taken one by one: what nobody took is an error that names it.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::{ApiError, shortened};

/// The object of a body.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Reads a body.
    ///
    /// # Errors
    /// If it is not a JSON object.
    pub fn read(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(fields)) => Ok(Self(fields)),
            Ok(_) => Err(ApiError::malformed("the body must be a JSON object")),
            Err(error) => Err(ApiError::malformed(format!("the body is not JSON: {error}"))),
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
                .map_err(|error| ApiError::invalid(name, format!("`{name}`: {error}"))),
        }
    }

    /// The value of a field that must be there.
    ///
    /// # Errors
    /// If it is not, or of another type.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, ApiError> {
        self.take(name)?.ok_or_else(|| ApiError::invalid(name, format!("`{name}` is missing")))
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
        match value.as_u64().filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(ApiError::invalid(
                name,
                format!(
                    "`{name}` is {}: must be a whole number from {} to {}",
                    shortened(&value.to_string()),
                    range.start(),
                    range.end()
                ),
            )),
        }
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
        match self.take::<Value>(name)? {
            Some(value) if !allowed.contains(&value) => Err(ApiError::invalid(
                name,
                format!("`{name}` is not supported by this server but for its default"),
            )),
            _ => Ok(()),
        }
    }

    /// Whether all fields were taken.
    ///
    /// # Errors
    /// The first that was not.
    pub fn finish(self) -> Result<(), ApiError> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => {
                let name = shortened(&name);
                Err(ApiError::invalid(name.clone(), format!("`{name}` is no field of this request")))
            }
        }
    }
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
        let mut body = fields(json!({ "n": 3, "stop": null, "x": "y", "odd": 1 }));
        assert_eq!(body.whole("n", 1..=8).expect("in range"), Some(3));
        assert_eq!(body.take::<String>("stop").expect("null is absent"), None);
        assert_eq!(body.need::<String>("x").expect("there"), "y");
        let error = error(body.finish());
        assert_eq!(error["param"], "odd");
        assert_eq!(error["message"], "`odd` is no field of this request");
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
