//! The uplink namespace: where the wires of all sandboxes end, and everything is checked a second time.
//!
//! It exists from the first wire on, and only as long as the daemon: nothing but the daemon's descriptors refers to
//! it, so that a dead daemon cuts every wire. Its own link leads to the machine's namespace, where a table that is
//! tied to the daemon translates and fences it.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use netns::{Connection, LinkBytes, LinkIndex, NetNs, Route, Veth, sysctl};
use nft::{LogConfig, LogSocket};
use policy::KernelView;

use crate::{
    GateError,
    addresses::{LOG_GROUP, Slot, UPLINK, WIRE, WIRE_METRIC, everything, uplink_addresses},
    ruleset::SNAPLEN,
    tracking,
    uplink_rules::{self, WireRules},
    wired::WireLimits,
};

/// The uplink of one daemon.
pub(crate) struct Uplink {
    routes: Connection,
    filter: nft::Connection,
    /// The table in the machine's namespace lives as long as this.
    _machine: nft::Connection,
    wires: HashMap<Slot, WireRules>,
    limits: WireLimits,
    /// Wires that were cut, and when: their interfaces may still be there.
    lingering: VecDeque<(Slot, Instant)>,
    free: FreeSlots,
}

/// What a wire carries, as far as the uplink checks it.
#[derive(Clone, Copy)]
pub(crate) struct Carries<'a> {
    pub(crate) view: &'a KernelView,
    pub(crate) ipv6: bool,
}

const WHOSE: &str = "the uplink";

impl Uplink {
    /// Creates the namespace, its rules and its link to the calling thread's namespace, which is the machine's.
    /// `daemon` tells this daemon's uplink from another's. The log reports refused packets and new flows, and what is
    /// opened besides the flows that end.
    pub(crate) fn create(
        daemon: u32,
        floor: &[IpNet],
        ipv6: bool,
        limits: WireLimits,
    ) -> Result<(Self, LogSocket, tracking::Opened), GateError> {
        let (namespace, inside) =
            NetNs::create_and(|| Inside::open(floor)).map_err(GateError::CreateNamespace)?;
        let Inside { routes, filter, log, tracking } = inside?;
        let (machine, link) = link_to_machine(&namespace, daemon, ipv6)?;
        let linked = namespace.run(|| link_inside(daemon));
        linked.map_err(|error| GateError::EnterNamespace(WHOSE, error))?.map_err(GateError::Uplink)?;
        let carried = Connection::open().and_then(|mut routes| await_carrier(&mut routes, link));
        carried.map_err(GateError::Uplink)?;
        // From here on the sockets opened inside keep the namespace.
        let this = Self {
            routes,
            filter,
            _machine: machine,
            wires: HashMap::new(),
            limits,
            lingering: VecDeque::new(),
            free: FreeSlots::default(),
        };
        Ok((this, log, tracking))
    }

    /// A slot for a sandbox, to be given back.
    pub(crate) fn reserve(&mut self) -> Result<Slot, GateError> {
        self.free.take().ok_or(GateError::NoFreeWire)
    }

    /// Takes a slot back, whose wire is gone.
    pub(crate) fn give_back(&mut self, slot: Slot) {
        self.free.put(slot);
    }

    /// Lays a sandbox's wire: rules first, then the pair of interfaces, then the routes at both ends. If any of it
    /// fails, there is no wire.
    pub(crate) fn connect(
        &mut self,
        slot: Slot,
        sandbox: &NetNs,
        carries: Carries<'_>,
    ) -> Result<(), GateError> {
        let laid = self.set_rules(slot, carries).and_then(|()| self.lay(slot, sandbox));
        if laid.is_err() {
            let _ = self.disconnect(slot);
        }
        laid
    }

    /// Replaces what a wire may carry, in one transaction.
    pub(crate) fn set_rules(&mut self, slot: Slot, carries: Carries<'_>) -> Result<(), GateError> {
        let (batch, rules) = uplink_rules::wire(slot, carries, &self.limits, self.wires.get(&slot));
        self.filter.commit(batch).map_err(|error| GateError::Rules(WHOSE, error))?;
        self.wires.insert(slot, rules);
        Ok(())
    }

