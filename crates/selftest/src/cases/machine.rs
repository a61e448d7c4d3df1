//! Metadata services, the machine, its control plane and the kernel.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use sys::forbidden::Call;

use super::{Action, Attempt, Case, Plan, User, canary};
use crate::{
    forms::http::request,
    probe::Change,
    report::Group,
    sinks::{Kind, SERVICE_PORT},
    world::NODE,
};

/// Where clouds give credentials out, in all notations.
const METADATA: [&str; 18] = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "169.254.42.42",
    "169.254.0.23",
    "168.63.129.16",
    "100.100.100.200",
    "192.0.0.192",
    "169.254.169.253",
    "169.254.169.123",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:42::42",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "::169.254.169.254",
];
/// Addresses that mean the machine, its containers' gateway or the gate.
const LOCAL: [&str; 12] = [
    "100.64.0.1",
    "100.95.240.1",
    "172.17.0.1",
    "192.168.65.7",
    "192.168.1.1",
    "10.0.0.1",
    "198.18.200.200",
    "fd62:6169:6c69::1",
    "fd62:6169:6c69:2::1",
    "100.80.0.9",
    "fd62:6169:6c69:1::9",
    "2001:db8::1",
];
/// Ports of control planes: of this program, of containers and of clusters.
const CONTROL_PORTS: [u16; 6] = [8080, SERVICE_PORT, 2375, 2376, 6443, 10250];
/// Ports that the gate listens on inside.
const GATE_PORTS: [u16; 4] = [53, 4, 6, 8];

const AF_NETLINK: u16 = 16;
const AF_PACKET: u16 = 17;
const AF_VSOCK: u16 = 40;
const STREAM: u32 = 1;
const DATAGRAM: u32 = 2;
const RAW: u32 = 3;

pub(super) fn cases(plan: &Plan<'_>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut add = |id, title, attempts: Result<Vec<_>>| -> Result<()> {
        cases.push(plan.case(Group::Machine, id, title, attempts?));
        Ok(())
    };
    add("G138", "metadata services", metadata(plan))?;
    add("G146", "services of the machine, at its own addresses", services(plan))?;
    add("G147", "control planes, gateways, neighbours and the gate", control_planes(plan))?;
    add("G151", "a sandbox reaches itself", itself(plan))?;
    add("G113", "raw, packet and other sockets", sockets(plan))?;
    add("G154", "changes of rules, routes and interfaces", changes(plan))?;
    add("G158", "system calls that lead out", calls(plan))?;
    add("G155", "files of the machine and of the kernel", files(plan))?;
    add("G148", "listening where the gate does", listening(plan))?;
    Ok(cases)
}

fn connection(plan: &Plan<'_>, address: IpAddr, port: u16) -> Result<Attempt> {
    let (canary, to) = (canary()?, SocketAddr::new(address, port));
    let said = request(Some("localhost"), &format!("/{canary}"), "");
    // Whatever is said there is said to nobody, unless the policy opens the place itself.
    let expect = plan.ground.unknown(address.to_canonical(), port);
    Ok(plan.tcp(format!("HTTP at {to}"), &canary, to, vec![said], expect))
}

fn metadata(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for text in METADATA {
        let address: IpAddr = text.parse()?;
        attempts.push(connection(plan, address, 80)?);
        attempts.push(plan.datagram(format!("a datagram to {text}"), SocketAddr::new(address, 9), b"")?);
    }
    Ok(attempts)
}

/// The addresses of the node, where there is such a service, and those of the machine that the test runs on.
fn services(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let own = plan.machine.iter().filter(|address| !address.is_loopback());
    let mut attempts = Vec::new();
    for address in NODE.iter().chain(own) {
        // A link-local address is of no use without an interface.
        if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
            continue;
        }
        for port in [22, SERVICE_PORT] {
            let mut attempt = connection(plan, *address, port)?;
            if NODE.contains(address)
                && let Some(place) = &mut attempt.place
            {
                place.kind = Kind::Node;
            }
            attempts.push(attempt);
        }
    }
    Ok(attempts)
}

fn control_planes(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for text in LOCAL {
        let address: IpAddr = text.parse()?;
        for port in CONTROL_PORTS {
            attempts.push(connection(plan, address, port)?);
        }
    }
    for text in ["127.0.0.1", "127.0.0.53", "::1", "0.0.0.0", "::ffff:127.0.0.1"] {
        for port in CONTROL_PORTS.into_iter().chain(GATE_PORTS) {
            let mut attempt = connection(plan, text.parse()?, port)?;
            // It is its own, where nobody listens.
            attempt.is_recorded = false;
            attempts.push(attempt);
        }
    }
    Ok(attempts)
}

