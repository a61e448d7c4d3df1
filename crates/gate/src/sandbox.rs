//! One sandbox as its resolver, its proxy and its packet filter see it.

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use audit::Recorder;
use dns::{BindRefused, Budget, Family, LookupError, Upstream, Zone};
use netns::NetNs;
use nft::{Batch, Flow as Headers, Packet, Received};
use parking_lot::Mutex;
use policy::{Flow, FlowEvent, FlowTotals, HostName, InForce, Policy, Protocol, Reason};
use proxy::{Egress, EventId, Flows, Hold, NoAddress};
use tokio::sync::Notify;

use crate::{
    GateError, Limits,
    addresses::{ProxyPorts, Slot},
    bindings::{Bindings, Change},
    events::{self, Known, Policies},
    ledger::Ledger,
    node::Node,
    ports::NamedPorts,
    proof::{Attempt, Expected},
    ruleset::{self, Ruleset, uses_bindings},
    sink::{self, Sinks},
    stats::Counters,
};

/// The reason of an `audit_gap`: what happened met a fault of the daemon on its way to being recorded.
pub(crate) const DAEMON_FAULT: &str = "daemon_fault";

/// Everything the gate knows of one sandbox.
pub(crate) struct Sandbox {
    pub(crate) namespace: NetNs,
    pub(crate) recorder: Recorder,
    pub(crate) flows: Arc<Flows>,
    /// What may still be asked.
    names: Budget,
    shares: Shares,
    force: ArcSwap<Force>,
    kernel: Arc<Mutex<Kernel>>,
    sinks: Mutex<Sinks>,
    dns_port: u16,
    proxy: ProxyPorts,
    /// Refusals that the daemon asks for.
    pub(crate) expected: Expected,
    /// Told when something makes the rules suspect, so that they are tried again.
    pub(crate) suspect: Notify,
}

/// What a sandbox has in common with all others of the gate.
pub(crate) struct Shares {
    pub(crate) upstream: Upstream,
    pub(crate) node: Arc<ArcSwap<Node>>,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
}

/// A policy in force, with what follows from it.
pub(crate) struct Force {
    pub(crate) now: InForce,
    before: Option<InForce>,
    ports: NamedPorts,
}

/// What is kept the same in memory and in the kernel.
struct Kernel {
    filter: nft::Connection,
    bindings: Bindings,
    /// Refused packets, as the kernel counts them and as they are recorded.
    ledger: Ledger,
    /// Whether nothing is compared any more.
    is_closed: bool,
}

impl Sandbox {
    /// A sandbox whose rules are not in force yet: see [`Self::enforce`].
    pub(crate) fn new(
        namespace: NetNs,
        filter: nft::Connection,
        (dns_port, proxy): (u16, ProxyPorts),
        first: InForce,
        recorder: Recorder,
        shares: Shares,
    ) -> Self {
        let bindings = Bindings::new(shares.limits.bindings);
        Self {
            namespace,
            recorder,
            flows: Arc::new(Flows::new()),
            names: Budget::new(shares.limits.names),
            shares,
            force: ArcSwap::from_pointee(Force::new(first, None)),
            kernel: Arc::new(Mutex::new(Kernel {
                filter,
                bindings,
                ledger: Ledger::default(),
                is_closed: false,
            })),
            sinks: Mutex::default(),
            dns_port,
            proxy,
            expected: Expected::default(),
            suspect: Notify::new(),
        }
    }

    /// The policy in force, with what follows from it.
    pub(crate) fn force(&self) -> Arc<Force> {
        self.force.load_full()
    }

    /// Puts a policy in force: the rules in one transaction, with the bindings that the policy still permits.
    /// From then on, what was permitted under another one is not bound any more. If there are connections to be cut, those by
    /// the wire get no answer until [`Self::answer_wired`].
    pub(crate) fn enforce(
        &self,
        next: &InForce,
        slot: Option<Slot>,
        node: &Node,
        is_cutting: bool,
    ) -> Result<(), GateError> {
        let policy = &next.policy;
        let force = Force::new(next.clone(), Some(self.force().now.clone()));
        let floor = node.floor.networks();
        let rules = Ruleset {
            view: policy.kernel(),
            floor: &floor,
            ipv6: node.ipv6,
            slot,
            proxy: self.proxy,
            dns_port: self.dns_port,
            is_cutting,
        };
        let mut kernel = self.kernel.lock();
        let mut bindings = kernel.bindings.clone();
        bindings.rejudge(
            |name, address| permits(policy, name, Some(address)),
            |name| force.ports.permitted(policy, name),
        );
        let batch = rules.batch(bindings.installed());
        // With the old table its counters go. (What is refused between the two is recorded, and not counted.) There is
        // none before the first policy is in force.
        let _is_first = self.read_counters(&mut kernel);
        kernel.filter.commit(batch).map_err(|error| GateError::Rules("the sandbox", error))?;
        kernel.bindings = bindings;
        self.force.store(Arc::new(force));
        Ok(())
    }