    /// Removes a wire. What has no other way stays on the sandbox's loopback then.
    ///
    /// Takes some 15 ms, which the kernel waits to be sure that nobody uses the interfaces any more.
    pub(crate) fn disconnect(&mut self, slot: Slot) -> Result<(), GateError> {
        self.cut(slot)?;
        self.remove_link(slot).map(drop)
    }

    /// Lets nothing pass by a wire any more whose sandbox has ended. Its interfaces go with the sandbox's namespace,
    /// a moment later: nobody has to wait for that.
    pub(crate) fn cut(&mut self, slot: Slot) -> Result<(), GateError> {
        let Some(rules) = self.wires.get(&slot) else { return Ok(()) };
        let removed = self.filter.commit(uplink_rules::remove_wire(slot, rules));
        self.lingering.push_back((slot, Instant::now()));
        match removed {
            Ok(_) => {
                self.wires.remove(&slot);
                Ok(())
            }
            // The rules are replaced by those of the next wire with this slot. Without interfaces nothing comes to them.
            Err(error) => {
                tracing::error!(%error, wire = slot.interface(), "the rules of a wire were not removed");
                self.remove_link(slot).map(drop)
            }
        }
    }

    /// Removes the interfaces of wires that were cut before `before` and whose namespaces are still there.
    pub(crate) fn remove_lingering(&mut self, before: Instant) -> Result<(), GateError> {
        let due: Vec<Slot> =
            self.lingering.iter().filter(|(_, cut)| *cut < before).map(|(slot, _)| *slot).collect();
        let mut result = Ok(());
        for slot in due {
            match self.remove_link(slot) {
                Ok(true) => {
                    tracing::warn!(
                        wire = slot.interface(),
                        "the namespace of an ended sandbox is still in use"
                    );
                }
                Ok(false) => {}
                // It is still among them, and tried again.
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Whether there was one.
    fn remove_link(&mut self, slot: Slot) -> Result<bool, GateError> {
        let set_up = |error| GateError::SetUp(WHOSE, error);
        let link = self.routes.link_index(&slot.interface()).map_err(set_up)?;
        let was_there = match link.map(|link| self.routes.delete_link(link)) {
            // It went by itself before, or in between.
            None => false,
            Some(Err(error)) if error.is_no_such_device() => false,
            Some(deleted) => deleted.map(|()| true).map_err(set_up)?,
        };
        self.lingering.retain(|(lingering, _)| *lingering != slot);
        Ok(was_there)
    }

    /// The wires there are.
    pub(crate) fn slots(&self) -> Vec<Slot> {
        self.wires.keys().copied().collect()
    }

    /// What the counters of a wire have counted since this was last asked; `None` if there is no such wire.
    pub(crate) fn take_counts(&mut self, slot: Slot) -> Result<Option<Counts>, GateError> {
        if !self.wires.contains_key(&slot) {
            return Ok(None);
        }
        let mut take = |name: String| {
            let taken = self.filter.take_counter(&uplink_rules::uplink_table(), &name);
            taken.map(|counter| counter.packets).map_err(|error| GateError::Rules(WHOSE, error))
        };
        let logged = take(uplink_rules::logged(slot))?;
        Ok(Some(Counts { logged, unlogged: take(uplink_rules::unlogged(slot))? }))
    }

    /// The bytes that went by a wire since it was laid.
    pub(crate) fn bytes(&mut self, slot: Slot) -> Result<Option<LinkBytes>, GateError> {
        let bytes = self.routes.link_bytes(&slot.interface());
        bytes.map_err(|error| GateError::SetUp(WHOSE, error))
    }

    /// As if somebody had deleted its rules.
    #[cfg(test)]
    pub(crate) fn lose_rules(&mut self) {
        let mut batch = nft::Batch::new();
        batch.del_table(&uplink_rules::uplink_table());
        self.filter.commit(batch).unwrap();
    }

    /// Whether the kernel takes it.
    #[cfg(test)]
    pub(crate) fn try_commit(&mut self, batch: nft::Batch) -> bool {
        self.filter.commit(batch).is_ok()
    }

    /// Makes its table again, without wires.
    #[cfg(test)]
    pub(crate) fn regain_rules(&mut self) {
        self.filter.commit(uplink_rules::table(&[])).unwrap();
    }

    /// Replaces the floor.
    pub(crate) fn set_floor(&mut self, floor: &[IpNet]) -> Result<(), GateError> {
        self.filter.commit(uplink_rules::floor(floor)).map_err(|error| GateError::Rules(WHOSE, error))
    }

    fn lay(&mut self, slot: Slot, sandbox: &NetNs) -> Result<(), GateError> {
        // Of an earlier sandbox with this slot.
        self.remove_link(slot)?;
        let set_up = |error| GateError::SetUp(WHOSE, error);
        let name = slot.interface();
        let veth = Veth {
            name: &name,
            peer_name: WIRE,
            peer_namespace: sandbox.as_fd(),
            hardware_address: slot.hardware_address(),
        };
        let link = self.routes.create_veth(&veth).map_err(set_up)?;
        self.routes.bring_up(link).map_err(set_up)?;
        for address in slot.addresses() {
            self.routes.set_route(&Route::direct(address.into(), link)).map_err(set_up)?;
        }
        let routed = sandbox.run(|| route_to_wire(slot));
        routed.map_err(|error| GateError::EnterNamespace("the sandbox", error))?.map_err(set_up)?;
        // Or the first answer would be lost.
        await_carrier(&mut self.routes, link).map_err(set_up)
    }
}

/// Waits until the end of a pair that came up first sends.
fn await_carrier(connection: &mut Connection, link: LinkIndex) -> Result<(), netns::Error> {
    const PATIENCE: Duration = Duration::from_secs(1);
    if !connection.wait_until_running(link, PATIENCE)? {
        tracing::warn!(%link, "a wire has no carrier yet");
    }
    Ok(())
}

/// What the counters of a wire show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Packets that were to be logged.
    pub(crate) logged: u64,
    /// Refused flows that were too many to be logged.
    pub(crate) unlogged: u64,
}

/// What is opened inside the uplink namespace.
struct Inside {
    routes: Connection,
    filter: nft::Connection,
    log: LogSocket,
    tracking: tracking::Opened,
}

impl Inside {
    fn open(floor: &[IpNet]) -> Result<Self, GateError> {
        let set_up = |error| GateError::SetUp(WHOSE, error);
        let rules = |error| GateError::Rules(WHOSE, error);
        for (name, value) in PARAMETERS {
            sysctl::set(name, value).map_err(set_up)?;
        }
        let mut routes = Connection::open().map_err(set_up)?;
        routes.bring_up(LinkIndex::LOOPBACK).map_err(set_up)?;
        let mut filter = nft::Connection::open().map_err(rules)?;
        filter.commit(uplink_rules::table(floor)).map_err(rules)?;
        let config = LogConfig {
            group: LOG_GROUP,
            snaplen: SNAPLEN,
            qthreshold: 64,
            timeout: Duration::from_millis(10),
            ..LogConfig::default()
        };
        let log = LogSocket::open(&config).map_err(|error| GateError::Log(WHOSE, error))?;
        Ok(Self { routes, filter, log, tracking: tracking::Opened::open()? })
    }
}

/// Below `/proc/sys/net`, in the uplink namespace.
const PARAMETERS: [(&str, &str); 10] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    // Each refusal is answered: nothing is to wait for one.
    ("ipv4/icmp_ratemask", "0"),
    ("ipv6/icmp/ratelimit", "0"),
];

/// Inside the sandbox's namespace. The addresses stay on loopback when the wire goes, so that connections through
/// the proxy which have them go on.
fn route_to_wire(slot: Slot) -> Result<(), netns::Error> {
    let mut connection = Connection::open()?;
    let missing =
        || netns::Error::FindLink { name: WIRE.to_owned(), source: std::io::ErrorKind::NotFound.into() };
    let link = connection.link_index(WIRE)?.ok_or_else(missing)?;
    connection.bring_up(link)?;
    for (destination, source) in everything().into_iter().zip(slot.addresses()) {
        connection.add_address(LinkIndex::LOOPBACK, source.into())?;
        let metric = Some(WIRE_METRIC);
        connection.set_route(&Route { source: Some(source), metric, ..Route::direct(destination, link) })?;
    }
    Ok(())
}

/// Inside the uplink namespace, after the pair to the machine was created.
fn link_inside(daemon: u32) -> Result<(), netns::Error> {
    let mut connection = Connection::open()?;
    let missing =
        || netns::Error::FindLink { name: UPLINK.to_owned(), source: std::io::ErrorKind::NotFound.into() };
    let link = connection.link_index(UPLINK)?.ok_or_else(missing)?;
    connection.bring_up(link)?;
    for (destination, own) in everything().into_iter().zip(uplink_addresses(daemon)) {
        connection.add_address(link, own.into())?;
        connection.set_route(&Route { source: Some(own), ..Route::direct(destination, link) })?;
    }
    Ok(())
}

/// Inside the machine's namespace: the link, its routes, its fence, and forwarding. The link gets no address: the
/// machine itself has nothing to say to the uplink.
fn link_to_machine(
    uplink: &NetNs,
    daemon: u32,
    ipv6: bool,
) -> Result<(nft::Connection, LinkIndex), GateError> {
    let rules = |error| GateError::Rules("the machine", error);
    let name = format!("bw-{daemon:08x}");
    // The fence stands before the first packet can come.
    let mut filter = nft::Connection::open().map_err(rules)?;
    filter.commit(uplink_rules::machine(&name)).map_err(rules)?;
    let mut connection = Connection::open().map_err(GateError::Uplink)?;
    if let Some(stale) = connection.link_index(&name).map_err(GateError::Uplink)? {
        // A daemon that died a moment ago: the kernel may still be taking its namespace down.
        match connection.delete_link(stale) {
            Err(error) if !error.is_no_such_device() => return Err(GateError::Uplink(error)),
            _ => {}
        }
    }
    let veth = Veth {
        name: &name,
        peer_name: UPLINK,
        peer_namespace: uplink.as_fd(),
        hardware_address: [0x02, 0x62, 0xff, 0xff, 0xff, 0xff],
    };
    let link = connection.create_veth(&veth).map_err(GateError::Uplink)?;
    sysctl::set(&format!("ipv6/conf/{name}/addr_gen_mode"), "1").map_err(GateError::Uplink)?;
    connection.bring_up(link).map_err(GateError::Uplink)?;
    for address in uplink_addresses(daemon) {
        if address.is_ipv4() || ipv6 {
            connection.set_route(&Route::direct(IpNet::from(address), link)).map_err(GateError::Uplink)?;
        }
    }
    enable_forwarding(ipv6).map_err(GateError::Uplink)?;
    Ok((filter, link))
}

/// A machine that forwards IPv6 stops learning its own routes from router advertisements unless it is told to go on.
pub(crate) fn enable_forwarding(ipv6: bool) -> Result<(), netns::Error> {
    if sysctl::get("ipv4/ip_forward")? != "1" {
        sysctl::set("ipv4/ip_forward", "1")?;
    }
    if !ipv6 || sysctl::get("ipv6/conf/all/forwarding")? == "1" {
        return Ok(());
    }
    for interface in sysctl::names("ipv6/conf")? {
        let accepts = format!("ipv6/conf/{interface}/accept_ra");
        if sysctl::get(&accepts)? == "1" {
            sysctl::set(&accepts, "2")?;
        }
    }
    sysctl::set("ipv6/conf/all/forwarding", "1")
}

/// Slots that were never used come first, and then those that were given back the longest ago: connection tracking
/// still knows the flows of a wire that is gone, and their late replies must not reach a sandbox with its address.
#[derive(Default)]
struct FreeSlots {
    next: u32,
    returned: VecDeque<u32>,
}

impl FreeSlots {
    fn take(&mut self) -> Option<Slot> {
        if let Some(slot) = Slot::new(self.next) {
            self.next += 1;
            return Some(slot);
        }
        Slot::new(self.returned.pop_front()?)
    }

