//! The course of a test.

use std::{
    cell::Cell,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use netns::NetNs;
use policy::{Policy, Topology};
use sandbox::SandboxId;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    Listener, Options, Progress,
    cases::{Attempt, Case, Plan, User},
    ground::Ground,
    inside::Probe,
    names::Names,
    node::{ACCOUNT, Node},
    oracle::{self, Finding, Records},
    probe,
    report::{CaseReport, Group, Machine, Outcome, REPORT_VERSION, Report, Summary},
    sabotage,
    sinks::Indexed,
    state::State,
    world::World,
};

/// How long the last events are waited for.
const EVENTS: Duration = Duration::from_secs(4);
/// After this time no more attacks are begun. It takes that long only where nothing is answered any more.
const TIME: Duration = Duration::from_secs(30);
/// How often they are looked at meanwhile.
const POLL: Duration = Duration::from_millis(50);

/// Everything that a test is made with.
pub(crate) struct Attack<'a> {
    pub(crate) options: &'a Options,
    pub(crate) machine: &'a [IpAddr],
    pub(crate) names: &'a Arc<Names>,
    pub(crate) world: &'a World,
    pub(crate) directory: &'a Path,
}

/// What was tried, with what came of each attempt.
#[derive(Default)]
struct Tried(Vec<(Case, Vec<probe::Outcome>)>);

impl Tried {
    fn attempts(&self) -> Vec<(&Attempt, &probe::Outcome)> {
        self.0.iter().flat_map(|(case, outcomes)| case.attempts.iter().zip(outcomes)).collect()
    }
}

/// The probes in the sandbox.
pub(crate) struct Probes {
    pub(crate) user: Probe,
    root: Probe,
}

impl Attack<'_> {
    /// Runs the test. To be called on the node.
    pub(crate) async fn run(&self, progress: &mut Listener<'_>) -> Result<Report> {
        let (started, begun) = (Timestamp::now(), Instant::now());
        progress(Progress::Step("building the sandbox"));
        let node = Node::start(self.options, self.directory, self.machine).await?;
        let mut sandboxes = Vec::new();
        let attacked = tokio::select! {
            attacked = self.attacked(&node, &mut sandboxes, progress) => attacked,
            interrupted = interruption() => interrupted,
        };
        progress(Progress::Step("ending the sandbox"));
        let stopped = node.stop(&sandboxes).await;
        let (topology, cases) = attacked?;
        stopped?;
        Ok(Report {
            version: REPORT_VERSION,
            started,
            duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            machine: Machine {
                bailiwick: self.options.version.clone(),
                kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
                architecture: std::env::consts::ARCH.to_owned(),
                template: self.options.template.clone(),
            },
            policy_source: self.options.policy_source.clone(),
            policy: self.options.policy.clone(),
            topology: match topology {
                Topology::NoWire => "no_wire",
                Topology::Wire => "wire",
            }
            .to_owned(),
            sabotage: self.options.sabotage.map(|way| way.word().to_owned()),
            summary: Summary::of(&cases),
            cases,
        })
    }

    async fn attacked(
        &self,
        node: &Node,
        sandboxes: &mut Vec<SandboxId>,
        progress: &mut Listener<'_>,
    ) -> Result<(Topology, Vec<CaseReport>)> {
        let policy = Arc::new(Policy::compile(&self.options.policy, node.floor())?);
        let ground = Ground::find(policy, self.names);
        let id = node.sandbox(self.options, self.options.policy.clone()).await?;
        sandboxes.push(id.clone());
        let start = |user| Probe::start(&node.manager, ACCOUNT, &id, user, &self.options.probe_arguments);
        let mut probes = Probes { user: start(User::User).await?, root: start(User::Root).await? };
        let next_port = Cell::new(0);
        let plan = Plan { ground: &ground, names: self.names, machine: self.machine, next_port: &next_port };
        // As late as can be: the gate finds out by itself, too, and ends the sandbox.
        if let Some(way) = self.options.sabotage {
            sabotage::commit(way, &NetNs::from(node.namespace()?), self.world)
                .context("breaking the sandbox")?;
        }
        let mut tried = Tried::default();
        let begun = Instant::now();
        for group in Group::ALL {
            if !self.options.groups.is_empty() && !self.options.groups.contains(&group) {
                continue;
            }
            if begun.elapsed() > TIME {
                tried.0.extend(untried(plan.cases(group)?));
                continue;
            }
            probes.group(&plan, group, &mut tried, progress).await?;
            if group == Group::State {
                let changed =
                    State { probes: &mut probes, node, id: &id, plan: &plan, options: self.options };
                tried.0.extend(changed.cases(sandboxes).await?);
            }
        }
        progress(Progress::Step("reading the events"));
        let cases = self.judged(node, &id, &ground, &tried).await?;
        Ok((ground.policy.topology(), cases))
    }

    /// Judges everything that was tried. Events that have not come yet are waited for.
    async fn judged(
        &self,
        node: &Node,
        id: &SandboxId,
        ground: &Ground,
        tried: &Tried,
    ) -> Result<Vec<CaseReport>> {
        let deadline = Instant::now() + EVENTS;
        let attempts = tried.attempts();
        loop {
            let seen: Vec<Indexed> = self.world.sightings.all()?.into_iter().map(Indexed::new).collect();
            let events = node.events(id).await?;
            let records = Records { seen: &seen, events: &events, tried: &attempts };
            let of_case = |(case, outcomes): &(Case, Vec<probe::Outcome>)| {
                let tried = case.attempts.iter().zip(outcomes);
                let findings: Vec<Finding> =
                    tried.map(|(attempt, outcome)| records.judge(attempt, outcome)).collect();
                oracle::sum_up(case, &findings)
            };
            let mut reports: Vec<CaseReport> = tried.0.iter().map(of_case).collect();
            let is_incomplete = reports.iter().any(|report| report.outcome == Outcome::Unrecorded);
            if is_incomplete && Instant::now() < deadline {
                tokio::time::sleep(POLL).await;
                continue;
            }
            reports.push(oracle::unexplained(&records, ground));
            return Ok(reports);
        }
    }
}

