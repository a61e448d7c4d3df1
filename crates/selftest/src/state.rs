//! Attacks that are about what happens while a sandbox runs: another policy, a pause, a neighbour.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use policy::PolicySpec;
use sandbox::SandboxId;

use crate::{
    Options,
    attack::Probes,
    cases::{Attempt, Case, EventKey, Plan, User, canary},
    forms::{http, tls::Hello},
    ground::Expect,
    inside::Probe,
    node::{ACCOUNT, Node},
    probe::{Action, Bytes, Outcome},
    report::Group,
    sinks::Trace,
};

/// Within which time a connection that is no longer permitted has to be cut.
const CUT: Duration = Duration::from_secs(1);
/// What nothing is permitted by.
const BLACKOUT: &str = "0.0.0.0/0";
/// An entry that no policy may have: anybody can register names below it.
const INVALID: &str = "*.com";

/// What the attacks are made with.
pub(crate) struct State<'a> {
    pub(crate) probes: &'a mut Probes,
    pub(crate) node: &'a Node,
    pub(crate) id: &'a SandboxId,
    pub(crate) plan: &'a Plan<'a>,
    pub(crate) options: &'a Options,
}

/// An attack with what came of its forms.
type Tried = (Case, Vec<Outcome>);

impl State<'_> {
    /// Tries all of them. Sandboxes that are made for it are added to `sandboxes`.
    pub(crate) async fn cases(mut self, sandboxes: &mut Vec<SandboxId>) -> Result<Vec<Tried>> {
        let mut tried = Vec::new();
        for (id, title) in [
            ("H159", "another policy, which permits nothing, and back"),
            ("H160", "another policy, which is not valid"),
            ("H162", "a pause"),
            ("G150", "a neighbour"),
        ] {
            let mut case = self.plan.case(Group::State, id, title, Vec::new());
            let mut outcomes = Vec::new();
            let done = match id {
                "H159" => self.tightened(&mut case, &mut outcomes).await,
                "H160" => self.invalid(&mut case, &mut outcomes).await,
                "H162" => self.paused(&mut case, &mut outcomes).await,
                _ => self.neighbour(&mut case, &mut outcomes, sandboxes).await,
            };
            if let Err(error) = done {
                case.attempts.push(self.plan.never(title, "the test", Action::Own { at: anywhere()? })?);
                outcomes.push(Outcome::Fault(format!("{error:#}")));
            }
            tried.push((case, outcomes));
        }
        Ok(tried)
    }

    async fn order(
        &mut self,
        attempts: Vec<Attempt>,
        case: &mut Case,
        outcomes: &mut Vec<Outcome>,
    ) -> Result<()> {
        let actions = attempts.iter().map(|attempt| attempt.action.clone()).collect();
        outcomes.extend(self.probes.user.order(actions).await?);
        case.attempts.extend(attempts);
        Ok(())
    }

    /// Connections are open when nothing is permitted any more.
    async fn tightened(&mut self, case: &mut Case, outcomes: &mut Vec<Outcome>) -> Result<()> {
        let places = self.permitted_places()?;
        let held = places.iter().zip(0..).map(|((to, said, attempt), key)| {
            let action = Action::Hold { to: *to, data: Bytes(said.clone()), key, wait: CUT };
            Attempt { what: format!("{}, kept open", attempt.what), action, ..attempt.clone() }
        });
        self.order(held.collect(), case, outcomes).await?;
        let blackout = PolicySpec { deny_out: vec![BLACKOUT.to_owned()], ..PolicySpec::default() };
        self.node.set_policy(self.id, blackout).await?;
        let (mut cut, mut anew) = (Vec::new(), Vec::new());
        for ((to, _, attempt), key) in places.iter().zip(0..) {
            let canary = canary()?;
            let said = http::request(Some("late.example"), &format!("/{canary}"), "");
            let expect = Expect::never("the new policy");
            let flow = attempt.flow.clone().map(|flow| EventKey { is_revoked: true, ..flow });
            cut.push(Attempt {
                what: format!("{}, under the new policy", attempt.what),
                action: Action::Held { key, data: Bytes(said), wait: CUT },
                expect: expect.clone(),
                trace: Trace::Canary(canary),
                flow,
                ..attempt.clone()
            });
            anew.push(self.refused(SocketAddr::new(to.ip(), self.plan.fresh_port()), expect)?);
        }
        for address in self.plan.ground.refused_addresses {
            let to = SocketAddr::new(address, self.plan.fresh_port());
            anew.push(self.refused(to, Expect::never("the new policy"))?);
        }
        self.order(cut, case, outcomes).await?;
        self.order(anew, case, outcomes).await?;
        self.node.set_policy(self.id, self.options.policy.clone()).await?;
        self.probes.control(self.plan, case, outcomes).await
    }

    /// The policy in force stays in force, whole.
    async fn invalid(&mut self, case: &mut Case, outcomes: &mut Vec<Outcome>) -> Result<()> {
        let policy = PolicySpec {
            allow_out: vec!["other.example.com".to_owned(), "*".to_owned(), INVALID.to_owned()],
            ..PolicySpec::default()
        };
        let changed = self.node.set_policy(self.id, policy).await;
        let what = format!("an entry {INVALID}");
        case.attempts.push(self.plan.never(
            what,
            "the language of policies",
            Action::Own { at: anywhere()? },
        )?);
        outcomes.push(match changed {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Refused(format!("{error:#}")),
        });
        self.as_before(case, outcomes).await
    }

    /// After it everything is as it was.
    async fn paused(&mut self, case: &mut Case, outcomes: &mut Vec<Outcome>) -> Result<()> {
        self.node.manager.pause(ACCOUNT, self.id).await.context("pausing the sandbox")?;
        self.node.manager.resume(ACCOUNT, self.id).await.context("resuming the sandbox")?;
        self.as_before(case, outcomes).await
    }

    /// What is refused is refused, and what is permitted is permitted.
    async fn as_before(&mut self, case: &mut Case, outcomes: &mut Vec<Outcome>) -> Result<()> {
        let mut attempts = Vec::new();
        for address in self.plan.ground.refused_addresses {
            let to = SocketAddr::new(address, self.plan.fresh_port());
            attempts.push(self.refused(to, self.plan.ground.unknown(address, to.port()))?);
        }
        self.order(attempts, case, outcomes).await?;
        self.probes.control(self.plan, case, outcomes).await
    }

    /// Another sandbox under the same policy, in which somebody listens on every address.
    async fn neighbour(
        &mut self,
        case: &mut Case,
        outcomes: &mut Vec<Outcome>,
        sandboxes: &mut Vec<SandboxId>,
    ) -> Result<()> {
        let neighbour = self.node.sandbox(self.options, self.options.policy.clone()).await?;
        sandboxes.push(neighbour.clone());
        let arguments = &self.options.probe_arguments;
        let mut probe = Probe::start(&self.node.manager, ACCOUNT, &neighbour, User::User, arguments).await?;
        let at = SocketAddr::new("::".parse()?, self.plan.fresh_port());
        let towards = ["104.16.1.1:9", "[2606:4700:1::1]:9"].map(str::parse::<SocketAddr>);
        let mut actions = vec![Action::Await { at }];
        for to in towards {
            actions.push(Action::Source { to: to? });
        }
        let answers = probe.order(actions).await?;
        anyhow::ensure!(
            answers.first() == Some(&Outcome::Done),
            "nobody listens in the neighbour: {answers:?}"
        );
        let mut addresses: Vec<IpAddr> = answers
            .iter()
            .filter_map(|answer| match answer {
                Outcome::Data(text) => std::str::from_utf8(&text.0).ok()?.parse().ok(),
                _ => None,
            })
            .collect();
        // Those that its wire may have, and the one that all sandboxes have.
        for number in 1..=6 {
            addresses.push(format!("100.80.0.{number}").parse()?);
            addresses.push(format!("fd62:6169:6c69:1::{number}").parse()?);
        }
        addresses.extend(["100.64.0.2".parse::<IpAddr>()?, "fd62:6169:6c69::2".parse()?]);
        addresses.sort();
        addresses.dedup();
        let mut attempts = Vec::new();
        for address in addresses {
            let to = SocketAddr::new(address, at.port());
            let mut attempt = self.refused(to, Expect::never("floor:sandbox"))?;
            // Some of these are its own, where nobody listens.
            attempt.is_recorded = false;
            attempts.push(attempt);
        }
        self.order(attempts, case, outcomes).await?;
        let reached = Action::Awaited { at };
        outcomes.extend(probe.order(vec![reached.clone()]).await?);
        case.attempts.push(self.plan.never("what the neighbour has seen", "floor:sandbox", reached)?);
        Ok(())
    }

    /// A connection with a canary that is to become of as given.
    fn refused(&self, to: SocketAddr, expect: Expect) -> Result<Attempt> {
        let canary = canary()?;
        let said = vec![canary.clone().into_bytes()];
        Ok(self.plan.tcp(format!("bytes to {to}"), &canary, to, said, expect))
    }

    /// Connections that stay open under the policy: by HTTP and TLS where a name is permitted, by anything where an
    /// address is. Each with what is said first.
    fn permitted_places(&self) -> Result<Vec<(SocketAddr, Vec<u8>, Attempt)>> {
        let ground = self.plan.ground;
        let mut places = Vec::new();
        let mut add = |what: String, canary: &str, to: SocketAddr, said: Vec<u8>, expect| {
            let attempt = self.plan.tcp(what, canary, to, vec![said.clone()], expect);
            places.push((to, said, attempt));
        };
        if let Some(named) = &ground.named {
            let (name, [address, _]) = (named.name.as_str(), named.addresses);
            let (canary, to) = (canary()?, SocketAddr::new(address, named.port_or(80)));
            let expect = ground.claimed(name.as_bytes(), address, to.port());
            add(format!("HTTP to {name}"), &canary, to, http::first(name, &canary).into(), expect);
            let (canary, to) = (self::canary()?, SocketAddr::new(address, named.port_or(443)));
            let expect = ground.claimed(name.as_bytes(), address, to.port());
            let hello = Hello::naming(&canary, &[name.as_bytes()]).record();
            add(format!("TLS to {name}"), &canary, to, hello, expect);
        }
        if let Some((address, port)) = ground.address {
            let (canary, to) = (canary()?, SocketAddr::new(address, port.unwrap_or(8081)));
            let expect = ground.other(policy::Protocol::Tcp, address, Some(to.port()));
            add(format!("bytes to {to}"), &canary, to, canary.clone().into(), expect);
        }
        Ok(places)
    }
}

fn anywhere() -> Result<SocketAddr> {
    Ok("127.0.0.1:0".parse()?)
}
