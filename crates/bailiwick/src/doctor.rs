//! `bailiwick doctor`: whether this machine can run sandboxes, found out by trying.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use anyhow::Result;
use owo_colors::OwoColorize;
use serde::Serialize;

use crate::{
    cli::DoctorArgs,
    config::{Config, DataArgs},
    exit, residual,
};

/// The oldest kernel with idmapped mounts below overlayfs.
const OLDEST_KERNEL: (u32, u32) = (5, 19);
/// Descriptors below which only few sandboxes can live: about fifteen each.
const FEW_DESCRIPTORS: u64 = 4096;

/// All there is to say, as JSON.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    checks: &'a [Finding],
    /// What is not stopped.
    limits: Vec<residual::Told>,
}

/// What one check found.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// Works, with a limitation.
    Warning,
    /// Sandboxes cannot run like this.
    Problem,
}

/// Checks everything and prints what was found; exit code 1 if anything is in the way.
pub(crate) fn run(data: &DataArgs, args: &DoctorArgs) -> Result<u8> {
    let config = Config::load(data, &args.serve)?;
    let mut findings = vec![user(), kernel(), cgroups(), namespaces(), nftables(), descriptors()];
    findings.push(data_dir(&config.data_dir));
    findings.push(idmapped_mounts(&config.data_dir));
    findings.push(templates(&config.templates_dir));
    findings.push(ok("limits", config.limits.to_string()));
    findings.extend(config.listen.iter().map(|address| port(*address)));
    if args.json {
        let answer = Answer { checks: &findings, limits: residual::told(&config.limits) };
        anstream::println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        findings.iter().for_each(print);
        let ids: Vec<_> = residual::RESIDUALS.iter().map(|residual| residual.id).collect();
        anstream::println!("\nnot stopped (docs/threat-model.md, or --json): {}", ids.join(", "));
    }
    let problem = findings.iter().any(|finding| finding.status == Status::Problem);
    Ok(if problem { exit::FAILED } else { exit::OK })
}

fn print(finding: &Finding) {
    let mark = match finding.status {
        Status::Ok => "ok     ".green().to_string(),
        Status::Warning => "warning".yellow().to_string(),
        Status::Problem => "problem".red().bold().to_string(),
    };
    anstream::println!("{mark}  {:<16} {}", finding.check, finding.detail);
    if let Some(advice) = &finding.advice {
        anstream::println!("         {:<16} {}", "", advice.bold());
    }
}

fn ok(check: &'static str, detail: impl Into<String>) -> Finding {
    Finding { check, status: Status::Ok, detail: detail.into(), advice: None }
}

fn warning(check: &'static str, detail: impl Into<String>, advice: &str) -> Finding {
    Finding { check, status: Status::Warning, detail: detail.into(), advice: Some(advice.to_owned()) }
}

fn problem(check: &'static str, detail: impl Into<String>, advice: &str) -> Finding {
    Finding { check, status: Status::Problem, detail: detail.into(), advice: Some(advice.to_owned()) }
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        ok("user", "root")
    } else {
        problem("user", "not root", "run as root: namespaces, mounts and firewall rules need it")
    }
}

fn kernel() -> Finding {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        ok("kernel", release)
    } else {
        let (major, minor) = OLDEST_KERNEL;
        problem(
            "kernel",
            release,
            &format!("use Linux {major}.{minor} or newer: overlays on idmapped mounts are needed"),
        )
    }
}

/// Limits may be in a version 1 hierarchy each, or all in the version 2 tree, or some here and some there.
fn cgroups() -> Finding {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = Vec::new();
    for mount in mounts.lines() {
        let fields: Vec<&str> = mount.split(' ').collect();
        let (Some(path), Some(dash)) = (fields.get(4), fields.iter().position(|field| *field == "-")) else {
            continue;
        };
        let controllers = match fields.get(dash + 1) {
            Some(&"cgroup2") => fs::read_to_string(format!("{path}/cgroup.controllers")).unwrap_or_default(),
            Some(&"cgroup") => fields.last().map(|options| options.replace(',', " ")).unwrap_or_default(),
            _ => continue,
        };
        let version = if fields.get(dash + 1) == Some(&"cgroup2") { "v2" } else { "v1" };
        let wanted = ["memory", "cpu", "pids"].into_iter();
        found.extend(
            wanted
                .filter(|wanted| controllers.split_whitespace().any(|controller| controller == *wanted))
                .map(|controller| format!("{controller} ({version})")),
        );
    }
    let missing: Vec<_> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter(|name| !found.iter().any(|f| f.starts_with(name)))
        .collect();
    if missing.is_empty() {
        ok("cgroups", found.join(", "))
    } else {
        let advice =
            "boot with these controllers enabled, and mount cgroup2 at /sys/fs/cgroup (systemd does)";
        problem("cgroups", format!("no controller for {}", missing.join(", ")), advice)
    }
}

