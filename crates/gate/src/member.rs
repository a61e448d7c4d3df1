//! Putting policies in force, wire included: all of a new one, or none of it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use parking_lot::Mutex;
use policy::{EntryError, Floor, InForce, List, Policy, PolicyError, Topology};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    GateError, addresses::Slot, gate::Shared, node::Node, proof, revoke, sandbox::Sandbox, stats::Counters,
    uplink::Carries,
};

/// One attached sandbox.
pub(crate) struct Member {
    pub(crate) sandbox: Arc<Sandbox>,
    /// Ends the tasks.
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    /// Why it was cut off, once it is.
    pub(crate) broken: watch::Sender<Option<Broken>>,
    wire: Mutex<Wire>,
}

/// Why a sandbox was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// Its rules do not do what its policy says.
    Rules,
    /// Something that serves it has ended: its resolver, its proxy, the log of what it was refused, or a change of its
    /// policy in the middle.
    Service,
}

/// Held while a policy is being put in force, so that one comes after the other.
#[derive(Default)]
struct Wire {
    /// The place of the wire; kept when the wire goes, because connections through the proxy may have its address.
    slot: Option<Slot>,
    is_laid: bool,
    /// The machine's network that the rules were made for, once any policy has been in force.
    made_for: Option<Arc<Node>>,
    is_detached: bool,
}

impl Member {
    pub(crate) fn new(sandbox: Arc<Sandbox>) -> Self {
        Self {
            sandbox,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            broken: watch::Sender::default(),
            wire: Mutex::default(),
        }
    }

    /// Puts the sandbox's first policy in force.
    pub(crate) fn start(&self, shared: &Arc<Shared>) -> Result<(), GateError> {
        let first = self.sandbox.force().now.clone();
        self.put_in_force(shared, &mut self.wire.lock(), &first)
    }

    /// The place of its wire.
    #[cfg(test)]
    pub(crate) fn slot(&self) -> Option<Slot> {
        self.wire.lock().slot
    }

    /// As if a change of the machine's network had not reached this sandbox.
    #[cfg(test)]
    pub(crate) fn fall_behind(&self) {
        self.wire.lock().made_for = Some(Arc::new(Node::nowhere()));
    }

    /// Puts the sandbox's policy in force over a wire, and panics in the middle of that: when the wire lies.
    #[cfg(test)]
    pub(crate) fn start_and_panic(&self, shared: &Arc<Shared>) -> Result<(), GateError> {
        let wire = &mut self.wire.lock();
        self.guarded(shared, wire, |wire| {
            let next = self.sandbox.force().now.clone();
            self.lay(shared, wire, &next, &shared.node())?;
            self.sandbox.enforce(&next, wire.slot, &shared.node(), false)?;
            panic!("on purpose")
        })
    }

    /// Replaces the policy and returns the new generation. Connections that it does not permit are cut before this
    /// returns. On an error the old policy is in force as before.
    pub(crate) fn set_policy(&self, shared: &Arc<Shared>, policy: Arc<Policy>) -> Result<u64, GateError> {
        let mut wire = self.wire.lock();
        let generation = self.sandbox.force().now.generation + 1;
        self.put_in_force(shared, &mut wire, &InForce { policy, generation })?;
        Ok(generation)
    }

    /// Puts the same policy in force over another floor, or with another IPv6 path, as a new generation: if the rules were
    /// made for another network than the machine has now.
    pub(crate) fn refresh(&self, shared: &Arc<Shared>) -> Result<(), GateError> {
        let mut wire = self.wire.lock();
        let is_current = |made_for: &Arc<Node>| made_for.same(&shared.node());
        if wire.is_detached || wire.made_for.as_ref().is_none_or(is_current) {
            return Ok(());
        }
        let InForce { policy, generation } = self.sandbox.force().now.clone();
        self.put_in_force(shared, &mut wire, &InForce { policy, generation: generation + 1 })
    }

    /// Tries the rules, which somebody may have changed, and cuts the sandbox off if they do not hold.
    pub(crate) fn verify(&self, shared: &Shared) {
        let mut wire = self.wire.lock();
        if wire.is_detached || wire.made_for.is_none() {
            return;
        }
        let now = self.sandbox.force().now.clone();
        match self.prove(&now) {
            Ok(()) => {}
            Err(error @ GateError::Unproven(_)) => {
                self.complain(&error);
                self.cut_off(shared, &mut wire, Broken::Rules);
            }
            Err(error) => {
                self.complain(&error);
                self.sandbox.suspect.notify_one();
            }
        }
    }

    /// Cuts the sandbox off because something that serves it has ended.
    pub(crate) fn fail(&self, shared: &Shared) {
        let mut wire = self.wire.lock();
        if !wire.is_detached {
            self.cut_off(shared, &mut wire, Broken::Service);
        }
    }

    /// Whether it has, or had, a wire whose place has not been given back.
    pub(crate) fn has_slot(&self) -> bool {
        self.wire.lock().slot.is_some()
    }

