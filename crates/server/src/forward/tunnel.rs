//! A WebSocket: bytes both ways, after both sides have agreed to it.

use std::{pin::pin, time::Duration};

use axum::{
    body::Body,
    http::{StatusCode, header},
    response::Response,
};
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy, split},
    time::timeout,
};

use super::{Asked, Driver, End, headers, set_upgrade};
use crate::error::ApiError;

/// How long one side may take to end after the other has.
const FAREWELL: Duration = Duration::from_secs(10);

/// Answers that the protocol is switched, and passes bytes on from then until one side ends, or both have to.
pub(super) fn open(
    asked: &Asked,
    mut answer: hyper::Response<Incoming>,
    client: Option<OnUpgrade>,
    driver: Driver,
    end: End,
) -> Result<Response, ApiError> {
    let Some(client) = client else {
        return Err(asked.protocol("switched protocols, and was not asked to"));
    };
    if !headers::has_token(answer.headers(), &header::UPGRADE, "websocket") {
        return Err(asked.protocol("switched to a protocol that it was not asked for"));
    }
    let inner = hyper::upgrade::on(&mut answer);
    tokio::spawn(async move {
        let tunnel = async {
            let ((), inner, client) = tokio::join!(driver, inner, client);
            let (Ok(inner), Ok(client)) = (inner, client) else { return };
            pass(TokioIo::new(client), TokioIo::new(inner)).await;
        };
        tokio::select! {
            () = tunnel => {}
            why = end => tracing::debug!(why = why.message, "a WebSocket to a port of a sandbox was cut"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers::of_switch(answer.headers());
    set_upgrade(response.headers_mut());
    Ok(response)
}

async fn pass(client: TokioIo<Upgraded>, inner: TokioIo<Upgraded>) {
    let ((from_client, to_client), (from_inner, to_inner)) = (split(client), split(inner));
    let mut up = pin!(pass_one_way(from_client, to_inner));
    let mut down = pin!(pass_one_way(from_inner, to_client));
    let _left_over = tokio::select! {
        () = &mut up => timeout(FAREWELL, down).await,
        () = &mut down => timeout(FAREWELL, up).await,
    };
}

/// Passes bytes on until there are no more, or nobody takes them, and says that to whoever takes them.
async fn pass_one_way(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
    let _broken = copy(&mut from, &mut to).await;
    let _gone = to.shutdown().await;
}
