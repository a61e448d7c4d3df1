//! Files in a sandbox.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use api::{
    Entry, ErrorBody, Exists, MadeDirectory, MakeDirectory, Removed, Rename, WriteFile, WriteFiles, Written,
};
use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Uri, header},
    response::{IntoResponse, Response},
};
use futures_util::TryStreamExt;
use tokio_util::io::StreamReader;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    App,
    auth::Caller,
    convert,
    error::ApiError,
    exactly::exactly,
    request::{JsonBody, PathSandbox, Query, refuse_longer_than, too_long},
    sandboxes::{Files, Source},
};

/// The longest file that can be written, in bytes.
const RAW_LIMIT: usize = 500 * 1024 * 1024;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(read, write, remove, rename))
        .routes(routes!(read_raw, write_raw))
        .routes(routes!(write_many))
        .routes(routes!(list))
        .routes(routes!(exists))
        .routes(routes!(info))
        .routes(routes!(make_directory))
}

/// Reads a file.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = String, Query, description = "The absolute path"),
        ("username" = Option<String>, Query, description = "Who reads; default `user`"),
    ),
    responses(
        (status = 200, description = "The content", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, description = "The path is not one, or a directory's", body = ErrorBody),
        (status = 404, description = "No such sandbox, or no such file", body = ErrorBody),
    )
)]
async fn read(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
) -> Result<Response, ApiError> {
    let files = app.sandboxes.files(&caller.account, &id).await?;
    let (size, content) = files.read(query.required("path")?, user(query.get("username"))).await?;
    // Files of the kernel say 0 and have content; without a length the body ends where the file does.
    let body = if size > 0 { Body::from_stream(exactly(size, content)) } else { Body::from_stream(content) };
    let mut response = body.into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if size > 0 {
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    }
    Ok(response)
}

/// Reads a file.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/raw", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = String, Query, description = "The absolute path"),
        ("username" = Option<String>, Query, description = "Who reads; default `user`"),
    ),
    responses(
        (status = 200, description = "The content", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "No such sandbox, or no such file", body = ErrorBody),
    )
)]
async fn read_raw(
    app: State<App>,
    caller: Caller,
    id: PathSandbox,
    query: Query,
) -> Result<Response, ApiError> {
    read(app, caller, id, query).await
}

/// Writes a text file, with its parent directories.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files", tag = "files", request_body = WriteFile,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "Written", body = Written),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 413, description = "The body is over 10 MiB, or the sandbox's file system is full", body = ErrorBody),
    )
)]
async fn write(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    JsonBody(file): JsonBody<WriteFile>,
) -> Result<Json<Written>, ApiError> {
    let files = app.sandboxes.files(&caller.account, &id).await?;
    Ok(Json(write_text(&*files, file, None).await?))
}

/// Writes several text files, in order, until one fails.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/batch", tag = "files", request_body = WriteFiles,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "Written, in the order of the request", body = Vec<Written>),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 413, description = "The body is over 10 MiB, or the sandbox's file system is full", body = ErrorBody),
    )
)]
async fn write_many(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    JsonBody(batch): JsonBody<WriteFiles>,
) -> Result<Json<Vec<Written>>, ApiError> {
    let files = app.sandboxes.files(&caller.account, &id).await?;
    let mut written = Vec::with_capacity(batch.files.len());
    for file in batch.files {
        written.push(write_text(&*files, file, batch.username.as_deref()).await?);
    }
    Ok(Json(written))
}

async fn write_text(files: &dyn Files, file: WriteFile, username: Option<&str>) -> Result<Written, ApiError> {
    let username = user(file.username.as_deref()).or(user(username));
    let source: Source = Box::pin(io::Cursor::new(file.data.into_bytes()));
    let written = files.write(&file.path, username, RAW_LIMIT as u64, source).await?;
    Ok(Written { path: written.path, size: written.size })
}

