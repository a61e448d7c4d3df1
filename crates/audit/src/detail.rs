//! What is said of an event beyond its fields: bounded, because parts of it may be what a request says.

use serde_json::{Value, json};

/// The most bytes of an event's detail, as JSON.
pub const MAX_DETAIL: usize = 4096;

/// The most characters of a text in a detail that is longer than that.
const TEXT: usize = 400;

/// A detail as it is recorded. In one that is too long, long texts are shortened; if that does not help, only its length
/// is kept.
pub(crate) fn bounded(mut detail: Value) -> Option<Value> {
    if detail.is_null() {
        return None;
    }
    let bytes = length(&detail);
    if bytes > MAX_DETAIL {
        shorten(&mut detail);
        if length(&detail) > MAX_DETAIL {
            detail = json!({ "omitted_bytes": bytes });
        }
    }
    Some(detail)
}

fn length(detail: &Value) -> usize {
    detail.to_string().len()
}

fn shorten(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some((end, _)) = text.char_indices().nth(TEXT) {
                text.truncate(end);
                text.push('\u{2026}');
            }
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(fields) => fields.values_mut().for_each(shorten),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detail_is_kept_as_it_is_up_to_its_limit_and_shortened_beyond() {
        assert_eq!(bounded(Value::Null), None);
        let around = json!({ "message": "" }).to_string().len();
        let fits = json!({ "message": "x".repeat(MAX_DETAIL - around) });
        assert_eq!(bounded(fits.clone()), Some(fits));
        let long = json!({ "by": { "key": "key-1" }, "message": "\u{e4}".repeat(10 << 20) });
        let shortened =
            json!({ "by": { "key": "key-1" }, "message": format!("{}\u{2026}", "\u{e4}".repeat(TEXT)) });
        assert_eq!(bounded(long), Some(shortened));
        let many = json!(vec!["x"; MAX_DETAIL]);
        let bytes = many.to_string().len();
        assert_eq!(bounded(many), Some(json!({ "omitted_bytes": bytes })));
    }
}
