//! Routes of the published API that this server does not have yet. They answer 501 and say what is missing, so
//! that a client is never told that something was done.

use axum::{
    Router,
    routing::{MethodFilter, on},
};

use crate::{App, error::ApiError};

const GET: MethodFilter = MethodFilter::GET;
const POST: MethodFilter = MethodFilter::POST;
const PUT: MethodFilter = MethodFilter::PUT;
const PATCH: MethodFilter = MethodFilter::PATCH;
const DELETE: MethodFilter = MethodFilter::DELETE;

/// Methods, path, and what would be there.
const ROUTES: &[(MethodFilter, &str, &str)] = &[
    (POST, "/sandboxes/{id}/snapshot", "snapshots"),
    (GET.or(POST), "/sandboxes/{id}/snapshots", "snapshots"),
    (DELETE, "/sandboxes/{id}/snapshots/{snapshot}", "snapshots"),
    (POST, "/sandboxes/{id}/restore", "snapshots"),
    (GET, "/snapshots", "snapshots"),
    (POST, "/templates/build", "building templates over the API"),
    (GET, "/templates/builds/{build}", "building templates over the API"),
    (POST, "/templates/{template}/rebuild", "building templates over the API"),
    (GET, "/templates", "managing templates over the API"),
    (GET.or(DELETE), "/templates/{template}", "managing templates over the API"),
    (GET.or(POST), "/volumes", "volumes"),
    (POST, "/volumes/empty", "volumes"),
    (POST, "/volumes/ingest", "volumes"),
    (GET.or(DELETE), "/volumes/{volume}", "volumes"),
    (GET, "/volumes/{volume}/download", "volumes"),
    (GET.or(PUT), "/volumes/{volume}/files/raw", "volumes"),
    (GET, "/volumes/{volume}/files/list", "volumes"),
    (GET, "/volumes/{volume}/files/info", "volumes"),
    (GET, "/volumes/{volume}/files/exists", "volumes"),
    (DELETE.or(PATCH), "/volumes/{volume}/files", "volumes"),
    (POST, "/volumes/{volume}/files/mkdir", "volumes"),
    (GET.or(POST).or(DELETE), "/volumes/{volume}/locks", "volumes"),
    (POST, "/volumes/{volume}/locks/renew", "volumes"),
    (POST, "/sandboxes/{id}/volumes/snapshot", "volumes"),
    (POST, "/sandboxes/{id}/volumes/{volume}/commit", "volumes"),
    (GET.or(POST), "/teams", "the vault"),
    (GET.or(POST), "/teams/{team}/environments", "the vault"),
    (GET.or(POST), "/teams/{team}/vault/secrets", "the vault"),
    (POST, "/teams/{team}/vault/secrets/{secret}/rotate", "the vault"),
    (POST, "/teams/{team}/vault/secrets/{secret}/scopes", "the vault"),
    (DELETE, "/teams/{team}/vault/secrets/{secret}", "the vault"),
    (GET, "/vault/presets", "the vault"),
    (GET, "/governance/packs", "governance packs"),
    (GET, "/governance/packs/{pack}", "governance packs"),
];

/// Adds the absent routes beside those that are there.
pub(crate) fn add(router: Router<App>) -> Router<App> {
    ROUTES.iter().fold(router, |router, &(methods, path, what)| {
        let answer = move || async move {
            ApiError::not_implemented(format!("{what}: not implemented by this server"))
        };
        router.route(path, on(methods, answer))
    })
}
