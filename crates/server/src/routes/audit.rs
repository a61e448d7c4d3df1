//! Recorded events of a sandbox.

use api::{AuditEvent, AuditPage, ErrorBody};
use axum::{Json, extract::State};
use policy::Decision;
use store::{EventQuery, EventRecord, Order};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    App,
    auth::Caller,
    error::ApiError,
    request::{PathSandbox, Query},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(events))
}

/// Lists what was recorded of a sandbox, oldest first; of a killed one too, as long as it is kept.
///
/// Everything that was recorded before the request is there.
#[utoipa::path(
    get, path = "/sandboxes/{id}/audit", tag = "audit",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("since" = Option<String>, Query, description = "Only at or after this time (RFC 3339)"),
        ("until" = Option<String>, Query, description = "Only before this time (RFC 3339)"),
        ("type" = Option<Vec<String>>, Query, description = "Only of these types, as in `egress_blocked`"),
        ("decision" = Option<String>, Query, description = "Only `allow`, or only `deny`"),
        ("host" = Option<String>, Query, description = "Only about this host, or `*.` and a domain"),
        ("limit" = Option<u32>, Query, description = "At most this many, up to 1000; default 100"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
    ),
    responses(
        (status = 200, description = "A page", body = AuditPage),
        (status = 400, description = "A parameter is wrong; the message names it", body = ErrorBody),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
    )
)]
async fn events(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
) -> Result<Json<AuditPage>, ApiError> {
    let query = EventQuery {
        account: None,
        sandbox: Some(id.to_string()),
        since: query.time("since")?,
        until: query.time("until")?,
        kinds: kinds(&query),
        decision: decision(&query)?,
        host: query.get("host").map(|host| host.trim_end_matches('.').to_ascii_lowercase()),
        order: Order::OldestFirst,
        limit: query.parsed("limit")?,
        cursor: query.get("cursor").map(str::to_owned),
    };
    app.sandboxes.get(&caller.account, &id).await?;
    app.audit.flush().await?;
    let page = app.store.events().query(&query).await?;
    let events = page.events.into_iter().map(event).collect::<Result<_, _>>()?;
    Ok(Json(AuditPage { events, next_cursor: page.next }))
}

fn kinds(query: &Query) -> Vec<String> {
    let kinds = query.all("type").flat_map(|kinds| kinds.split(',')).filter(|kind| !kind.is_empty());
    kinds.map(str::to_owned).collect()
}

fn decision(query: &Query) -> Result<Option<Decision>, ApiError> {
    match query.get("decision").filter(|decision| !decision.is_empty()) {
        None => Ok(None),
        Some("allow") => Ok(Some(Decision::Allow)),
        Some("deny") => Ok(Some(Decision::Deny)),
        Some(other) => Err(ApiError::bad_request(format!("decision: {other:?} is neither allow nor deny"))),
    }
}

/// The store writes the words of the API; this gives them the types of the document, and times their spelling.
fn event(record: EventRecord) -> Result<AuditEvent, ApiError> {
    serde_json::to_value(record).and_then(serde_json::from_value).map_err(|error| ApiError::internal(&error))
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use jiff::Timestamp;
    use policy::List;
    use store::{Category, EventRule, RuleKind};

    use super::*;

    #[test]
    fn every_field_of_a_stored_event_is_shown() {
        let time: Timestamp = "2026-03-01T12:00:00.25Z".parse().unwrap();
        let entry = RuleKind::Entry { list: List::AllowOut, index: 2, entry: "a.example".to_owned() };
        let record = EventRecord {
            sandbox_id: Some("sbx-00000000".to_owned()),
            decision: Some(Decision::Allow),
            reason: Some(Cow::Borrowed("allow_entry")),
            rule: Some(EventRule { text: "allow_out[2] a.example".to_owned(), kind: entry }),
            host: Some("a.example".to_owned()),
            host_source: Some(Cow::Borrowed("sni")),
            address: Some([192, 0, 2, 1].into()),
            port: Some(443),
            protocol: Some(Cow::Borrowed("tcp")),
            generation: Some(1),
            last_time: Some(time),
            bytes_up: Some(1),
            bytes_down: Some(2),
            duration_ms: Some(3),
            detail: Some(serde_json::json!({"x": 1})),
            ..EventRecord::new(7, time, Category::Network, "egress_allowed")
        };
        let mut stored = serde_json::to_value(&record).unwrap();
        let shown = serde_json::to_value(event(record).unwrap()).unwrap();
        assert_eq!(shown["time"], "2026-03-01T12:00:00.250000+00:00");
        for time in ["time", "last_time"] {
            stored[time] = shown[time].clone();
        }
        assert_eq!(shown, stored);
        let floor = RuleKind::Floor { floor: "metadata".to_owned() };
        let rule = Some(EventRule { text: "floor:metadata".to_owned(), kind: floor });
        let record = EventRecord { rule, ..EventRecord::new(8, time, Category::Network, "egress_blocked") };
        assert_eq!(event(record).unwrap().rule.unwrap().floor.as_deref(), Some("metadata"));
    }
}
