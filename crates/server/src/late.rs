//! Answers that may take hours.
//!
//! Some HTTP libraries give up when no header has come for five minutes, and proxies on the way do so sooner. So
//! after a while the headers go out with status 200, then a space every now and then, and at last the JSON:
//! space before it is valid, and every client reads the body as a whole.

use std::{convert::Infallible, pin::Pin, time::Duration};

use axum::{
    body::Body,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::{
    ended::{Ended, Json},
    error::ApiError,
};

/// How long an answer may keep its own status, and then how often a space is sent.
const PATIENCE: Duration = Duration::from_secs(15);

type Work = Pin<Box<dyn Future<Output = Result<Ended, ApiError>> + Send>>;

/// What a late answer does next.
enum Late {
    /// Sends spaces, the first of them now or later.
    Wait(Work, Duration),
    /// Sends what there is.
    Write(Json),
}

/// Waits for `work`. Dropping the response, which is what happens when the client is gone, drops `work`.
///
/// An error that comes after the headers is told as the end of the command: its message in `stderr` and exit code
/// 1. A broken connection would make clients repeat a request that must not be repeated.
pub(crate) async fn respond(
    work: impl Future<Output = Result<Ended, ApiError>> + Send + 'static,
) -> Result<Response, ApiError> {
    let mut work: Work = Box::pin(work);
    if let Ok(result) = tokio::time::timeout(PATIENCE, &mut work).await {
        return result.map(IntoResponse::into_response);
    }
    let body = stream::unfold(Late::Wait(work, Duration::ZERO), |late| async {
        let mut json = match late {
            Late::Wait(mut work, patience) => match tokio::time::timeout(patience, &mut work).await {
                Err(_) => return Some((Bytes::from_static(b" "), Late::Wait(work, PATIENCE))),
                Ok(result) => result.unwrap_or_else(|error| Ended::failed(error.message)).into_json(),
            },
            Late::Write(json) => json,
        };
        let piece = json.next()?;
        Some((piece, Late::Write(json)))
    });
    let body = Body::from_stream(body.map(Ok::<_, Infallible>));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

#[cfg(test)]
mod tests {
    use api::CommandExit;
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
            Ok(exit("done").into())
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
