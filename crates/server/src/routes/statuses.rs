//! Statuses that many routes answer, put into the OpenAPI document where they belong: a route names only its own.

use utoipa::openapi::{
    ContentBuilder, OpenApi, Ref, RefOr, Response, ResponseBuilder,
    path::{Operation, Parameter, ParameterIn, PathItem},
};

/// What can be answered to any request with a key.
const ALWAYS: [(u16, &str); 4] = [
    (401, "No key, or one that is not valid"),
    (403, "The key is a ratchet token, which opens another route only, or no longer this one"),
    (500, "A failure inside the server; its log has the cause under the answer's `x-request-id`"),
    (503, "The store cannot be written to, or the server stops; a repeat may succeed"),
];
/// What can be answered to a request with a body.
const WITH_BODY: [(u16, &str); 3] = [
    (400, "The body or a field is wrong; the message names it"),
    (408, "The body did not arrive in time"),
    (413, "The body, or what it asks for, is too large"),
];
/// What can be answered where a sandbox has to be asked.
const ASKING: [(u16, &str); 4] = [
    (409, "The sandbox is paused, or not in a state in which that can be done"),
    (410, "The sandbox was killed"),
    (429, "The sandbox does as much as it may at the same time"),
    (502, "The sandbox does not answer"),
];
/// The parts of a path below a sandbox's for which it has to be asked.
const ASKED: [&str; 4] = ["commands", "files", "pty", "stdio"];

/// Adds what the operations of routes that ask for a key do not say themselves.
pub(super) fn complete(document: &mut OpenApi) {
    for (path, item) in &mut document.paths.paths {
        for operation in operations(item) {
            name(operation);
            ALWAYS.into_iter().for_each(|status| add(operation, status));
            if operation.request_body.is_some() {
                WITH_BODY.into_iter().for_each(|status| add(operation, status));
            }
            let is_in_query = |one: &RefOr<Parameter>| match one {
                RefOr::T(one) => one.parameter_in == ParameterIn::Query,
                RefOr::Ref(_) => true,
            };
            if path.contains("{pid}") || operation.parameters.iter().flatten().any(is_in_query) {
                add(operation, (400, "A parameter is wrong; the message names it"));
            }
            if let Some(below) = path.strip_prefix("/sandboxes/{id}") {
                add(operation, (404, "No such sandbox in this account"));
                if ASKED.contains(&below.split('/').nth(1).unwrap_or_default()) {
                    ASKING.into_iter().for_each(|status| add(operation, status));
                }
            }
        }
    }
}

pub(super) fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    let PathItem { get, put, post, delete, options, head, patch, .. } = item;
    [get, put, post, delete, options, head, patch].into_iter().flatten()
}

/// Names an operation by what it is about too: the same is done with several things, and names must be unique.
fn name(operation: &mut Operation) {
    if let (Some(id), Some(about)) = (&mut operation.operation_id, operation.tags.iter().flatten().next()) {
        *id = format!("{about}_{id}");
    }
}

fn add(operation: &mut Operation, (status, description): (u16, &str)) {
    operation.responses.responses.entry(status.to_string()).or_insert_with(|| RefOr::T(error(description)));
}

fn error(description: &str) -> Response {
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
    ResponseBuilder::new().description(description).content("application/json", body).build()
}
