//! Messages of the Model Context Protocol over standard input and output: JSON-RPC 2.0, one message a line.

use serde::Deserialize;
use serde_json::{Value, json};

/// The message is no JSON.
pub(super) const PARSE_ERROR: i32 = -32700;
/// It is JSON, and no message.
pub(super) const INVALID_REQUEST: i32 = -32600;
/// There is no such method.
pub(super) const METHOD_NOT_FOUND: i32 = -32601;
/// The method, or the tool, does not take such parameters.
pub(super) const INVALID_PARAMS: i32 = -32602;
/// More is asked for at the same time than is worked on.
pub(super) const BUSY: i32 = -32000;

/// What a line says.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// Something is asked for.
    Request(Request),
    /// Something is told.
    Notification { method: String, params: Value },
    /// An answer; nothing was asked for.
    Answer,
}

/// Something that is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) id: Id,
    pub(super) method: String,
    pub(super) params: Value,
}

/// What the answer to a request is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(untagged)]
pub(super) enum Id {
    Number(i64),
    Text(String),
}

impl Id {
    fn to_value(&self) -> Value {
        match self {
            Self::Number(number) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
        }
    }
}

/// Why something that was asked for is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RpcError {
    pub(super) code: i32,
    pub(super) message: String,
}

impl RpcError {
    pub(super) fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The line that says so; without an id when nobody knows what was asked for.
    pub(super) fn line(&self, id: Option<&Id>) -> String {
        let error = json!({ "code": self.code, "message": self.message });
        json!({ "jsonrpc": "2.0", "id": id.map(Id::to_value), "error": error }).to_string()
    }
}

/// The line that answers a request.
pub(super) fn result_line(id: &Id, result: &Value) -> String {
    json!({ "jsonrpc": "2.0", "id": id.to_value(), "result": result }).to_string()
}

#[derive(Deserialize)]
struct Raw {
    jsonrpc: String,
    #[serde(default)]
    id: Option<Value>,
    method: Option<String>,
    #[serde(default)]
    params: Value,
}

/// Reads a line.
///
/// # Errors
/// What to answer, and with which id.
pub(super) fn parse(line: &str) -> Result<Message, (Option<Id>, RpcError)> {
    let value: Value = serde_json::from_str(line)
        .map_err(|error| (None, RpcError::new(PARSE_ERROR, format!("not JSON: {error}"))))?;
    let invalid = |problem: String| (None, RpcError::new(INVALID_REQUEST, problem));
    if value.is_array() {
        return Err(invalid("several messages in one line are not understood".to_owned()));
    }
    let raw: Raw = serde_json::from_value(value).map_err(|error| invalid(error.to_string()))?;
    if raw.jsonrpc != "2.0" {
        return Err(invalid(format!("jsonrpc: {:?} is not \"2.0\"", raw.jsonrpc)));
    }
    let id = match raw.id {
        None => None,
        Some(id) => match serde_json::from_value(id) {
            Ok(id) => Some(id),
            Err(_) => return Err(invalid("id: is neither a text nor an integer".to_owned())),
        },
    };
    Ok(match (raw.method, id) {
        (Some(method), Some(id)) => Message::Request(Request { id, method, params: raw.params }),
        (Some(method), None) => Message::Notification { method, params: raw.params },
        (None, Some(_)) => Message::Answer,
        (None, None) => return Err(invalid("it has neither a method nor an id".to_owned())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(line: &str) -> i32 {
        parse(line).unwrap_err().1.code
    }

    #[test]
    fn requests_notifications_and_answers_are_told_apart() {
        let request =
            |id| Message::Request(Request { id, method: "m".to_owned(), params: json!({ "a": 1 }) });
        assert_eq!(
            parse(r#"{"jsonrpc":"2.0","id":7,"method":"m","params":{"a":1}}"#).unwrap(),
            request(Id::Number(7))
        );
        assert_eq!(
            parse(r#"{"jsonrpc":"2.0","id":"7","method":"m","params":{"a":1}}"#).unwrap(),
            request(Id::Text("7".to_owned()))
        );
        assert_eq!(
            parse(r#"{"jsonrpc":"2.0","method":"m"}"#).unwrap(),
            Message::Notification { method: "m".to_owned(), params: Value::Null }
        );
        assert_eq!(parse(r#"{"jsonrpc":"2.0","id":1,"result":{}}"#).unwrap(), Message::Answer);
    }

    #[test]
    fn what_is_no_message_is_said_to_be_none() {
        assert_eq!(code("{"), PARSE_ERROR);
        for line in [
            "[]",
            "5",
            "{}",
            r#"{"jsonrpc":"1.0","id":1,"method":"m"}"#,
            r#"{"jsonrpc":"2.0"}"#,
            r#"{"jsonrpc":"2.0","id":{},"method":"m"}"#,
            r#"{"jsonrpc":"2.0","id":null,"method":5}"#,
            r#"{"jsonrpc":"2.0","id":1.5,"method":"m"}"#,
        ] {
            assert_eq!(code(line), INVALID_REQUEST, "{line}");
        }
    }

    #[test]
    fn answers_have_the_id_that_was_asked_with() {
        let line = result_line(&Id::Text("a".to_owned()), &json!({ "b": 1 }));
        assert_eq!(line, r#"{"id":"a","jsonrpc":"2.0","result":{"b":1}}"#);
        let error = RpcError::new(PARSE_ERROR, "no");
        assert_eq!(error.line(None), r#"{"error":{"code":-32700,"message":"no"},"id":null,"jsonrpc":"2.0"}"#);
    }
}
