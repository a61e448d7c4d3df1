//! The REST API: routes, authentication, listening.
//!
//! Clients written for the Declaw API work against it unchanged. [`router`] gives the routes over a sandbox
//! manager, a store and an audit pipeline; [`Server`] listens and speaks HTTP/1.1 and, over TLS or by prior
//! knowledge, HTTP/2. What the routes answer is in the OpenAPI document at `/openapi.json`, which is made from the
//! same types and handlers.
//!
//! Rules that hold for every route: a key in `Authorization: Bearer` or `X-API-Key`; errors are JSON objects with
//! `message`; nothing is redirected; what a request asks for and cannot be done is refused, never ignored.

#![forbid(unsafe_code)]

mod absent;
mod auth;
mod convert;
mod ended;
mod error;
mod exactly;
mod follow;
mod forward;
mod idempotency;
pub mod keys;
mod late;
mod listen;
mod manager;
mod metrics;
mod opening;
mod peer;
mod ratchets;
mod refused_body;
mod request;
mod room;
mod routes;
mod sandboxes;
mod sse;
mod text;
mod trace;

use std::sync::Arc;

use axum::Router;
use tokio_util::sync::CancellationToken;

pub use listen::{ServeConfig, ServeError, Server, TlsFiles};
pub use routes::{openapi, router};
pub use sandboxes::{Changes, CommandEvents, Content, Doing, Files, Sandboxes, SessionEvents, Source};

/// What the routes work with.
#[derive(Clone)]
pub struct Deps {
    /// The sandbox manager.
    pub sandboxes: Arc<dyn Sandboxes>,
    /// Keys, idempotency records and events.
    pub store: store::Store,
    /// The audit pipeline, flushed before events are read.
    pub audit: audit::Audit,
}

/// What handlers get. Cheap to clone.
#[derive(Clone)]
pub(crate) struct App(Arc<AppInner>);

pub(crate) struct AppInner {
    pub(crate) sandboxes: Arc<dyn Sandboxes>,
    pub(crate) store: store::Store,
    pub(crate) audit: audit::Audit,
    pub(crate) keys: Arc<keys::KeyRing>,
    pub(crate) last_purge: idempotency::LastPurge,
}

impl std::ops::Deref for App {
    type Target = AppInner;

    fn deref(&self) -> &AppInner {
        &self.0
    }
}

impl App {
    pub(crate) fn new(deps: Deps) -> Self {
        let Deps { sandboxes, store, audit } = deps;
        let keys = Arc::new(keys::KeyRing::new(store.clone()));
        Self(Arc::new(AppInner {
            sandboxes,
            store,
            audit,
            keys,
            last_purge: idempotency::LastPurge::default(),
        }))
    }
}

/// Listens and answers until `stop`, then drains.
///
/// # Errors
/// [`ServeError`] if it cannot listen.
pub async fn serve(config: ServeConfig, deps: Deps, stop: CancellationToken) -> Result<(), ServeError> {
    let server = Server::bind(&config).await?;
    let router: Router = router(deps);
    server.run(router, stop).await;
    Ok(())
}