    /// Has connections by the wire that are refused reset again, after those were cut that the policy does not permit.
    pub(crate) fn answer_wired(&self) -> Result<(), GateError> {
        let answered = self.kernel.lock().filter.commit(ruleset::answer_wired());
        answered.map_err(|error| GateError::Rules("the sandbox", error))
    }

    /// Records what was refused while no daemon was there to be told: what the table of an earlier one has counted since
    /// that one looked last. If it died, it may have recorded some of that.
    pub(crate) fn record_absence(&self) {
        let counted = self.kernel.lock().filter.take_counter(&ruleset::table(), ruleset::REFUSED);
        match counted {
            Ok(counter) => self.recorder.gap("daemon_away", counter.packets),
            // The namespace may be new, or the table that of a version without this counter.
            Err(error) => {
                tracing::debug!(sandbox = self.recorder.sandbox(), %error, "nothing was counted before")
            }
        }
    }

    /// Records the names that were asked for IPv6 addresses alone a while ago, or at all.
    pub(crate) fn record_alone(&self, are_all: bool) {
        let alone = self.sinks.lock().take_alone(Instant::now(), are_all);
        alone.into_iter().for_each(|event| {
            self.recorder.flow(event);
        });
    }

    /// What is due now and then: ends bindings whose time is over, and records how many refusals were not recorded.
    pub(crate) fn tidy(&self) {
        self.record_alone(false);
        let mut kernel = self.kernel.lock();
        if !kernel.is_closed {
            let missing = kernel.ledger.find_missing();
            self.recorder.gap(MISSING, missing);
            if !self.read_counters(&mut kernel) {
                // The table is gone, or another.
                self.suspect.notify_one();
            }
        }
        let change = kernel.bindings.expire(Instant::now());
        if let Err(error) = self.apply(&mut kernel, &change) {
            tracing::warn!(sandbox = self.recorder.sandbox(), %error, "expired bindings were not removed");
        }
    }

    /// Compares for the last time, when everything that was logged has been read.
    pub(crate) fn close(&self) {
        self.record_alone(true);
        let mut kernel = self.kernel.lock();
        if !std::mem::replace(&mut kernel.is_closed, true) {
            self.read_counters(&mut kernel);
            self.recorder.gap(MISSING, kernel.ledger.close());
        }
    }

    /// What is counted of all sandboxes together.
    pub(crate) fn counters(&self) -> &Counters {
        &self.shares.counters
    }

    /// How many addresses are bound.
    pub(crate) fn bound(&self) -> usize {
        self.kernel.lock().bindings.len()
    }

    /// Records what the sandbox's own packet filter refused.
    pub(crate) fn record_refusals(&self, received: Received) {
        if received.overrun {
            // How many were lost shows with the next one that is logged: trying the rules makes some.
            self.suspect.notify_one();
        }
        let recorded = received.packets.iter().filter(|packet| self.record_logged(packet)).count();
        let mut kernel = self.kernel.lock();
        let lost = kernel.ledger.lost(received.lost);
        kernel.ledger.accounted(u64::try_from(recorded).unwrap_or(u64::MAX));
        self.recorder.gap("kernel_log", lost);
    }

    /// As [`Self::record_refusal`], which costs this one packet if it panics: it is accounted for as a gap.
    pub(crate) fn record_logged(&self, packet: &Packet) -> bool {
        catch_unwind(AssertUnwindSafe(|| self.record_refusal(packet))).unwrap_or_else(|_panic| {
            self.recorder.gap(DAEMON_FAULT, 1);
            true
        })
    }

    /// Records one packet that a packet filter refused, unless the daemon expects that. Returns false if it cannot be
    /// told what it was.
    pub(crate) fn record_refusal(&self, packet: &Packet) -> bool {
        if packet.flow.and_then(attempt).is_some_and(|attempt| self.expected.take(attempt)) {
            return true;
        }
        let force = self.force();
        let event = packet
            .flow
            .as_ref()
            .and_then(|headers| events::refusal(headers, self.known(headers.destination), &force.policies()));
        let is_told = event.is_some();
        if let Some(event) = event {
            self.recorder.flow(event);
        }
        is_told
    }

