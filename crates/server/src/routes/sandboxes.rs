//! Creating, describing, listing and ending sandboxes.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    Acknowledged, CreateSandbox, ErrorBody, KillMany, KillManyResults, KillOutcome, Killed, Metrics, Queued,
    Running, Sandbox, SandboxList, SandboxState, Seconds, SetTimeout,
};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use sandbox::{Create, Filter, Measurement, OnTimeout, SandboxError, SandboxId, State as SandboxIs};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    App,
    auth::Caller,
    convert::{self, Creation},
    error::ApiError,
    idempotency,
    request::{JsonBody, PathSandbox, Query, RawJson, sandbox_id},
};

/// Sandboxes on a page if the request does not say, and at most.
const PAGE: u32 = 100;
const LONGEST_PAGE: u32 = 1000;
/// Labels that a list can be asked for. Each is looked for in the labels of every sandbox of the account.
const MOST_LABELS: usize = 32;
/// Sandboxes of one request that are torn down at the same time.
const KILLED_AT_ONCE: usize = 16;
/// How long processor time is measured for what is used now.
const MEASURED: Duration = Duration::from_millis(100);

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(get, kill))
        .routes(routes!(kill_many))
        .routes(routes!(status))
        .routes(routes!(set_timeout))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(metrics))
}

/// Creates a sandbox.
///
/// With `Idempotency-Key`, a repeat of the same request answers with the same sandbox for 24 hours.
/// A template that does not exist is a field of the body that is wrong, so it is 400, not 404.
#[utoipa::path(
    post, path = "/sandboxes", tag = "sandboxes", request_body = CreateSandbox,
    params(("Idempotency-Key" = Option<String>, Header, description = "One random key for each sandbox wanted")),
    responses(
        (status = 201, description = "The sandbox is running", body = Sandbox),
        (status = 400, description = "A field, or an entry of the policy, is wrong; the message names it", body = ErrorBody),
        (status = 403, description = "`resources` was given", body = ErrorBody),
        (status = 409, description = "`idempotency_in_progress`, or `template_not_ready`", body = ErrorBody),
        (status = 422, description = "`idempotency_key_reused`", body = ErrorBody),
        (status = 429, description = "No more sandboxes fit", body = ErrorBody),
        (status = 501, description = "A field asks for what this server does not have", body = ErrorBody),
    )
)]
async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    RawJson(body): RawJson,
) -> Result<Response, ApiError> {
    let key = idempotency::key(&headers)?;
    let creation = Creation::from_body(&body)?;
    let account = caller.account.clone();
    let work = create_now(app.clone(), caller, creation, key.clone());
    let made = async |id: String| made(&app, &account, &id).await;
    idempotency::once(&app, Arc::clone(&account), key, &body, work, made).await
}

