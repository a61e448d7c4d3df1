//! Answers that may take hours.
//!
//! Some HTTP libraries give up when no header has come for five minutes, and proxies on the way do so sooner. So
//! after a while the headers go out with status 200, then a space every now and then, and at last the JSON:
//! space before it is valid, and every client reads the body as a whole.

use std::{convert::Infallible, pin::Pin, time::Duration};

use api::CommandExit;
use axum::{
    Json,
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;

use crate::error::ApiError;

/// How long an answer may keep its own status, and then how often a space is sent.
const PATIENCE: Duration = Duration::from_secs(15);

type Work = Pin<Box<dyn Future<Output = Result<CommandExit, ApiError>> + Send>>;

/// Waits for `work`. Dropping the response, which is what happens when the client is gone, drops `work`.
///
/// An error that comes after the headers is told as the end of the command: its message in `stderr` and exit code
/// 1. A broken connection would make clients repeat a request that must not be repeated.
pub(crate) async fn respond(
    work: impl Future<Output = Result<CommandExit, ApiError>> + Send + 'static,
) -> Result<Response, ApiError> {
    let mut work: Work = Box::pin(work);
    if let Ok(result) = tokio::time::timeout(PATIENCE, &mut work).await {
        return result.map(|exit| Json(exit).into_response());
    }
    let body = stream::unfold(Some((work, true)), |waiting| async {
        let (mut work, first) = waiting?;
        let patience = if first { Duration::ZERO } else { PATIENCE };
        match tokio::time::timeout(patience, &mut work).await {
            Err(_) => Some((Ok::<_, Infallible>(Bytes::from_static(b" ")), Some((work, false)))),
            Ok(result) => Some((Ok(last_chunk(result)), None)),
        }
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response())
}

fn last_chunk(result: Result<CommandExit, ApiError>) -> Bytes {
    let exit = result.unwrap_or_else(|error| CommandExit {
        stderr: error.message,
        exit_code: 1,
        ..CommandExit::default()
    });
    serde_json::to_vec(&exit).expect("strings and a number are always JSON").into()
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use http_body_util::BodyExt;
    use tokio::{sync::oneshot, time::Instant};

    use super::*;

    fn exit(stdout: &str) -> CommandExit {
        CommandExit { stdout: stdout.to_owned(), ..CommandExit::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_sends_headers_early_and_spaces_until_the_json() {
        let begun = Instant::now();
        let response = respond(async {
            tokio::time::sleep(Duration::from_secs(3_600)).await;
            Ok(exit("done"))
        })
        .await
        .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert!(begun.elapsed() < Duration::from_secs(60), "headers before any proxy gives up");

        let mut body = response.into_body();
        let (mut all, mut last) = (Vec::new(), Instant::now());
        while let Some(frame) = body.frame().await {
            assert!(last.elapsed() < Duration::from_secs(60));
            last = Instant::now();
            all.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        assert!(all.starts_with(b" "));
        assert_eq!(serde_json::from_slice::<CommandExit>(&all).unwrap(), exit("done"));
        assert!(begun.elapsed() >= Duration::from_secs(3_600));
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_keeps_its_status_early_and_is_an_exit_late() {
        let gone = || ApiError::new(StatusCode::GONE, "sandbox was killed");
        assert_eq!(respond(async move { Err(gone()) }).await.unwrap_err(), gone());
        let response = respond(async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Err(gone())
        });
        let body = response.await.unwrap().into_body().collect().await.unwrap().to_bytes();
        let exit: CommandExit = serde_json::from_slice(&body).unwrap();
        assert_eq!((exit.exit_code, exit.stderr.as_str()), (1, "sandbox was killed"));
    }

    #[tokio::test(start_paused = true)]
    async fn dropping_the_response_drops_the_work() {
        let (running, ended) = oneshot::channel::<()>();
        let response = respond(async move {
            let _running = running;
            std::future::pending().await
        });
        drop(response.await.unwrap());
        assert!(ended.await.is_err());
    }
}