    /// Records one new flow that goes by the wire. Gives its event and its headers.
    pub(crate) fn record_permission(&self, packet: &Packet) -> Option<(u64, Headers)> {
        let force = self.force();
        let headers = packet.flow?;
        let known = self.known(headers.destination);
        Some((self.recorder.flow(events::permission(&headers, known, &force.policies())), headers))
    }

    /// Records one flow that was refused because the wire has too many.
    pub(crate) fn record_limit(&self, packet: &Packet) {
        if let Some(headers) = &packet.flow {
            let known = self.known(headers.destination);
            let reason = if self.flows.are_bytes_spent() { Reason::ByteBudget } else { Reason::FlowLimit };
            self.recorder.flow(events::limit(headers, known, &self.force().now, reason));
        }
    }

    /// The name an address stands for: of a sink, or bound to it and to no other.
    fn known(&self, address: IpAddr) -> Option<Known> {
        if let Some(name) = self.sinks.lock().name_of(address) {
            return Some(Known { name: name.clone(), is_sink: true });
        }
        let kernel = self.kernel.lock();
        let mut names = kernel.bindings.names_of(address);
        match (names.next(), names.next()) {
            (Some(name), None) => Some(Known { name: name.clone(), is_sink: false }),
            _ => None,
        }
    }

    /// Reads the kernel's own counters, and records how many refusals were too many to be logged. `false` when there are
    /// none.
    fn read_counters(&self, kernel: &mut Kernel) -> bool {
        // Before the other, which counts what this one does: so less is counted than is accounted for, if at all.
        if let Ok(refused) = kernel.filter.take_counter(&ruleset::table(), ruleset::REFUSED) {
            kernel.ledger.counted(refused.packets);
        }
        let unlogged = kernel.filter.take_counter(&ruleset::table(), ruleset::UNLOGGED);
        if let Ok(unlogged) = &unlogged {
            kernel.ledger.accounted(unlogged.packets);
            self.recorder.gap("kernel_log_limit", unlogged.packets);
        }
        unlogged.is_ok()
    }

    /// Makes a change of the bindings in the kernel, if the kernel asks them at all. If that fails, the bindings
    /// know that the kernel has what it had.
    fn apply(&self, kernel: &mut Kernel, change: &Change) -> Result<(), nft::Error> {
        if change.is_empty() || !uses_bindings(self.force.load().now.policy.kernel()) {
            return Ok(());
        }
        let mut batch = Batch::new();
        for (address, ports) in &change.remove {
            ruleset::del_bound(&mut batch, *address, ports);
        }
        for (address, ports) in &change.add {
            ruleset::add_bound(&mut batch, *address, ports);
        }
        let made = kernel.filter.commit(batch);
        if made.is_err() {
            kernel.bindings.undo(change);
            self.suspect.notify_one();
        }
        made
    }

    /// The addresses of a name, from the upstream servers, whatever the policy says of them.
    async fn look_up(&self, name: &HostName) -> Result<Vec<IpAddr>, NoAddress> {
        // A server name is a way to have a name looked up, as a query is.
        let upstream = &self.shares.upstream;
        let is_new = |family| u32::from(upstream.cached(name, family).is_none());
        let ipv6 = self.ipv6();
        let families = is_new(Family::V4) + if ipv6 { is_new(Family::V6) } else { 0 };
        let _lookup = if families == 0 {
            None
        } else {
            let policy = Arc::clone(&self.force.load().now.policy);
            let lookup = self.names.begin_lookup(&policy, name, families, Instant::now());
            Some(lookup.map_err(|refused| NoAddress::Refused(refused.verdict()))?)
        };
        let v4 = upstream.lookup(name, Family::V4, self.names.asker());
        let v6 = async {
            if ipv6 {
                upstream.lookup(name, Family::V6, self.names.asker()).await
            } else {
                Err(LookupError::NoData)
            }
        };
        let (v4, v6) = tokio::join!(v4, v6);
        if let (Err(v4), Err(v6)) = (&v4, &v6) {
            return Err(match (v4, v6) {
                (LookupError::Busy, _) | (_, LookupError::Busy) => {
                    NoAddress::Refused(dns::Refused::busy().verdict())
                }
                _ => NoAddress::Failed(v4.to_string()),
            });
        }
        // All of them: whoever dials judges each address, and a refusal names the one that was refused.
        let found: Vec<IpAddr> = [v4, v6].into_iter().flatten().flat_map(|answer| answer.addresses).collect();
        if found.is_empty() {
            return Err(NoAddress::Failed(format!("{name} has no address")));
        }
        Ok(found)
    }
}

impl Force {
    fn new(now: InForce, before: Option<InForce>) -> Self {
        let ports = NamedPorts::of(&now.policy);
        Self { now, before, ports }
    }