fn itself(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for at in ["127.0.0.1:0", "127.7.7.7:0", "[::1]:0"] {
        attempts.push(plan.own(format!("at {at}"), at.parse()?));
    }
    Ok(attempts)
}

fn by_both(attempts: Vec<Attempt>) -> Vec<Attempt> {
    let root = attempts.clone().into_iter().map(|attempt| {
        let what = format!("{} as root", attempt.what);
        Attempt { what, ..attempt }.by(User::Root)
    });
    let root: Vec<Attempt> = root.collect();
    attempts.into_iter().chain(root).collect()
}

fn sockets(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let kinds = [
        ("AF_VSOCK", AF_VSOCK, STREAM, 0),
        ("AF_PACKET", AF_PACKET, RAW, 0x0300),
        ("AF_PACKET, datagrams", AF_PACKET, DATAGRAM, 0x0300),
        ("raw IP", 2, RAW, 255),
        ("raw ICMP", 2, RAW, 1),
        ("raw IPv6", 10, RAW, 255),
        ("SCTP", 2, STREAM, 132),
        ("DCCP", 2, 6, 33),
        ("MPTCP", 2, STREAM, 262),
        ("UDP-Lite", 2, DATAGRAM, 136),
        ("netlink to netfilter", AF_NETLINK, RAW, 12),
        ("netlink to sockets", AF_NETLINK, RAW, 4),
        ("AF_ALG", 38, 5, 0),
        ("AF_KEY", 15, RAW, 2),
        ("AF_XDP", 44, RAW, 0),
        ("AF_BLUETOOTH", 31, RAW, 1),
        ("AF_CAN", 29, RAW, 1),
        ("AF_TIPC", 30, DATAGRAM, 0),
        ("AF_RDS", 21, 5, 0),
    ];
    let attempts = kinds.into_iter().map(|(what, family, kind, protocol)| {
        plan.never(what, "the filter of system calls", Action::Socket { family, kind, protocol })
    });
    Ok(by_both(attempts.collect::<Result<_>>()?))
}

fn changes(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let attempts = Change::ALL.into_iter().map(|change| {
        plan.never(format!("{change:?}"), "the owner of the network namespace", Action::Network { change })
    });
    Ok(by_both(attempts.collect::<Result<_>>()?))
}

fn calls(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let attempts = Call::ALL.into_iter().map(|call| {
        let action = Action::Call { name: call.name().to_owned() };
        plan.never(call.name(), "the filter of system calls", action)
    });
    Ok(by_both(attempts.collect::<Result<_>>()?))
}

fn files(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let read = [
        "/proc/1/environ",
        "/proc/1/mem",
        "/proc/1/root/etc/passwd",
        "/proc/1/ns/net",
        "/proc/kcore",
        "/proc/keys",
        "/proc/sched_debug",
        "/proc/timer_list",
        "/dev/mem",
        "/dev/kmsg",
        "/dev/net/tun",
        "/dev/vsock",
        "/dev/vhost-net",
        "/dev/kvm",
        "/sys/kernel/debug",
        "/sys/firmware/dmi/tables/DMI",
        "/var/lib/bailiwick/bailiwick.db",
        "/run/docker.sock",
        "/var/run/docker.sock",
    ];
    let write = [
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/vm/drop_caches",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/net/ipv4/conf/all/route_localnet",
        "/sys/kernel/uevent_helper",
        "/sys/power/state",
        crate::inside::PROBE,
    ];
    let paths = read.into_iter().map(|path| (path, false)).chain(write.into_iter().map(|path| (path, true)));
    let attempts = paths.map(|(path, write)| {
        let what = format!("{} {path}", if write { "writing" } else { "reading" });
        plan.never(what, "the sandbox's file system", Action::Open { path: path.into(), write })
    });
    Ok(by_both(attempts.collect::<Result<_>>()?))
}

/// Whoever listened there would get what is meant for the gate.
fn listening(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for address in ["100.64.0.1", "fd62:6169:6c69::1"] {
        for port in GATE_PORTS {
            let at = SocketAddr::new(address.parse()?, port);
            attempts.push(plan.never(format!("at {at}"), "the gate's own address", Action::Listen { at })?);
        }
    }
    Ok(by_both(attempts))
}