/// Attacks for which there is no time left.
fn untried(cases: Vec<Case>) -> impl Iterator<Item = (Case, Vec<probe::Outcome>)> {
    cases.into_iter().map(|case| {
        let fault = |_| probe::Outcome::Fault(format!("not tried: the others took {} s", TIME.as_secs()));
        let outcomes = case.attempts.iter().map(fault).collect();
        (case, outcomes)
    })
}

impl Probes {
    /// Tries the attacks of a group, between requests that are permitted.
    async fn group(
        &mut self,
        plan: &Plan<'_>,
        group: Group,
        tried: &mut Tried,
        progress: &mut Listener<'_>,
    ) -> Result<()> {
        let mut controls = Case {
            id: format!("{}0", group.letter()),
            group,
            title: "what is permitted gets through, before and after",
            attempts: Vec::new(),
        };
        let mut outcomes = Vec::new();
        self.control(plan, &mut controls, &mut outcomes).await?;
        let cases = plan.cases(group)?;
        progress(Progress::Trying { group, attempts: cases.iter().map(|case| case.attempts.len()).sum() });
        let attacks = self.cases(cases).await?;
        self.control(plan, &mut controls, &mut outcomes).await?;
        tried.0.push((controls, outcomes));
        tried.0.extend(attacks);
        Ok(())
    }

    /// One after the other: the look-ups come first, and what they find is what the others go to.
    pub(crate) async fn control(
        &mut self,
        plan: &Plan<'_>,
        controls: &mut Case,
        outcomes: &mut Vec<probe::Outcome>,
    ) -> Result<()> {
        for attempts in plan.controls()? {
            let actions = attempts.iter().map(|attempt| attempt.action.clone()).collect();
            outcomes.extend(self.user.order(actions).await?);
            controls.attempts.extend(attempts);
        }
        Ok(())
    }

    /// All attempts of some attacks, many at a time.
    async fn cases(&mut self, cases: Vec<Case>) -> Result<Vec<(Case, Vec<probe::Outcome>)>> {
        let untried = || probe::Outcome::Fault("it was not tried".to_owned());
        let mut tried: Vec<(Case, Vec<probe::Outcome>)> = cases
            .into_iter()
            .map(|case| {
                let outcomes = case.attempts.iter().map(|_| untried()).collect();
                (case, outcomes)
            })
            .collect();
        for user in [User::User, User::Root] {
            let slots = tried.iter_mut().flat_map(|(case, outcomes)| case.attempts.iter().zip(outcomes));
            let (slots, actions): (Vec<_>, Vec<_>) = slots
                .filter(|(attempt, _)| attempt.user == user)
                .map(|(attempt, slot)| (slot, attempt.action.clone()))
                .unzip();
            if !actions.is_empty() {
                let outcomes = self.of(user).order(actions).await?;
                slots.into_iter().zip(outcomes).for_each(|(slot, outcome)| *slot = outcome);
            }
        }
        Ok(tried)
    }

    fn of(&mut self, user: User) -> &mut Probe {
        match user {
            User::User => &mut self.user,
            User::Root => &mut self.root,
        }
    }
}

/// Waits until the test is told to end.
async fn interruption<T>() -> Result<T> {
    let mut terminate = signal(SignalKind::terminate()).context("handling SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handling SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    bail!("interrupted")
}
