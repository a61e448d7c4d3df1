//! `bailiwick serve`: the daemon.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use api::AccountName;
use secrecy::ExposeSecret;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    config::{Config, DataArgs, ServeArgs},
    engine::Engine,
    exit,
};

/// How long running requests may take to finish when the daemon is told to end.
const DRAIN: Duration = Duration::from_secs(30);
/// Most connections of clients at once.
const CONNECTIONS: usize = 4096;

/// Runs the daemon until it is told to end.
pub(crate) fn run(data: &DataArgs, args: &ServeArgs) -> Result<u8> {
    let config = Config::load(data, args)?;
    crate::logging::start(config.log_json);
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    runtime.block_on(serve(&config))?;
    Ok(exit::OK)
}

async fn serve(config: &Config) -> Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let engine = Engine::start(config).await?;
    let server = server::Server::bind(&server::ServeConfig {
        listen: config.listen.clone(),
        tls: config.tls.clone().map(|(certificate, key)| server::TlsFiles { certificate, key }),
        connections: CONNECTIONS,
        drain: DRAIN,
        ..server::ServeConfig::default()
    })
    .await?;
    first_key(&engine).await?;
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    for address in server.addresses() {
        anstream::println!("bailiwick {} listening on {scheme}://{address}", env!("CARGO_PKG_VERSION"));
    }
    let router = server::router(engine.deps());
    server.run(router, stop).await;
    info!("draining is over; sandboxes go on and are adopted by the next daemon, nothing passes until then");
    engine.shutdown().await;
    Ok(())
}

/// Makes a key at the first start, and shows it this once.
async fn first_key(engine: &Engine) -> Result<()> {
    if !engine.store().keys().list(None).await.context("listing the API keys")?.is_empty() {
        return Ok(());
    }
    let name = "first start".parse()?;
    let key = server::keys::create(engine.store(), &AccountName::operator(), &name).await?.secret;
    anstream::println!(
        "API key (shown this once; `bailiwick keys create` makes more): {}",
        key.expose_secret()
    );
    Ok(())
}

fn stop_on_signals(stop: CancellationToken) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("told to end: finishing running requests");
        stop.cancel();
    });
    Ok(())
}

/// What the routes get.
impl Engine {
    fn deps(&self) -> server::Deps {
        server::Deps {
            sandboxes: Arc::new(self.manager().clone()),
            store: self.store().clone(),
            audit: self.audit().clone(),
        }
    }
}