    /// Whether there is a wire.
    pub(crate) fn is_wired(&self) -> bool {
        self.wire.lock().is_laid
    }

    /// Ends everything for good: no policy is put in force any more, and nothing passes by the wire, which goes with
    /// the sandbox's namespace. The rules stay there: without the sockets of the resolver and the proxy, they refuse
    /// everything that would go to those.
    pub(crate) fn retire(&self, shared: &Shared) {
        let mut wire = self.wire.lock();
        if !wire.is_detached {
            wire.is_detached = true;
            self.sandbox.record_alone(true);
            self.sandbox.tidy();
        }
        self.cut_wire(shared, &mut wire);
    }

    /// As [`Self::retire`], and gives back the place of the wire: to be called when what the wire's log still has to
    /// tell has been read.
    pub(crate) fn release(&self, shared: &Shared) {
        self.retire(shared);
        if let Some(slot) = self.wire.lock().slot.take() {
            shared.free_slot(slot);
        }
    }

    /// All of a policy or none of it; what panics in the middle of that leaves the sandbox cut off.
    fn put_in_force(&self, shared: &Arc<Shared>, wire: &mut Wire, next: &InForce) -> Result<(), GateError> {
        if wire.is_detached {
            return Err(GateError::Detached);
        }
        self.guarded(shared, wire, |wire| self.replace(shared, wire, next))
    }

    /// A panic in the middle of `work` leaves the sandbox cut off.
    fn guarded(
        &self,
        shared: &Shared,
        wire: &mut Wire,
        work: impl FnOnce(&mut Wire) -> Result<(), GateError>,
    ) -> Result<(), GateError> {
        catch_unwind(AssertUnwindSafe(|| work(wire))).unwrap_or_else(|_panic| {
            self.cut_off(shared, wire, Broken::Service);
            Err(GateError::Fault)
        })
    }

    fn replace(&self, shared: &Arc<Shared>, wire: &mut Wire, next: &InForce) -> Result<(), GateError> {
        // One reading for all of it. Whoever changes it comes to every sandbox after that, and waits for the lock of this
        // one: so the floor is the one of now, or is replaced in a moment.
        let node = Arc::clone(&shared.node());
        let next = &over_floor(next, &node.floor);
        let before = self.sandbox.force().now.clone();
        let was_laid = wire.is_laid;
        let wants = next.policy.topology() == Topology::Wire;
        // What the uplink lets through meanwhile is what both the old rules inside and the new ones outside permit.
        let changed = if wants { self.lay(shared, wire, next, &node) } else { Ok(()) };
        if let Err(error) = changed.and_then(|()| self.sandbox.enforce(next, wire.slot, &node, was_laid)) {
            self.step_back(shared, wire, was_laid, &before);
            return Err(error);
        }
        let is_first = wire.made_for.replace(node).is_none();
        if was_laid && !wants {
            wire.is_laid = false;
            if let Some(slot) = wire.slot {
                self.disconnect(shared, slot);
            }
        }
        if !is_first {
            self.sandbox.flows.rejudge(next);
            if was_laid || wants {
                revoke::cut(&self.sandbox, &before, next).unwrap_or_else(|error| self.complain(&error));
            }
            if was_laid {
                self.sandbox.answer_wired().unwrap_or_else(|error| self.complain(&error));
            }
            if was_laid
                && wants
                && let Some(slot) = wire.slot
            {
                shared.revoke_flows(slot, next);
            }
        }
        match self.prove(next) {
            // The kernel has confirmed the rules; they are tried as soon as that can be done.
            Err(error @ GateError::Untried(_)) if !is_first => {
                self.complain(&error);
                self.sandbox.suspect.notify_one();
                Ok(())
            }
            proved => proved.inspect_err(|error| {
                self.complain(error);
                self.cut_off(shared, wire, Broken::Rules);
            }),
        }
    }

    /// Tries the rules, and counts how that comes out.
    fn prove(&self, in_force: &InForce) -> Result<(), GateError> {
        let counters = self.sandbox.counters();
        Counters::add(&counters.proofs);
        proof::prove(&self.sandbox, in_force).inspect_err(|error| {
            // What could not be tried says nothing about the rules.
            if matches!(error, GateError::Unproven(_)) {
                Counters::add(&counters.failed_proofs);
            }
        })
    }

    /// Lets nothing pass any more, whatever the rules in the sandbox's namespace do: its sockets close and its wire is
    /// cut. Whoever is to end the sandbox is told.
    fn cut_off(&self, shared: &Shared, wire: &mut Wire, why: Broken) {
        wire.is_detached = true;
        self.stop.cancel();
        self.broken.send_replace(Some(why));
        self.cut_wire(shared, wire);
    }

    fn cut_wire(&self, shared: &Shared, wire: &mut Wire) {
        if std::mem::take(&mut wire.is_laid)
            && let Some(slot) = wire.slot
        {
            let cut = shared.cut(slot, |uplink| uplink.cut(slot));
            cut.unwrap_or_else(|error| self.complain(&error));
        }
    }

