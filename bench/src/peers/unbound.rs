//! Unbound: a caching resolver that an ordinary machine has.

use std::fs;

use anyhow::{Context, Result};

use super::wait_for_resolver;
use crate::{
    child::{Child, Command},
    network::{AUTHORITY, Network, ROUTER},
};

/// A running Unbound.
pub(crate) struct Unbound {
    _child: Child,
    _directory: tempfile::TempDir,
}

impl Unbound {
    /// Starts it between its client and the world.
    pub(crate) fn start(network: &Network) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("unbound.conf");
        fs::write(&path, configuration())?;
        let mut command = Command::new("unbound");
        command.args(["-d", "-p", "-c"]).arg(&path);
        let child = Child::start(&network.proxied.router, command)?;
        let client = &network.proxied.client;
        client.run(|| wait_for_resolver((ROUTER, 53).into()))?.context("starting Unbound")?;
        Ok(Self { _child: child, _directory: directory })
    }
}

fn configuration() -> String {
    format!(
        "server:
    interface: {ROUTER}
    access-control: 0.0.0.0/0 allow
    num-threads: 1
    chroot: \"\"
    username: \"\"
    pidfile: \"\"
    use-syslog: no
    verbosity: 0
    module-config: iterator
    do-ip6: no
    local-zone: test. nodefault
remote-control:
    control-enable: no
forward-zone:
    name: .
    forward-addr: {AUTHORITY}
"
    )
}
