//! The events of streams, as the OpenAPI document has them.
//!
//! A schema of `text/event-stream` is that of one event: its name, and its data, which is text with JSON in it. The
//! generator of the document knows the type of the data only.

use serde_json::{Value, json};
use utoipa::openapi::{
    Object, ObjectBuilder, OneOfBuilder, OpenApi, RefOr, Schema, Type, extensions::Extensions,
};

use super::statuses::operations;

const MEDIA_TYPE: &str = "text/event-stream";

/// The events of each stream, with the schema of what is in their data.
const STREAMS: [(&str, &[(&str, &str)]); 4] = [
    (
        "/sandboxes/{id}/commands/stream",
        &[("output", "StreamedOutput"), ("error", "StreamFailure"), ("exit", "StreamExit")],
    ),
    (
        "/sandboxes/{id}/stdio/{pid}/stream",
        &[("stdout", "OutputPiece"), ("stderr", "OutputPiece"), ("exit", "StreamExit")],
    ),
    ("/sandboxes/{id}/pty/{pid}/stream", &[("data", "OutputPiece"), ("exit", "StreamExit")]),
    ("/sandboxes/{id}/files/watch", &[("change", "DirectoryChange")]),
];

/// Describes the events of every stream.
pub(super) fn describe(document: &mut OpenApi) {
    for (path, events) in STREAMS {
        let item = document.paths.paths.get_mut(path).expect("a stream is a route");
        for operation in operations(item) {
            for response in operation.responses.responses.values_mut() {
                let RefOr::T(response) = response else { continue };
                if let Some(RefOr::T(content)) = response.content.get_mut(MEDIA_TYPE) {
                    content.schema = Some(one_of(events));
                }
            }
        }
    }
}

fn one_of(events: &[(&str, &str)]) -> RefOr<Schema> {
    let all = events.iter().fold(OneOfBuilder::new(), |all, &(name, data)| all.item(event(name, data)));
    RefOr::T(Schema::OneOf(all.build()))
}

fn event(name: &str, data: &str) -> Object {
    let name = ObjectBuilder::new().schema_type(Type::String).enum_values(Some([name])).build();
    let inside: Value = json!({ "$ref": format!("#/components/schemas/{data}") });
    let data = ObjectBuilder::new()
        .schema_type(Type::String)
        .content_media_type("application/json")
        .extensions(Some(Extensions::from_iter([("contentSchema", inside)])))
        .build();
    let event = ObjectBuilder::new().property("event", name).required("event");
    event.property("data", data).required("data").build()
}