/// Writes a file from the body, with its parent directories.
#[utoipa::path(
    put, path = "/sandboxes/{id}/files/raw", tag = "files",
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = String, Query, description = "The absolute path"),
        ("username" = Option<String>, Query, description = "Who writes; default `user`"),
    ),
    responses(
        (status = 200, description = "Written", body = Written),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 413, description = "The body is over 500 MiB, or the sandbox's file system is full", body = ErrorBody),
    )
)]
async fn write_raw(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
    request: Request,
) -> Result<Json<Written>, ApiError> {
    let request = refuse_longer_than(RAW_LIMIT, request)?;
    let path = query.required("path")?.to_owned();
    let files = app.sandboxes.files(&caller.account, &id).await?;
    let (content, fate) = limited(request.into_body());
    match files.write(&path, user(query.get("username")), RAW_LIMIT as u64, content).await {
        Ok(written) => Ok(Json(Written { path: written.path, size: written.size })),
        Err(_) if fate.too_long.load(Ordering::Relaxed) => Err(too_long(RAW_LIMIT)),
        Err(_) if fate.broken.load(Ordering::Relaxed) => {
            Err(ApiError::bad_request("the request body broke off"))
        }
        Err(error) => Err(error.into()),
    }
}

/// What happened to a body that the writer only knows as a failed read.
#[derive(Default)]
struct Fate {
    too_long: AtomicBool,
    broken: AtomicBool,
}

/// A body as a stream of bytes that fails when it is too long.
fn limited(body: Body) -> (Source, Arc<Fate>) {
    let fate = Arc::new(Fate::default());
    let seen = Arc::clone(&fate);
    let mut left = RAW_LIMIT;
    let bytes = body.into_data_stream().map_err(io::Error::other).and_then(move |chunk| {
        let rest = left.checked_sub(chunk.len());
        left = rest.unwrap_or(0);
        std::future::ready(match rest {
            Some(_) => Ok(chunk),
            None => Err(io::Error::from(io::ErrorKind::FileTooLarge)),
        })
    });
    let bytes = bytes.inspect_err(move |error| {
        let flag = if error.kind() == io::ErrorKind::FileTooLarge { &seen.too_long } else { &seen.broken };
        flag.store(true, Ordering::Relaxed);
    });
    (Box::pin(StreamReader::new(bytes)), fate)
}

/// Lists a directory.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/list", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = String, Query, description = "The absolute path"),
        ("username" = Option<String>, Query, description = "Who lists; default `user`"),
        ("depth" = Option<u32>, Query, description = "How many levels down; default 1"),
    ),
    responses(
        (status = 200, description = "What is in it", body = Vec<Entry>),
        (status = 404, description = "No such sandbox, or no such directory", body = ErrorBody),
        (status = 413, description = "More than 100 000 entries, or than 16 MiB", body = ErrorBody),
    )
)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
) -> Result<Json<Vec<Entry>>, ApiError> {
    let depth = query.parsed("depth")?.unwrap_or(1).max(1);
    let files = app.sandboxes.files(&caller.account, &id).await?;
    let entries = files.list(query.required("path")?, user(query.get("username")), depth).await?;
    Ok(Json(entries.into_iter().map(convert::entry).collect()))
}

/// Says whether there is anything at a path.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/exists", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = String, Query, description = "The absolute path"),
        ("username" = Option<String>, Query, description = "Who looks; default `user`"),
    ),
    responses(
        (status = 200, description = "Whether there is", body = Exists),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
    )
)]
async fn exists(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
) -> Result<Json<Exists>, ApiError> {
    let files = app.sandboxes.files(&caller.account, &id).await?;
    Ok(Json(Exists { exists: files.exists(query.required("path")?, user(query.get("username"))).await? }))
}

/// Describes what is at a path.
#[utoipa::path(
    get, path = "/sandboxes/{id}/files/info", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = String, Query, description = "The absolute path"),
        ("username" = Option<String>, Query, description = "Who looks; default `user`"),
    ),
    responses(
        (status = 200, description = "What it is", body = Entry),
        (status = 404, description = "No such sandbox, or nothing there", body = ErrorBody),
    )
)]
async fn info(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    query: Query,
) -> Result<Json<Entry>, ApiError> {
    let files = app.sandboxes.files(&caller.account, &id).await?;
    Ok(Json(convert::entry(files.info(query.required("path")?, user(query.get("username"))).await?)))
}