/// The sandbox that an earlier request has made, if it lives: the request was interrupted before it was answered.
async fn made(app: &App, account: &str, id: &str) -> Result<Option<Sandbox>, ApiError> {
    let Ok(id) = id.parse::<SandboxId>() else { return Ok(None) };
    match app.sandboxes.get(account, &id).await {
        Ok(record) => {
            let lives = matches!(convert::state(&record), SandboxState::Running | SandboxState::Paused);
            Ok(lives.then(|| convert::sandbox(record)))
        }
        Err(SandboxError::NotFound) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn create_now(
    app: App,
    caller: Caller,
    creation: Creation,
    key: Option<String>,
) -> Result<Sandbox, ApiError> {
    let Creation { template, timeout, lifecycle, metadata, envs, policy, source, audit, stored, warnings } =
        creation;
    let account = caller.account.to_string();
    let create = Create {
        account,
        template,
        timeout,
        on_timeout: match lifecycle.on_timeout {
            api::OnTimeout::Kill => OnTimeout::Kill,
            api::OnTimeout::Pause => OnTimeout::Pause,
        },
        auto_resume: lifecycle.auto_resume,
        metadata,
        envs,
        policy,
        audit,
        stored,
        limits: None,
        mounts: Vec::new(),
        idempotency_key: key,
    };
    let record = app.sandboxes.create(create).await.map_err(|error| ApiError::from_create(error, source))?;
    Ok(Sandbox { warnings, ..convert::sandbox(record) })
}

/// Lists the account's sandboxes, newest first. Killed ones only if asked for.
#[utoipa::path(
    get, path = "/sandboxes", tag = "sandboxes",
    params(
        ("state" = Option<Vec<String>>, Query, description = "Only in these states; `all` means killed ones too"),
        ("metadata" = Option<String>, Query, description = "Only with these labels, at most 32: an object, or `key=value`"),
        ("limit" = Option<u32>, Query, description = "At most this many, up to 1000; default 100. Fewer if they are longer than 8 MiB together"),
        ("offset" = Option<u32>, Query, description = "After leaving out this many; not with `next_token`"),
        ("next_token" = Option<String>, Query, description = "`next_token` of the page before; the other parameters as for that"),
    ),
    responses(
        (status = 200, description = "A page", body = SandboxList),
        (status = 400, description = "A parameter is wrong; the message names it", body = ErrorBody),
    )
)]
async fn list(State(app): State<App>, caller: Caller, query: Query) -> Result<Json<SandboxList>, ApiError> {
    let limit = query.parsed("limit")?.unwrap_or(PAGE).clamp(1, LONGEST_PAGE);
    let after = query.parsed("next_token")?;
    let offset = query.parsed("offset")?.unwrap_or(0);
    if after.is_some() && offset > 0 {
        return Err(ApiError::bad_request("offset: does not go together with next_token"));
    }
    let states = states(&query)?;
    let filter = Filter { states, metadata: metadata(&query)?, limit: Some(limit), after, offset };
    let page = app.sandboxes.list(&caller.account, filter).await?;
    let next_token = page.next.map(|next| next.to_string());
    let sandboxes = page.sandboxes.into_iter().map(convert::sandbox).collect();
    Ok(Json(SandboxList { sandboxes, next_token, total: page.total }))
}

/// The states wanted. None means all but killed.
fn states(query: &Query) -> Result<Vec<SandboxIs>, ApiError> {
    let mut wanted = Vec::new();
    for text in query.all("state").flat_map(|states| states.split(',')).filter(|state| !state.is_empty()) {
        if text == "all" {
            return Ok(vec![SandboxIs::Creating, SandboxIs::Running, SandboxIs::Paused, SandboxIs::Killed]);
        }
        let state = match text.parse().map_err(|error| ApiError::bad_request(format!("state: {error}")))? {
            SandboxState::Live | SandboxState::Running => SandboxIs::Running,
            SandboxState::Creating => SandboxIs::Creating,
            SandboxState::Paused => SandboxIs::Paused,
            SandboxState::Killed => SandboxIs::Killed,
        };
        if !wanted.contains(&state) {
            wanted.push(state);
        }
    }
    Ok(wanted)
}

/// `metadata=<object>` and `metadata[key]=value`, all of them.
fn metadata(query: &Query) -> Result<BTreeMap<String, String>, ApiError> {
    let mut wanted = BTreeMap::new();
    for (name, value) in query.iter() {
        if name == "metadata" && !value.is_empty() {
            let filter = api::parse_metadata_filter(value);
            wanted.extend(filter.map_err(|error| ApiError::bad_request(format!("metadata: {error}")))?);
        } else if let Some(key) = name.strip_prefix("metadata[").and_then(|name| name.strip_suffix(']')) {
            wanted.insert(key.to_owned(), value.to_owned());
        }
    }
    if wanted.len() > MOST_LABELS {
        let message = format!("metadata: {} labels are more than {MOST_LABELS} in one request", wanted.len());
        return Err(ApiError::bad_request(message));
    }
    Ok(wanted)
}

