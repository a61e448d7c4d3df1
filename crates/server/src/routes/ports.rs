//! Ports inside a sandbox, as paths of the API.

use std::{num::NonZeroU16, sync::Arc};

use api::{ErrorBody, code};
use axum::{
    Extension,
    extract::{FromRequestParts, Request, State},
    http::{Method, StatusCode, Uri, request::Parts, uri::PathAndQuery},
    response::Response,
    routing::any,
};
use sandbox::SandboxId;
use utoipa::{
    OpenApi,
    openapi::path::{HttpMethod, Operation, PathItem},
};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    App,
    auth::Caller,
    error::ApiError,
    forward::{Asked, forward},
    keys::Key,
    request::sandbox_id,
};

/// The port of a service that the published API has inside its sandboxes, and tells nobody to use.
const RESERVED: u16 = 49983;

const ROOT: &str = "/sandboxes/{id}/ports/{port}";
const BELOW: &str = "/sandboxes/{id}/ports/{port}/{path}";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(document())
        .route(ROOT, any(pass_on))
        .route("/sandboxes/{id}/ports/{port}/", any(pass_on))
        .route("/sandboxes/{id}/ports/{port}/{*path}", any(pass_on))
}

/// A port in the path, and what is asked of it.
struct PathPort {
    id: SandboxId,
    asked: Asked,
}

impl<S: Sync> FromRequestParts<S> for PathPort {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        if parts.method == Method::CONNECT {
            let message = "CONNECT is not a method of ports";
            return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message));
        }
        // As it was sent: a program inside sees its path with the escapes that the client has put there.
        let mut segments = parts.uri.path().splitn(6, '/').skip(2);
        let (id, port) = match (segments.next(), segments.next(), segments.next()) {
            (Some(id), Some(_), Some(port)) => (id, port),
            _ => return Err(ApiError::internal_without_cause()),
        };
        let number = port_number(port)?;
        let below = segments.next().unwrap_or_default();
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let path = PathAndQuery::try_from(format!("/{below}{query}"))
            .map_err(|error| ApiError::bad_request(format!("path: {error}")))?;
        let asked =
            Asked { prefix: format!("/sandboxes/{id}/ports/{port}"), port: number, uri: Uri::from(path) };
        Ok(Self { id: sandbox_id(id)?, asked })
    }
}

fn port_number(text: &str) -> Result<NonZeroU16, ApiError> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let port: Option<NonZeroU16> = text.parse().ok().filter(|_| digits);
    let port =
        port.ok_or_else(|| ApiError::bad_request(format!("port: {text:?} is not a number from 1 to 65535")))?;
    if port.get() == RESERVED {
        let message = format!("port: {RESERVED} is reserved, and cannot be connected to");
        return Err(ApiError::new(StatusCode::FORBIDDEN, message).with_code(code::PORT_RESERVED));
    }
    Ok(port)
}

/// Passes a request to the program that listens on a port inside the sandbox, and its answer back.
///
/// Any method, HTTP/1.1 inside; bodies are passed on as they come, both ways, server-sent events among them, and a
/// WebSocket can be opened. The program sees the path below the port, `Host: localhost:PORT`, and none of the API key,
/// cookies and `X-Forwarded-*` headers; `X-Forwarded-Host` and `X-Forwarded-Prefix` tell it where it is. Give the key as
/// `X-API-Key` if it wants an `Authorization` of its own.
///
/// From its answer, headers are taken that would act on other sandboxes and the API, such as `Set-Cookie`; a redirection
/// to anywhere but the same port is in `X-Sandbox-Location` instead of `Location`.
#[utoipa::path(
    get, path = "/sandboxes/{id}/ports/{port}", tag = "ports",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("port" = u16, Path, minimum = 1, maximum = 65535, description = "The port"),
    ),
    responses(
        (status = "default", description = "What the program inside answers"),
        (status = 101, description = "A WebSocket is open"),
        (status = 400, description = "The port is not a number from 1 to 65535", body = ErrorBody),
        (status = 403, description = "`public_traffic_off`: the policy has `allow_public_traffic: false`; \
            `port_reserved`: 49983", body = ErrorBody),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 409, description = "The sandbox is paused, or not ready yet", body = ErrorBody),
        (status = 410, description = "The sandbox was killed", body = ErrorBody),
        (status = 429, description = "Too many connections to ports at the same time", body = ErrorBody),
        (status = 502, description = "`port_closed`: nothing listens there; `port_protocol`: what listens there does \
            not answer in HTTP/1.1, or not within bounds", body = ErrorBody),
        (status = 504, description = "`port_silent`: what listens there does not answer", body = ErrorBody),
    )
)]
async fn pass_on(
    State(app): State<App>,
    caller: Caller,
    Extension(key): Extension<Key>,
    PathPort { id, asked }: PathPort,
    request: Request,
) -> Result<Response, ApiError> {
    let connection = app.sandboxes.connect_port(&caller.account, &id, asked.port).await?;
    forward(asked, connection, Arc::clone(&app.keys).revoked(key), request).await
}

#[derive(OpenApi)]
#[openapi(paths(pass_on))]
struct Document;

/// Both paths, each with every method that the document can name.
fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    let Some(item) = document.paths.paths.remove(ROOT) else { return document };
    let Some(operation) = item.get else { return document };
    for (path, suffix) in [(ROOT, ""), (BELOW, "_path")] {
        let mut item = PathItem::default();
        for (method, name) in METHODS {
            let id = format!("{name}_port{suffix}");
            item.merge_operations(PathItem::new(method, with_path(&operation, id, path)));
        }
        document.paths.paths.insert(path.to_owned(), item);
    }
    document
}

const METHODS: [(HttpMethod, &str); 7] = [
    (HttpMethod::Get, "get"),
    (HttpMethod::Head, "head"),
    (HttpMethod::Post, "post"),
    (HttpMethod::Put, "put"),
    (HttpMethod::Patch, "patch"),
    (HttpMethod::Delete, "delete"),
    (HttpMethod::Options, "options"),
];

fn with_path(operation: &Operation, id: String, path: &str) -> Operation {
    use utoipa::openapi::{
        ObjectBuilder, Required,
        path::{ParameterBuilder, ParameterIn},
        schema::Type,
    };
    let mut operation = operation.clone();
    operation.operation_id = Some(id);
    if path == BELOW {
        let parameter = ParameterBuilder::new()
            .name("path")
            .parameter_in(ParameterIn::Path)
            .required(Required::True)
            .description(Some("The path as the program inside sees it, slashes included"))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)));
        operation.parameters.get_or_insert_default().push(parameter.build().into());
    }
    operation
}
