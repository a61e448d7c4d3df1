//! What is not stopped: the one table that `bailiwick doctor --json` and `docs/threat-model.md` have.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::limits::Limits;

/// A channel that stays open, or a harm that stays possible.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Residual {
    /// A stable word for it.
    pub id: &'static str,
    /// What it is, as a heading.
    pub title: &'static str,
    /// When there is it.
    pub applies: Applies,
    /// What it is, in Markdown.
    pub detail: &'static str,
    /// Which limits bound it, by their names in the configuration.
    pub bounded_by: &'static [&'static str],
}

/// When a channel is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applies {
    /// In any case.
    Always,
    /// Under such policies.
    Policies(&'static str),
    /// With this template.
    Template(&'static str),
}

/// All of them that are known.
pub(crate) const RESIDUALS: &[Residual] = &[
    Residual {
        id: "permitted_host",
        title: "A permitted host that helps",
        applies: Applies::Always,
        detail: "Whoever may talk to `api.github.com` can send it anything, also for somebody else's account: a host that \
                 serves several tenants under one name is one host. What is said to it, it may pass on, be it a \
                 redirector, a translator, an archive or a proxy (inside TLS one for datagrams, too). A redirection that \
                 comes back is a new connection, and judged. Each connection is on record. Content inspection \
                 is not there yet; how many bytes go out can be [limited](concepts/limits.md).",
        bounded_by: &["bytes_up", "bytes_total"],
    },
    Residual {
        id: "domain_fronting",
        title: "A front that serves others, too",
        applies: Applies::Policies("with host names"),
        detail: "TLS is not opened: the server name is judged, and the connection goes to that name's own address. If a \
                 content delivery network answers there for many, a request inside may name another of its customers, \
                 and the network may pass it on. HTTP in clear is judged by every request's Host.",
        bounded_by: &[],
    },
    Residual {
        id: "zone_names",
        title: "Names inside a permitted zone",
        applies: Applies::Policies("with wildcards or expressions"),
        detail: "A permitted `*.example.com` whose owner is the attacker can carry data in the names that are looked up. \
                 How much is [limited](concepts/limits.md): by default 8 KiB at once and 17 bytes a second after that, \
                 for each wildcard and each expression. Which of the names that were asked before are asked again, and \
                 when, tells something too; the cache answers most of that (for a minute at least, for 5 seconds if \
                 there is no such name, for 2 if the server failed). A server name on a connection to the zone's own \
                 server is not DNS and not limited: the connection carries whatever it likes anyway.",
        bounded_by: &["zone_names", "zone_names_per_minute", "zone_bytes", "zone_bytes_per_minute"],
    },
    Residual {
        id: "timing_and_volume",
        title: "Timing and traffic volume",
        applies: Applies::Always,
        detail: "When something goes to a permitted host, how often and how much, tells something to that host and to \
                 whoever is on the way; so does when a permitted name is looked up first. The number and the source port of \
                 a query are the node's own, and a name that is cached is not asked for again.",
        bounded_by: &["flows_per_second", "flows_burst", "wire_flows_per_second", "wire_flows_burst"],
    },
    Residual {
        id: "ech",
        title: "Encrypted Client Hello",
        applies: Applies::Policies("with `\"ech\": \"permit\"`"),
        detail: "The outer name is judged, the inner one is not seen.",
        bounded_by: &[],
    },
    Residual {
        id: "shared_address",
        title: "A server that permitted names share an address with",
        applies: Applies::Policies("with host names"),
        detail: "Protocols in which the server speaks first carry no name; they pass to an address that a permitted name \
                 resolved to, except on ports 80 and 443.",
        bounded_by: &[],
    },
    Residual {
        id: "address_entries",
        title: "What goes to a permitted address",
        applies: Applies::Policies("with address entries, and open ones"),
        detail: "The kernel forwards it without looking into it: any protocol, any name, tunnels included, and what a \
                 proxy there is asked for.",
        bounded_by: &["wire_flows", "wire_flows_per_second", "wire_flows_burst"],
    },
    Residual {
        id: "kernel",
        title: "The kernel",
        applies: Applies::Always,
        detail: "Sandboxes share the machine's kernel. An exploit of it is an escape; seccomp narrows what can be \
                 reached. Backends with a kernel of their own are not there yet.",
        bounded_by: &[],
    },
    Residual {
        id: "shared_counts",
        title: "What the kernel counts for all",
        applies: Applies::Always,
        detail: "Some things the kernel has only so many of for the whole machine, and a sandbox can take them: terminals, at \
                 64 for each sandbox. A new terminal may then fail in other sandboxes and on the machine. (What it counts \
                 for each user, such as instances of inotify, counts for each sandbox.) The network is not concerned.",
        bounded_by: &[],
    },
    Residual {
        id: "shared_hardware",
        title: "The hardware",
        applies: Applies::Always,
        detail: "Sandboxes that share processors and caches can tell each other something by load and timing. Nothing \
                 is done against that but the limits on what each may use.",
        bounded_by: &["cpu_millis", "memory_mib"],
    },
    Residual {
        id: "host_template",
        title: "The machine's own programs",
        applies: Applies::Template("host"),
        detail: "It shows the machine's `/usr` read-only; root inside can read files there that only root on the machine \
                 can. The other templates have nothing of the machine's.",
        bounded_by: &[],
    },
    Residual {
        id: "disk",
        title: "Denial of service by filling the disk",
        applies: Applies::Always,
        detail: "The writable layer has no quota yet.",
        bounded_by: &[],
    },
];

/// A channel as `doctor --json` tells it.
#[derive(Debug, Serialize)]
pub(crate) struct Told {
    id: &'static str,
    title: &'static str,
    applies: String,
    detail: String,
    /// The limits in force that bound it.
    bounds: BTreeMap<&'static str, u64>,
}

/// All of them, with the limits that are in force.
pub(crate) fn told(limits: &Limits) -> Vec<Told> {
    let tell = |residual: &Residual| Told {
        id: residual.id,
        title: residual.title,
        applies: residual.applies.words(),
        detail: plain(residual.detail),
        bounds: residual.bounded_by.iter().filter_map(|name| Some((*name, limits.get(name)?))).collect(),
    };
    RESIDUALS.iter().map(tell).collect()
}

/// All of them, as a list in Markdown.
pub(crate) fn markdown() -> String {
    let entry = |residual: &Residual| {
        let when = match residual.applies {
            Applies::Always => String::new(),
            _ => format!(", {}", residual.applies.words()),
        };
        wrapped(&format!("- **{}** (`{}`{when}). {}", residual.title, residual.id, residual.detail))
    };
    RESIDUALS.iter().map(entry).collect()
}

impl Applies {
    fn words(self) -> String {
        match self {
            Self::Always => "always".to_owned(),
            Self::Policies(which) => format!("under policies {which}"),
            Self::Template(name) => format!("with the template `{name}`"),
        }
    }
}

/// Without links: `[text](target)` becomes `text`.
fn plain(markdown: &str) -> String {
    let mut text = String::with_capacity(markdown.len());
    let mut rest = markdown;
    while let Some((before, link)) = rest.split_once('[') {
        text.push_str(before);
        rest = match link.split_once("](").and_then(|(name, after)| Some((name, after.split_once(')')?.1))) {
            Some((name, after)) => {
                text.push_str(name);
                after
            }
            None => {
                text.push('[');
                link
            }
        };
    }
    text + rest
}

/// The longest line of a page.
const WIDTH: usize = 120;

/// A list entry in lines of at most [`WIDTH`] characters, all but the first indented.
fn wrapped(entry: &str) -> String {
    let mut text = String::new();
    let mut column = 0;
    for word in entry.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            text.push_str("\n  ");
            column = 2;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_word_of_its_own_and_bounds_that_there_are() {
        let mut ids: Vec<_> = RESIDUALS.iter().map(|residual| residual.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), RESIDUALS.len());
        for (residual, told) in RESIDUALS.iter().zip(told(&Limits::default())) {
            assert!(
                residual.id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{}",
                residual.id
            );
            assert_eq!(told.bounds.len(), residual.bounded_by.len(), "{}", residual.id);
        }
    }

    #[test]
    fn the_threat_model_has_all_of_them_and_no_others() {
        let page = include_str!("../../../docs/threat-model.md");
        assert!(page.contains(&markdown()), "run `cargo xtask gen`");
    }

    #[test]
    fn text_is_wrapped_and_links_are_left_out_where_there_are_none() {
        assert_eq!(plain("it is [limited](a.md): [x] and [y](z"), "it is limited: [x] and [y](z");
        let long = wrapped(&format!("- {}", "word ".repeat(60).trim_end()));
        assert!(
            long.lines().count() == 3 && long.lines().all(|line| line.chars().count() <= WIDTH),
            "{long}"
        );
        assert!(long.lines().skip(1).all(|line| line.starts_with("  word")), "{long}");
    }
}