/// Removes a file, or a directory with all it holds.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/files", tag = "files",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("path" = String, Query, description = "The absolute path"),
        ("username" = Option<String>, Query, description = "Who removes; default `user`"),
    ),
    responses(
        (status = 200, description = "It is not there; false if it was not before", body = Removed),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
    )
)]
async fn remove(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<Removed>, ApiError> {
    let query = removal(&uri, &headers)?;
    let files = app.sandboxes.files(&caller.account, &id).await?;
    let removed = files.remove(query.required("path")?, user(query.get("username"))).await?;
    Ok(Json(Removed { removed }))
}

/// The query of a removal.
///
/// The Python client puts the path into the query as it is. Its HTTP library then escapes what cannot stand there,
/// but not `&` and `+`, and takes `#` and all after it for a fragment, which is not sent. From that client the
/// path is therefore everything up to the last `&username=`, with `+` as a plus sign. Where that is missing the
/// path was cut off, and removing what is left of it would remove something else.
fn removal(uri: &Uri, headers: &HeaderMap) -> Result<Query, ApiError> {
    let query = uri.query().unwrap_or_default();
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    if !agent.starts_with("python-httpx/") {
        return Ok(Query::decode(query));
    }
    let Some((path, username)) = query.strip_prefix("path=").and_then(|rest| rest.rsplit_once("&username="))
    else {
        let message =
            "path: cut off at '#', or username is missing; this client cannot remove a path with '#'";
        return Err(ApiError::bad_request(message));
    };
    let escape = |text: &str| text.replace('&', "%26").replace('+', "%2B");
    Ok(Query::decode(&format!("path={}&username={}", escape(path), escape(username))))
}

/// Renames.
#[utoipa::path(
    patch, path = "/sandboxes/{id}/files", tag = "files", request_body = Rename,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "What is there now", body = Entry),
        (status = 404, description = "No such sandbox, or nothing there", body = ErrorBody),
    )
)]
async fn rename(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    JsonBody(Rename { old_path, new_path, username }): JsonBody<Rename>,
) -> Result<Json<Entry>, ApiError> {
    let files = app.sandboxes.files(&caller.account, &id).await?;
    let entry = files.rename(&old_path, &new_path, user(username.as_deref())).await?;
    Ok(Json(convert::entry(entry)))
}

/// Makes a directory with its parents.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/mkdir", tag = "files", request_body = MakeDirectory,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "It is there; false if it was before", body = MadeDirectory),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
    )
)]
async fn make_directory(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    JsonBody(MakeDirectory { path, username }): JsonBody<MakeDirectory>,
) -> Result<Json<MadeDirectory>, ApiError> {
    let files = app.sandboxes.files(&caller.account, &id).await?;
    Ok(Json(MadeDirectory { created: files.mkdir(&path, user(username.as_deref())).await? }))
}

fn user(given: Option<&str>) -> Option<&str> {
    given.filter(|user| !user.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removal_of(query: &str, agent: &str) -> Result<(String, Option<String>), ApiError> {
        let uri = format!("/sandboxes/sbx-00000000/files?{query}").parse().unwrap();
        let headers = HeaderMap::from_iter([(header::USER_AGENT, agent.parse().unwrap())]);
        let query = removal(&uri, &headers)?;
        Ok((query.required("path")?.to_owned(), user(query.get("username")).map(str::to_owned)))
    }

    #[test]
    fn the_unescaped_path_of_the_python_client_is_the_path_it_was_given() {
        for (query, path) in [
            ("path=/a.txt&username=user", "/a.txt"),
            ("path=/a%20b&username=user", "/a b"),
            ("path=/a+b&username=user", "/a+b"),
            ("path=/a&b=c&username=user", "/a&b=c"),
            ("path=/a&username=x&username=user", "/a&username=x"),
            ("path=/%C3%A4&username=user", "/ä"),
        ] {
            let expected = (path.to_owned(), Some("user".to_owned()));
            assert_eq!(removal_of(query, "python-httpx/0.28.1").unwrap(), expected, "{query}");
        }
    }

    #[test]
    fn a_path_that_the_python_client_cut_off_removes_nothing() {
        assert!(removal_of("path=/data/", "python-httpx/0.28.1").is_err());
        assert_eq!(removal_of("path=/data/", "Go-http-client/2.0").unwrap().0, "/data/");
    }

    #[test]
    fn other_clients_escape_their_paths() {
        let expected = ("/a b&c+d".to_owned(), Some("root".to_owned()));
        for query in ["path=%2Fa+b%26c%2Bd&username=root", "username=root&path=/a%20b%26c%2Bd"] {
            assert_eq!(removal_of(query, "node").unwrap(), expected);
        }
    }
}
