//! Every status that a test gets is in the OpenAPI document.

use std::sync::LazyLock;

use axum::http::{Method, StatusCode};
use serde_json::Value;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::to_value(server::openapi()).unwrap());

/// Fails if a route that the document has answers with a status that it does not have there.
#[track_caller]
pub(super) fn check(method: &Method, path: &str, status: StatusCode) {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    // A path without parameters is before one with.
    let matching = paths.iter().filter(|(template, _)| is_of(template, path));
    let Some((template, item)) = matching.min_by_key(|(template, _)| template.matches('{').count()) else {
        return;
    };
    let operation = &item[method.as_str().to_ascii_lowercase()];
    if operation.is_null() {
        return;
    }
    let responses = operation["responses"].as_object().unwrap();
    let status = status.as_str();
    assert!(responses.contains_key(status), "{method} {template} answers {status}, which is not documented");
}

fn is_of(template: &str, path: &str) -> bool {
    let (template, path) = (template.split('/'), path.split('/'));
    template.clone().count() == path.clone().count()
        && template.zip(path).all(|(part, is)| part == is || part.starts_with('{'))
}
