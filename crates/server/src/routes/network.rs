//! Replacing the network policy of a sandbox, and the tokens that may narrow it.

use api::{ErrorBody, Network, Ratchet, RatchetRevoked, Sandbox};
use axum::{Json, extract::State, http::StatusCode};
use policy::PolicySpec;
use sandbox::PolicyChange;
use secrecy::ExposeSecret;
use serde_json::json;
use store::SandboxRecord;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    App,
    auth::{Caller, NETWORK, PolicyCaller},
    convert,
    error::ApiError,
    ratchets,
    request::{PathSandbox, RawJson},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(set_network)).routes(routes!(create_ratchet, revoke_ratchet))
}

/// Replaces the network policy of a sandbox, as a whole or not at all; of a paused one too.
///
/// What the new policy does not permit is cut within a second, established connections too. When several come at the
/// same time, one after the other is put in force.
///
/// With a ratchet token in the place of the API key, the new policy may permit nothing that the one in force does not.
/// That has to be evident: expressions are compared as text, and a name is taken to resolve to any public address.
#[utoipa::path(
    put, path = NETWORK, tag = "sandboxes", request_body = Network,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "The new policy is in force", body = Sandbox),
        (status = 400, description = "An entry is wrong; the message names it, and the old policy is in force", body = ErrorBody),
        (status = 403, description = "`policy_widens`: a ratchet token may not; the message names the entry", body = ErrorBody),
        (status = 404, description = "No such sandbox in this account, or not the one of the token", body = ErrorBody),
        (status = 410, description = "It was killed", body = ErrorBody),
        (status = 500, description = "`policy_kept`: it could not be replaced; the old policy is in force", body = ErrorBody),
    )
)]
async fn set_network(
    State(app): State<App>,
    caller: PolicyCaller,
    PathSandbox(id): PathSandbox,
    RawJson(body): RawJson,
) -> Result<Json<Sandbox>, ApiError> {
    let account = caller.account_for(&id)?;
    let record = app.sandboxes.get(account, &id).await?;
    let (network, policy, warnings) =
        requested(&body).inspect_err(|error| refused(&app, &record, &caller, error))?;
    let change = PolicyChange {
        policy,
        stored: convert::with_network(record.spec, &network),
        only_narrower: caller.only_narrows(),
        by: caller.by(),
    };
    let changed = app.sandboxes.set_policy(account, &id, change).await;
    let record = changed.map_err(|error| ApiError::from_create(error, "network"))?;
    Ok(Json(Sandbox { warnings, ..convert::sandbox(record) }))
}

fn requested(body: &[u8]) -> Result<(Network, PolicySpec, Vec<String>), ApiError> {
    // Elsewhere nothing reads as `{}`, but here that would permit everything.
    if body.trim_ascii().is_empty() {
        return Err(ApiError::bad_request("body: a policy is missing"));
    }
    let network: Network = api::from_json(body)?;
    let (policy, warnings) = convert::checked_policy("network", &network)?;
    Ok((network, policy, warnings))
}

/// Records an attempt that does not come as far as the manager, which records the others.
fn refused(app: &App, record: &SandboxRecord, caller: &PolicyCaller, error: &ApiError) {
    let detail = json!({ "by": caller.by(), "generation": record.generation, "message": error.message });
    app.audit.recorder(&record.id, record.audit_enabled).attempt("policy_change_refused", detail);
}

/// Makes a token with which the policy of the sandbox can be narrowed, and nothing else be done.
///
/// It is shown once, and ends with the sandbox. A sandbox has at most one: a new one replaces it.
#[utoipa::path(
    post, path = "/sandboxes/{id}/ratchet", tag = "sandboxes",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 201, description = "The token", body = Ratchet),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 410, description = "It was killed", body = ErrorBody),
    )
)]
async fn create_ratchet(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Result<(StatusCode, Json<Ratchet>), ApiError> {
    let record = app.sandboxes.get(&caller.account, &id).await?;
    if convert::state(&record) == api::SandboxState::Killed {
        return Err(sandbox::SandboxError::Killed.into());
    }
    let (ratchet_id, token) = ratchets::create(&app.store, &id).await?;
    record_ratchet(&app, &record, "ratchet_created", &caller, &ratchet_id);
    let token = token.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Json(Ratchet { ratchet_id, sandbox_id: record.id, token })))
}

/// Revokes the token of a sandbox.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/ratchet", tag = "sandboxes",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "It has none; false if it had none before", body = RatchetRevoked),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
    )
)]
async fn revoke_ratchet(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Result<Json<RatchetRevoked>, ApiError> {
    let record = app.sandboxes.get(&caller.account, &id).await?;
    let revoked = app.store.ratchets().revoke(id.as_str()).await?;
    if let Some(ratchet_id) = &revoked {
        record_ratchet(&app, &record, "ratchet_revoked", &caller, ratchet_id);
    }
    Ok(Json(RatchetRevoked { revoked: revoked.is_some() }))
}

fn record_ratchet(app: &App, record: &SandboxRecord, kind: &'static str, caller: &Caller, ratchet_id: &str) {
    let detail = json!({ "by": { "key": &*caller.key }, "ratchet": ratchet_id });
    app.audit.recorder(&record.id, record.audit_enabled).lifecycle(kind, detail);
}
