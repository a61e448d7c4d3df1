//! Attacks on a throw-away sandbox under somebody's policy, and a report of what got out.
//!
//! The sandbox and its gate are those of the product. They stand in a namespace whose only way out leads to a world
//! that is a canary on every address, port and protocol, so that no packet can leave the machine, and everything that
//! gets past the gate is seen. What has to become of each attack is what [`policy::Policy::judge`] says of it: an
//! attack that the policy permits has to get through.

#![forbid(unsafe_code)]

mod attack;
mod authority;
mod cases;
mod forms;
mod ground;
mod inside;
mod names;
mod node;
mod oracle;
mod probe;
mod report;
mod sabotage;
mod signature;
mod sinks;
mod state;
mod world;

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use policy::{Floor, Policy, PolicySpec};

pub use probe::serve as serve_probe;
pub use report::{CaseReport, Group, Machine, Outcome, REPORT_VERSION, Report, Summary};
pub use sabotage::Sabotage;
pub use signature::{KEY_FILE, PublicKey, Signature, SignatureError, SignedReport, SigningKey};

/// What to test, and with what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The policy of the sandbox.
    pub policy: PolicySpec,
    /// Where it is from, for the report.
    pub policy_source: String,
    /// Which kinds of attacks; empty is all of them.
    pub groups: Vec<Group>,
    /// The template of the sandbox.
    pub template: String,
    /// The directory of templates.
    pub templates_dir: PathBuf,
    /// Where a directory for the time of the test can be made.
    pub directory: PathBuf,
    /// The program that is the first process of each sandbox.
    pub init_binary: PathBuf,
    /// The program that calls [`serve_probe`], and the arguments with which it does.
    pub probe: PathBuf,
    /// See `probe`. Words without blanks or characters that mean something to a shell.
    pub probe_arguments: Vec<String>,
    /// The version of this program, for the report.
    pub version: String,
    /// Break the sandbox on purpose.
    pub sabotage: Option<Sabotage>,
}

/// How far the test is.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// This is being done.
    Step(&'a str),
    /// These attacks are being tried.
    Trying {
        /// Their kind.
        group: Group,
        /// In how many forms.
        attempts: usize,
    },
}

/// Is told how far the test is.
pub type Listener<'a> = dyn FnMut(Progress<'_>) + Send + 'a;

/// The policy that is tested when no other is given: one name, and nothing else.
pub fn default_policy() -> PolicySpec {
    PolicySpec {
        allow_out: vec!["api.example.com".to_owned()],
        deny_out: vec!["0.0.0.0/0".to_owned()],
        ..PolicySpec::default()
    }
}

/// Makes a sandbox, attacks what fences it in, and ends it. Needs root. Takes some ten seconds.
///
/// # Errors
/// [`policy::PolicyError`] in the chain if the policy is not valid; else what kept the test from being made.
/// An attack that gets out is no error, but in the report.
pub fn run(options: &Options, progress: &mut Listener<'_>) -> Result<Report> {
    let machine = machine_addresses()?;
    // Bad input is found before anything is made, over the floor that the policy has on this machine.
    Policy::compile(&options.policy, Arc::new(Floor::new(machine.iter().copied())))?;
    std::fs::create_dir_all(&options.directory)
        .with_context(|| format!("creating {}", options.directory.display()))?;
    let directory = tempfile::Builder::new()
        .prefix("selftest-")
        .tempdir_in(&options.directory)
        .with_context(|| format!("creating a directory in {}", options.directory.display()))?;
    let names = Arc::new(names::Names::default());
    let world = world::World::build(Arc::clone(&names)).context("building the world of the test")?;
    let attack = attack::Attack {
        options,
        machine: &machine,
        names: &names,
        world: &world,
        directory: directory.path(),
    };
    // The gate dials from the namespace of its threads, which are started from this one.
    world.node.run(|| -> Result<Report> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(attack.run(progress))
    })?
}

fn machine_addresses() -> Result<Vec<IpAddr>> {
    let addresses = netns::Connection::open().and_then(|mut connection| connection.addresses());
    let addresses = addresses.context("listing the addresses of this machine")?;
    Ok(addresses.into_iter().map(|entry| entry.address.addr()).collect())
}
