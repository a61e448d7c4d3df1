//! Load generators, each a process of its own inside a client's namespace. What they measure they print as JSON.

mod connections;
mod first_byte;
mod queries;
mod refused;
mod streams;

use std::{
    net::{SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use netns::NetNs;
pub(crate) use queries::look_up;
use serde::{Deserialize, Serialize};

use crate::{
    child,
    network::{SERVER, SERVER_PORT},
};

/// The name that every client claims, and every proxy permits.
pub(crate) const NAME: &str = "load.test";

/// What to generate.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum Load {
    /// Connect, greet, read one byte, close: as often as possible
    Connections {
        #[command(flatten)]
        client: Client,
        /// How many at a time
        #[arg(long)]
        parallel: usize,
    },
    /// Connect, greet, read one byte: how long that takes, one after the other
    FirstByte {
        #[command(flatten)]
        client: Client,
    },
    /// The same, a thousand a second at most: how long connecting takes
    Connect {
        #[command(flatten)]
        client: Client,
    },
    /// Connect to where everything is refused, so many times a second
    Refused {
        #[command(flatten)]
        client: Client,
        /// How many a second at most
        #[arg(long)]
        rate: u32,
    },
    /// Move as many bytes as possible
    Streams {
        #[command(flatten)]
        client: Client,
        /// How many at a time
        #[arg(long)]
        parallel: usize,
        /// Which way
        #[arg(long)]
        direction: Direction,
    },
    /// Ask for the address of one name as often as possible
    QueryRate {
        /// The server to ask
        #[arg(long)]
        server: SocketAddr,
        /// How many questions are open at a time
        #[arg(long)]
        parallel: u16,
        /// How long to go on
        #[arg(long)]
        milliseconds: u64,
    },
    /// Ask for addresses of names
    Queries {
        /// The server to ask
        #[arg(long)]
        server: SocketAddr,
        /// The number of the first name
        #[arg(long)]
        first: u16,
        /// How many names
        #[arg(long)]
        count: u16,
    },
}

/// What all clients of the server have in common.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Client {
    /// A resolver to ask for the name before, as a program would
    #[arg(long)]
    pub(crate) resolver: Option<SocketAddr>,
    /// How long to go on
    #[arg(long)]
    pub(crate) milliseconds: u64,
}

/// Which way bytes flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Direction {
    /// From the client to the server
    Up,
    /// From the server to the client
    Down,
}

impl Direction {
    /// The word for it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// The figure: a rate (per second, Gbit/s) or a median (µs).
    pub(crate) value: f64,
    /// Of a median, the 99th percentile.
    pub(crate) p99: Option<f64>,
    /// How many attempts failed; they do not count.
    pub(crate) failed: u64,
}

impl Load {
    /// Runs this load in `namespace`, in a process of its own.
    pub(crate) fn run_in(self, namespace: &NetNs) -> Result<Outcome> {
        let mut arguments = vec!["load".to_owned()];
        let mut add = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
        match self {
            Self::Connections { parallel, .. } => add("parallel", parallel.to_string()),
            Self::FirstByte { .. } | Self::Connect { .. } => {}
            Self::Refused { rate, .. } => add("rate", rate.to_string()),
            Self::Streams { parallel, direction, .. } => {
                add("parallel", parallel.to_string());
                add("direction", direction.as_str().to_owned());
            }
            Self::QueryRate { server, parallel, milliseconds } => {
                add("server", server.to_string());
                add("parallel", parallel.to_string());
                add("milliseconds", milliseconds.to_string());
            }
            Self::Queries { server, first, count } => {
                add("server", server.to_string());
                add("first", first.to_string());
                add("count", count.to_string());
            }
        }
        let (kind, client) = match self {
            Self::Connections { client, .. } => ("connections", Some(client)),
            Self::FirstByte { client } => ("first-byte", Some(client)),
            Self::Connect { client } => ("connect", Some(client)),
            Self::Refused { client, .. } => ("refused", Some(client)),
            Self::Streams { client, .. } => ("streams", Some(client)),
            Self::Queries { .. } => ("queries", None),
            Self::QueryRate { .. } => ("query-rate", None),
        };
        if let Some(client) = client {
            add("milliseconds", client.milliseconds.to_string());
            if let Some(resolver) = client.resolver {
                add("resolver", resolver.to_string());
            }
        }
        arguments.insert(1, kind.to_owned());
        let outcome: Outcome = child::json(namespace, child::own(&arguments)?)?;
        anyhow::ensure!(outcome.failed == 0 || outcome.value > 0.0, "{kind}: all attempts failed");
        Ok(outcome)
    }

    /// Generates it here and prints the outcome.
    pub(crate) fn generate(self) -> Result<()> {
        let outcome = match self {
            Self::Connections { client, parallel } => {
                connections::run(client.target()?, parallel, client.time())
            }
            Self::FirstByte { client } => first_byte::run(client.target()?, client.time()),
            Self::Connect { client } => first_byte::connect(client.target()?, client.time()),
            Self::Refused { client, rate } => refused::run(rate, client.time()),
            Self::Streams { client, parallel, direction } => {
                streams::run(client.target()?, parallel, direction, client.time())
            }
            Self::Queries { server, first, count } => queries::run(server, first, count),
            Self::QueryRate { server, parallel, milliseconds } => {
                queries::rate(server, parallel, Duration::from_millis(milliseconds))
            }
        }?;
        anstream::println!("{}", serde_json::to_string(&outcome)?);
        Ok(())
    }
}

impl Client {
    fn time(self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }

    /// Where to connect to; looked up first, where there is a resolver.
    fn target(self) -> Result<SocketAddr> {
        let address = match self.resolver {
            Some(resolver) => queries::look_up(resolver, NAME).context("looking up the server")?,
            None => SERVER,
        };
        Ok(SocketAddrV4::new(address, SERVER_PORT).into())
    }
}

/// How long anything may take before it counts as failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