fn namespaces() -> Finding {
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if limit.trim() == "0" {
        return problem("namespaces", "user namespaces are off", "sysctl -w user.max_user_namespaces=15000");
    }
    match netns::NetNs::create_and(|| ()) {
        Ok(_) => ok("namespaces", "network and user namespaces"),
        Err(error) => problem(
            "namespaces",
            format!("no network namespace: {error}"),
            "run as root, not in a container without CAP_SYS_ADMIN",
        ),
    }
}

/// Installs what a gate installs, in a namespace that is thrown away.
fn nftables() -> Finding {
    use nft::{Batch, Chain, ChainType, Connection, Hook, Policy, Table, priority, rule};
    let attempt = netns::NetNs::create_and(|| {
        let table = Table::inet("bailiwick_doctor");
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_chain(
            &table,
            &Chain::base("output", ChainType::Route, Hook::Output, priority::MANGLE, Policy::Accept),
        );
        batch.add_chain(
            &table,
            &Chain::base("prerouting", ChainType::Filter, Hook::Prerouting, priority::MANGLE, Policy::Accept),
        );
        batch.add_rule(&table, "output", rule().ipv4().tcp().daddr(Ipv4Addr::BROADCAST).reset());
        batch.add_rule(&table, "prerouting", rule().ipv4().tcp().tproxy(Ipv4Addr::LOCALHOST, 1).accept());
        Connection::open()?.commit(batch)
    });
    let advice =
        "load the modules: modprobe nf_tables nft_tproxy nft_reject_inet nfnetlink_log nft_log nft_masq";
    match attempt {
        Ok((_, Ok(()))) => ok("nftables", "reject and tproxy work"),
        Ok((_, Err(error))) => problem("nftables", error.to_string(), advice),
        Err(error) => problem("nftables", error.to_string(), advice),
    }
}

fn descriptors() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match limit {
        Some(limit) if limit < FEW_DESCRIPTORS => warning(
            "descriptors",
            format!("at most {limit}"),
            "raise the limit (LimitNOFILE= in a unit): a sandbox takes about fifteen",
        ),
        Some(limit) => ok("descriptors", format!("at most {limit}")),
        None => ok("descriptors", "unlimited"),
    }
}

fn data_dir(path: &Path) -> Finding {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::access(existing, rustix::fs::Access::WRITE_OK) {
        Ok(()) => ok("data directory", path.display().to_string()),
        Err(error) => problem(
            "data directory",
            format!("{}: {error}", existing.display()),
            "choose another with --data-dir",
        ),
    }
}

/// Maps a copy of the directory's mount to the ids of a user namespace, as every template layer is.
fn idmapped_mounts(data_dir: &Path) -> Finding {
    use rustix::{
        fs::CWD,
        mount::{OpenTreeFlags, open_tree},
    };
    let existing = data_dir.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let attempt = || -> std::io::Result<()> {
        let (first, _) = sandbox::DEFAULT_IDS;
        let namespace = sys::userns::create(sys::userns::IdRange { first, count: sandbox::IDS_PER_SANDBOX })?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        sys::mount::set_idmap(open_tree(CWD, existing, flags)?, namespace)
    };
    match attempt() {
        Ok(()) => ok("idmapped mounts", format!("work at {}", existing.display())),
        Err(error) => {
            let advice = "put --data-dir on ext4, xfs or btrfs, and run as root";
            problem("idmapped mounts", format!("{}: {error}", existing.display()), advice)
        }
    }
}

fn templates(directory: &Path) -> Finding {
    if !directory.exists() {
        return warning("templates", "only host", "build more: bailiwick template build base python");
    }
    let found = sandbox::template::Templates::open(directory).and_then(|templates| templates.list());
    match found.map(|all| all.into_iter().map(|manifest| manifest.name).collect::<Vec<_>>().join(", ")) {
        Ok(names) if !names.is_empty() => ok("templates", names),
        Ok(_) => warning("templates", "only host", "build more: bailiwick template build base python"),
        Err(error) => {
            problem("templates", error.to_string(), "choose another directory with --templates-dir")
        }
    }
}

fn port(address: std::net::SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => ok("port", format!("{address} is free")),
        Err(error) => warning(
            "port",
            format!("{address}: {error}"),
            "a daemon is running there already, or choose another with --listen",
        ),
    }
}