/// Describes a sandbox, also one that was killed.
#[utoipa::path(
    get, path = "/sandboxes/{id}", tag = "sandboxes",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("timeout" = Option<f64>, Query, description = "Also sets the time limit, as `PATCH` on `timeout` does, unless it was killed"),
    ),
    responses(
        (status = 200, description = "The sandbox", body = Sandbox),
        (status = 400, description = "`timeout` is no time", body = ErrorBody),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
    )
)]
async fn get(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
) -> Result<Json<Sandbox>, ApiError> {
    let timeout = match query.parsed("timeout")?.map(Seconds::from_number) {
        Some(Err(error)) => return Err(ApiError::bad_request(format!("timeout: {error}"))),
        Some(Ok(timeout)) => Some(timeout),
        None => None,
    };
    let mut record = app.sandboxes.get(&caller.account, &id).await?;
    // One client's `connect(timeout=…)` has no request of its own for this.
    if let Some(timeout) = timeout
        && matches!(convert::state(&record), SandboxState::Running | SandboxState::Paused)
    {
        app.sandboxes.set_timeout(&caller.account, &id, timeout.rounded_up()).await?;
        record = app.sandboxes.get(&caller.account, &id).await?;
    }
    Ok(Json(convert::sandbox(record)))
}

/// Kills a sandbox. Nothing of it is kept but its description and its events.
#[utoipa::path(
    delete, path = "/sandboxes/{id}", tag = "sandboxes",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("async" = Option<bool>, Query, description = "Answer at once and tear down in the background"),
    ),
    responses(
        (status = 200, description = "Everything is gone; false if it was before", body = Killed),
        (status = 202, description = "It is no longer running, and is being torn down", body = Queued),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
    )
)]
async fn kill(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
) -> Result<Response, ApiError> {
    if query.is_true("async") {
        app.sandboxes.kill_queued(&caller.account, &id).await?;
        return Ok((StatusCode::ACCEPTED, Json(Queued { queued: true })).into_response());
    }
    let killed = app.sandboxes.kill(&caller.account, &id).await?;
    Ok(Json(Killed { killed }).into_response())
}

/// Kills several sandboxes. One that cannot be killed does not stop the others.
#[utoipa::path(
    post, path = "/sandboxes/kill-many", tag = "sandboxes", request_body = KillMany,
    params(("async" = Option<bool>, Query, description = "Answer at once and tear down in the background")),
    responses(
        (status = 200, description = "What became of each", body = KillManyResults),
        (status = 400, description = "They are more than 1000", body = ErrorBody),
    )
)]
async fn kill_many(
    State(app): State<App>,
    caller: Caller,
    query: Query,
    JsonBody(asked): JsonBody<KillMany>,
) -> Result<Json<KillManyResults>, ApiError> {
    asked.check()?;
    let queue = query.is_true("async");
    let results = stream::iter(asked.sandbox_ids)
        .map(|id| {
            let (app, caller) = (&app, &caller);
            async move {
                let outcome = kill_one(app, caller, &id, queue).await;
                (id, outcome.unwrap_or_else(|error| KillOutcome::Error(error.message)))
            }
        })
        .buffer_unordered(KILLED_AT_ONCE)
        .collect()
        .await;
    Ok(Json(KillManyResults { results }))
}

async fn kill_one(app: &App, caller: &Caller, id: &str, queue: bool) -> Result<KillOutcome, ApiError> {
    let id = sandbox_id(id)?;
    if queue {
        app.sandboxes.kill_queued(&caller.account, &id).await?;
        return Ok(KillOutcome::Queued(true));
    }
    Ok(KillOutcome::Killed(app.sandboxes.kill(&caller.account, &id).await?))
}