    fn policies(&self) -> Policies<'_> {
        Policies { now: &self.now, before: self.before.as_ref() }
    }
}

/// The reason of an `audit_gap`: the kernel counted more refusals than were recorded or told to be lost.
const MISSING: &str = "kernel_counter";

/// Keeps a binding from expiring.
struct Held {
    kernel: Arc<Mutex<Kernel>>,
    address: IpAddr,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.kernel.lock().bindings.release(self.address);
    }
}

/// What a TCP packet attempts.
fn attempt(headers: Headers) -> Option<Attempt> {
    let (from, port) = headers.ports.filter(|_| headers.protocol == TCP)?;
    Some(Attempt { from, to: SocketAddr::new(headers.destination, port) })
}

const TCP: u8 = 6;

/// Whether some TCP port of the name is permitted, at this address if one is given.
fn permits(policy: &Policy, name: &HostName, address: Option<IpAddr>) -> bool {
    policy.judge(&Flow { protocol: Protocol::Tcp, name: Some(name), address, port: None }).is_allowed()
}

impl Zone for Sandbox {
    fn in_force(&self) -> InForce {
        self.force.load().now.clone()
    }

    fn bind(
        &self,
        name: &HostName,
        addresses: &[IpAddr],
        ttl: Duration,
        generation: u64,
    ) -> Result<(), BindRefused> {
        let mut kernel = self.kernel.lock();
        // Read under the lock: a policy is put in force under it.
        let force = self.force();
        if force.now.generation != generation {
            return Err(BindRefused::Superseded);
        }
        let policy = &force.now.policy;
        let ports = force.ports.permitted(policy, name);
        let now = Instant::now();
        let mut change = kernel.bindings.bind(name, ports.clone(), addresses, ttl, now);
        if change.is_err()
            && let Some(expired) = kernel.bindings.make_room(now)
        {
            self.apply(&mut kernel, &expired).map_err(|error| BindRefused::Kernel(error.to_string()))?;
            change = kernel.bindings.bind(name, ports, addresses, ttl, now);
        }
        match change {
            Ok(change) => {
                self.apply(&mut kernel, &change).map_err(|error| BindRefused::Kernel(error.to_string()))
            }
            // Where the default is open, bindings only tell names.
            Err(_) if !uses_bindings(policy.kernel()) => Ok(()),
            Err(_) => Err(BindRefused::Limit),
        }
    }

    fn sink(&self, name: &HostName) -> Option<Ipv4Addr> {
        let force = self.force.load();
        let allow = &force.now.policy.kernel().allow;
        // An address entry for the range makes it a place that packets go to.
        if allow.iter().any(|entry| overlaps_sinks(&entry.net)) {
            return None;
        }
        self.sinks.lock().assign(name, Instant::now())
    }

    fn budget(&self) -> &Budget {
        &self.names
    }

    fn asked(&self) {
        Counters::add(&self.shares.counters.dns_queries);
    }

    fn record(&self, event: FlowEvent) {
        self.recorder.flow(event);
    }

    fn record_if_alone(&self, event: FlowEvent) {
        let event = self.sinks.lock().wait(event, Instant::now());
        if let Some(event) = event {
            self.recorder.flow(event);
        }
    }

    fn ipv6(&self) -> bool {
        self.shares.node.load().ipv6
    }
}

fn overlaps_sinks(net: &ipnet::IpNet) -> bool {
    let range = ipnet::IpNet::V4(sink::range());
    range.contains(net) || net.contains(&range)
}

impl Egress for Sandbox {
    fn in_force(&self) -> InForce {
        Zone::in_force(self)
    }

    fn names_bound_to(&self, address: IpAddr) -> Vec<HostName> {
        self.kernel.lock().bindings.names_of(address).cloned().collect()
    }

    fn addresses_of(&self, name: &HostName) -> impl Future<Output = Result<Vec<IpAddr>, NoAddress>> + Send {
        let bound = self.kernel.lock().bindings.addresses_of(name);
        let name = name.clone();
        async move { if bound.is_empty() { self.look_up(&name).await } else { Ok(bound) } }
    }

    fn hold(&self, address: IpAddr) -> Hold {
        if self.kernel.lock().bindings.hold(address) {
            Hold::new(Held { kernel: Arc::clone(&self.kernel), address })
        } else {
            Hold::none()
        }
    }

    fn record(&self, event: FlowEvent) -> EventId {
        EventId(self.recorder.flow(event))
    }

    fn finish(&self, id: EventId, totals: FlowTotals) {
        self.recorder.finish(id.0, totals);
    }
}