    fn put(&mut self, slot: Slot) {
        self.returned.push_back(slot.number());
    }
}

/// Tells one daemon's uplink from another's: FNV-1a of its id.
pub(crate) fn daemon_number(id: &str) -> u32 {
    id.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use policy::{Floor, Policy, PolicySpec};

    use super::*;

    #[test]
    fn slots_are_used_again_only_when_there_is_no_fresh_one_and_then_the_oldest_first() {
        let mut free = FreeSlots::default();
        let (a, b) = (free.take().unwrap(), free.take().unwrap());
        assert_ne!(a, b);
        free.put(b);
        free.put(a);
        assert!(![a, b].contains(&free.take().unwrap()));
        free.next = Slot::COUNT;
        assert_eq!([free.take(), free.take(), free.take()], [Some(b), Some(a), None]);
    }

    #[test]
    fn a_wire_whose_rules_cannot_be_removed_goes_at_once() {
        let (machine, ()) = NetNs::create_and(|| ()).unwrap();
        machine
            .run(|| {
                let (mut uplink, ..) = Uplink::create(1, &[], false, WireLimits::default()).unwrap();
                let policy = Policy::compile(&PolicySpec::default(), Arc::new(Floor::new([]))).unwrap();
                let carries = Carries { view: policy.kernel(), ipv6: false };
                let slot = uplink.reserve().unwrap();
                let loopback = || Connection::open()?.bring_up(LinkIndex::LOOPBACK);
                let (sandbox, up) = NetNs::create_and(loopback).unwrap();
                up.unwrap();
                uplink.connect(slot, &sandbox, carries).unwrap();
                assert!(uplink.bytes(slot).unwrap().is_some());
                uplink.lose_rules();
                uplink.cut(slot).unwrap();
                assert!(uplink.bytes(slot).unwrap().is_none(), "there is no such interface any more");
                assert!(uplink.lingering.is_empty());
            })
            .unwrap();
    }

    #[test]
    fn a_wire_that_was_cut_goes_with_its_sandbox_and_if_that_stays_by_itself() {
        let (machine, ()) = NetNs::create_and(|| ()).unwrap();
        machine
            .run(|| {
                let (mut uplink, ..) = Uplink::create(1, &[], false, WireLimits::default()).unwrap();
                let spec = PolicySpec::default();
                let policy = Policy::compile(&spec, Arc::new(Floor::new([]))).unwrap();
                let carries = Carries { view: policy.kernel(), ipv6: false };
                let lay = |uplink: &mut Uplink| {
                    let slot = uplink.reserve().unwrap();
                    let loopback = || Connection::open()?.bring_up(LinkIndex::LOOPBACK);
                    let (sandbox, up) = NetNs::create_and(loopback).unwrap();
                    up.unwrap();
                    uplink.connect(slot, &sandbox, carries).unwrap();
                    (slot, sandbox)
                };
                let ((going, gone), (staying, stays)) = (lay(&mut uplink), lay(&mut uplink));
                let there = |uplink: &mut Uplink, slot: Slot| {
                    uplink.routes.link_index(&slot.interface()).unwrap().is_some()
                };
                for slot in [going, staying] {
                    assert!(there(&mut uplink, slot));
                    uplink.cut(slot).unwrap();
                }
                drop(gone);
                let deadline = Instant::now() + Duration::from_secs(20);
                while there(&mut uplink, going) {
                    assert!(Instant::now() < deadline, "the wire stays");
                    std::thread::yield_now();
                }
                assert!(there(&mut uplink, staying));
                uplink.remove_lingering(Instant::now()).unwrap();
                assert!(!there(&mut uplink, staying));
                assert!(uplink.lingering.is_empty());
                drop(stays);
            })
            .unwrap();
    }

    #[test]
    fn daemons_have_different_numbers() {
        assert_ne!(daemon_number("a"), daemon_number("b"));
    }
}