/// Says whether a sandbox is running.
#[utoipa::path(
    get, path = "/sandboxes/{id}/status", tag = "sandboxes",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "Whether it is", body = Running),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
    )
)]
async fn status(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Result<Json<Running>, ApiError> {
    let record = app.sandboxes.get(&caller.account, &id).await?;
    Ok(Json(Running { is_running: convert::state(&record) == SandboxState::Running }))
}

/// Sets how long a sandbox has from now, or from when it is resumed if it is paused.
#[utoipa::path(
    patch, path = "/sandboxes/{id}/timeout", tag = "sandboxes", request_body = SetTimeout,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "Set", body = Acknowledged),
        (status = 400, description = "It is no time", body = ErrorBody),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 410, description = "It was killed", body = ErrorBody),
    )
)]
async fn set_timeout(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    JsonBody(SetTimeout { timeout }): JsonBody<SetTimeout>,
) -> Result<Json<Acknowledged>, ApiError> {
    app.sandboxes.set_timeout(&caller.account, &id, timeout.rounded_up()).await?;
    Ok(Json(Acknowledged { ok: true }))
}

/// Stops the processes of a sandbox where they are. When this is answered, none of them runs. Its memory stays in use; its
/// time, and that of its commands, does not run.
#[utoipa::path(
    post, path = "/sandboxes/{id}/pause", tag = "sandboxes",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "It stands still", body = Acknowledged),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 409, description = "It is paused already", body = ErrorBody),
        (status = 410, description = "It was killed", body = ErrorBody),
        (status = 501, description = "The machine cannot", body = ErrorBody),
    )
)]
async fn pause(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Result<Json<Acknowledged>, ApiError> {
    app.sandboxes.pause(&caller.account, &id).await?;
    Ok(Json(Acknowledged { ok: true }))
}

/// Lets a paused sandbox go on, with its whole time limit from now. One that is running stays as it is.
#[utoipa::path(
    post, path = "/sandboxes/{id}/resume", tag = "sandboxes",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "It is running", body = Acknowledged),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 410, description = "It was killed", body = ErrorBody),
    )
)]
async fn resume(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Result<Json<Acknowledged>, ApiError> {
    app.sandboxes.resume(&caller.account, &id).await?;
    Ok(Json(Acknowledged { ok: true }))
}

/// Tells what a sandbox used during the last hour: one measurement for each ten seconds in which it ran, oldest first, and
/// the last one of now. Where it was paused, or the server was not running, there are none.
///
/// The Go client reads one object where the others read a list; it gets the one of now, known by its `User-Agent`.
#[utoipa::path(
    get, path = "/sandboxes/{id}/metrics", tag = "sandboxes",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("start" = Option<String>, Query, description = "Only at or after this time (RFC 3339)"),
        ("end" = Option<String>, Query, description = "Only before this time (RFC 3339)"),
    ),
    responses(
        (status = 200, description = "The measurements", body = Vec<Metrics>),
        (status = 400, description = "A time is wrong", body = ErrorBody),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 410, description = "It was killed", body = ErrorBody),
    )
)]
async fn metrics(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    headers: HeaderMap,
    query: Query,
) -> Result<Response, ApiError> {
    let (start, end) = (query.time("start")?, query.time("end")?);
    let asked = |time: Timestamp| start.is_none_or(|start| start <= time) && end.is_none_or(|end| time < end);
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    if agent.starts_with("Go-http-client/") {
        let now = measure(&app, &caller, &id).await?;
        return Ok(Json(convert::metrics(now)).into_response());
    }
    let mut measured = app.sandboxes.history(&caller.account, &id).await?;
    // What lies in the past is not waited for.
    if end.is_none_or(|end| end > Timestamp::now()) {
        let now = measure(&app, &caller, &id).await?;
        measured.retain(|earlier| earlier.time < now.time);
        measured.push(now);
    }
    let shown = measured.into_iter().filter(|measured| asked(measured.time)).map(convert::metrics);
    Ok(Json(shown.collect::<Vec<_>>()).into_response())
}

async fn measure(app: &App, caller: &Caller, id: &SandboxId) -> Result<Measurement, ApiError> {
    let (before, begun) = (app.sandboxes.usage(&caller.account, id).await?, Instant::now());
    tokio::time::sleep(MEASURED).await;
    let (after, elapsed) = (app.sandboxes.usage(&caller.account, id).await?, begun.elapsed());
    Ok(convert::measurement(Timestamp::now(), before, after, elapsed))
}