    fn lay(
        &self,
        shared: &Arc<Shared>,
        wire: &mut Wire,
        next: &InForce,
        node: &Node,
    ) -> Result<(), GateError> {
        let slot = match wire.slot {
            Some(slot) => slot,
            None => *wire.slot.insert(shared.reserve_slot(&self.sandbox)?),
        };
        let carries = Carries { view: next.policy.kernel(), ipv6: node.ipv6 };
        if wire.is_laid {
            shared.with_uplink(|uplink| uplink.set_rules(slot, carries))
        } else {
            if wire.made_for.is_some() {
                // Rules that reckon with a wire come before it: what goes to the daemon must not leave by it.
                let now = self.sandbox.force().now.clone();
                self.sandbox.enforce(&over_floor(&now, &node.floor), Some(slot), node, false)?;
            }
            shared.connect(slot, &self.sandbox, carries)?;
            wire.is_laid = true;
            Ok(())
        }
    }

    /// Makes the wire what it was.
    fn step_back(&self, shared: &Arc<Shared>, wire: &mut Wire, was_laid: bool, before: &InForce) {
        let Some(slot) = wire.slot else { return };
        if was_laid {
            let carries = Carries { view: before.policy.kernel(), ipv6: shared.node().ipv6 };
            let restored = shared.with_uplink(|uplink| uplink.set_rules(slot, carries));
            restored.unwrap_or_else(|error| self.complain(&error));
        } else if wire.is_laid {
            wire.is_laid = false;
            self.disconnect(shared, slot);
        }
    }

    /// A wire that cannot be removed carries nothing: its rules are gone first.
    fn disconnect(&self, shared: &Shared, slot: Slot) {
        let gone = shared.cut(slot, |uplink| uplink.disconnect(slot));
        gone.unwrap_or_else(|error| self.complain(&error));
    }

    fn complain(&self, error: &GateError) {
        tracing::error!(sandbox = self.sandbox.recorder.sandbox(), error = %chain(error), "the gate");
    }
}

/// An error with what caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A name that nobody can have (RFC 6761 section 6.4).
const NOBODY: &str = "on-the-floor.invalid";

/// What is to be put in force, over this floor: what it was compiled over may have changed since.
fn over_floor(next: &InForce, floor: &Arc<Floor>) -> InForce {
    let own = next.policy.floor();
    if Arc::ptr_eq(own, floor) || own.networks() == floor.networks() {
        return next.clone();
    }
    InForce { policy: Arc::new(recompile(&next.policy, floor)), generation: next.generation }
}

/// The policy over another floor. An entry that names what has come onto the floor since (an address that is the
/// machine's now) means nothing any more; the others keep their positions.
fn recompile(policy: &Policy, floor: &Arc<Floor>) -> Policy {
    let mut spec = policy.spec().clone();
    loop {
        match Policy::compile(&spec, Arc::clone(floor)) {
            Ok(policy) => return policy,
            Err(PolicyError::Entry { list, index, source: EntryError::Floor { .. }, entry }) => {
                tracing::error!(%entry, "an entry of a running sandbox is on the floor now");
                let entries = match list {
                    List::AllowOut => &mut spec.allow_out,
                    List::DenyOut => &mut spec.deny_out,
                };
                match entries.get_mut(index) {
                    Some(entry) if entry != NOBODY => *entry = NOBODY.to_owned(),
                    _ => return blackout(floor),
                }
            }
            Err(error) => {
                tracing::error!(%error, "a policy cannot be kept over the new floor: nothing passes");
                return blackout(floor);
            }
        }
    }
}

fn blackout(floor: &Arc<Floor>) -> Policy {
    let spec = policy::PolicySpec { deny_out: vec!["0.0.0.0/0".to_owned()], ..policy::PolicySpec::default() };
    Policy::compile(&spec, Arc::clone(floor)).expect("a blackout is a policy over any floor")
}

#[cfg(test)]
mod tests {
    use policy::{Decision, Flow, PolicySpec, Protocol};

    use super::*;

    #[test]
    fn an_entry_that_is_on_the_floor_now_permits_nothing_and_the_others_stay() {
        let allow = ["10.0.0.1", "10.0.0.7", "api.example.com"].map(str::to_owned).to_vec();
        let spec = PolicySpec { allow_out: allow, ..PolicySpec::default() };
        let policy = Policy::compile(&spec, Arc::new(Floor::new([]))).unwrap();
        let moved: std::net::IpAddr = "10.0.0.7".parse().unwrap();
        let policy = recompile(&policy, &Arc::new(Floor::new([moved])));
        let judge = |address: &str| {
            let address = Some(address.parse().unwrap());
            policy.judge(&Flow { protocol: Protocol::Tcp, name: None, address, port: Some(80) })
        };
        assert_eq!(judge("10.0.0.7").decision, Decision::Deny);
        assert_eq!(judge("10.0.0.1").decision, Decision::Allow);
        assert_eq!(policy.spec().allow_out.len(), 3);
    }
}
