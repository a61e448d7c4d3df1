//! What may be linked: banned crates, doubled crates, licences. The rules are those of `deny.toml`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    str::FromStr,
};

use anyhow::{Context, bail, ensure};
use cargo_metadata::{
    Package,
    semver::{Version, VersionReq},
};
use serde::Deserialize;
use spdx::{Expression, Licensee, ParseMode};

use super::Finding;

/// The parts of `deny.toml` that are checked here.
#[derive(Deserialize)]
pub(super) struct DenyRules {
    bans: Bans,
    licenses: Licences,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Exception>,
    skip: Vec<Exception>,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

/// A package specification with a reason.
#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    spec: Spec,
    /// Crates that may use it directly all the same.
    #[serde(default)]
    wrappers: BTreeSet<String>,
    #[serde(default)]
    reason: String,
}

/// `name`, `name@1.2.3` (exactly) or `name:requirement`, as cargo-deny has it.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Spec {
    text: String,
    name: String,
    version: VersionReq,
}

/// A package that is compiled for the product, its tools, or at build time for them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Built {
    name: String,
    version: Version,
}

/// What is compiled and who uses it.
#[derive(Debug, Default)]
pub(super) struct BuildGraph {
    users: BTreeMap<Built, BTreeSet<String>>,
}

impl BuildGraph {
    /// Asks cargo for what it compiles for `target`.
    ///
    /// This is `cargo tree`, because the resolution in `cargo metadata` also has what the lock file foresees for
    /// features that nobody switched on.
    pub(super) fn read(root: &Path, target: &str) -> anyhow::Result<Self> {
        #[expect(clippy::disallowed_types, reason = "a developer command, not the product")]
        let output = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["tree", "--workspace", "--edges", "normal,build", "--prefix", "depth", "--format", "{p}"])
            .args(["--target", target])
            .current_dir(root)
            .output()
            .context("cannot run cargo tree")?;
        ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
        Self::parse(&String::from_utf8(output.stdout).context("cargo tree does not print UTF-8")?)
    }

    /// How many packages there are.
    pub(super) fn len(&self) -> usize {
        self.users.len()
    }

    /// Parses lines such as `2serde v1.0.0 (proc-macro)`: depth, name, version, remarks.
    fn parse(tree: &str) -> anyhow::Result<Self> {
        let mut graph = Self::default();
        // The package at each depth on the way to the current line.
        let mut path: Vec<String> = Vec::new();
        for line in tree.lines().filter(|line| !line.is_empty()) {
            let (depth, rest) = line.split_at(line.find(|c: char| !c.is_ascii_digit()).unwrap_or(line.len()));
            let mut words = rest.split_whitespace();
            let (Some(name), Some(version)) = (words.next(), words.next().and_then(|v| v.strip_prefix('v')))
            else {
                bail!("cargo tree prints {line:?}");
            };
            let version = Version::parse(version).with_context(|| format!("cargo tree prints {line:?}"))?;
            path.truncate(depth.parse().with_context(|| format!("cargo tree prints {line:?}"))?);
            let users = graph.users.entry(Built { name: name.to_owned(), version }).or_default();
            users.extend(path.last().cloned());
            path.push(name.to_owned());
        }
        Ok(graph)
    }
}

/// Whether a banned crate is compiled, and every ban has a reason.
pub(super) fn check_bans(rules: &DenyRules, graph: &BuildGraph) -> Vec<Finding> {
    const RULE: &str = "bans";
    let mut findings = Vec::new();
    for ban in &rules.bans.deny {
        findings.extend(without_reason(RULE, ban));
        for (built, users) in graph.users.iter().filter(|(built, _)| ban.spec.matches(built)) {
            let others: Vec<_> = users.difference(&ban.wrappers).map(String::as_str).collect();
            if !others.is_empty() || users.is_empty() {
                let text =
                    format!("{} is banned ({}) and used by {}", built.name, ban.reason, others.join(", "));
                findings.push(Finding::new(RULE, text));
            }
        }
    }
    findings
}

/// Whether a crate is compiled in two versions without a reason, and every reason is still needed.
pub(super) fn check_duplicates(rules: &DenyRules, graph: &BuildGraph) -> Vec<Finding> {
    const RULE: &str = "duplicates";
    let mut by_name: BTreeMap<&str, Vec<&Built>> = BTreeMap::new();
    for built in graph.users.keys() {
        by_name.entry(&built.name).or_default().push(built);
    }
    let mut findings = Vec::new();
    for versions in by_name.values() {
        let counted: Vec<_> = versions
            .iter()
            .filter(|built| !rules.bans.skip.iter().any(|skip| skip.spec.matches(built)))
            .collect();
        if counted.len() > 1 {
            let users =
                |built: &Built| graph.users.get(built).into_iter().flatten().cloned().collect::<Vec<_>>();
            let list =
                counted.iter().map(|built| format!("{} by {}", built.version, users(built).join(", ")));
            let list = list.collect::<Vec<_>>().join("; ");
            let name = versions.first().map_or("", |built| &built.name);
            findings.push(Finding::new(RULE, format!("{name} is compiled in two versions: {list}")));
        }
    }
    for skip in &rules.bans.skip {
        findings.extend(without_reason(RULE, skip));
        let versions = by_name.get(skip.spec.name.as_str()).map_or(&[][..], Vec::as_slice);
        if versions.len() < 2 || !versions.iter().any(|built| skip.spec.matches(built)) {
            findings.push(Finding::new(
                RULE,
                format!("the exception for {} is not needed any more", skip.spec.text),
            ));
        }
    }
    findings
}

/// Whether every compiled package is offered under licences that are allowed.
pub(super) fn check_licences(
    rules: &DenyRules,
    graph: &BuildGraph,
    packages: &[Package],
) -> anyhow::Result<Vec<Finding>> {
    let allowed = rules
        .licenses
        .allow
        .iter()
        .map(|text| Licensee::parse(text).with_context(|| format!("deny.toml allows {text:?}")))
        .collect::<Result<Vec<_>, _>>()?;
    let built = |package: &&Package| {
        graph.users.contains_key(&Built { name: package.name.to_string(), version: package.version.clone() })
    };
    let findings = packages.iter().filter(built).filter_map(|package| {
        let why = licence_refusal(&allowed, package.license.as_deref())?;
        Some(Finding::new("licences", format!("{} {} {why}", package.name, package.version)))
    });
    Ok(findings.collect())
}

fn licence_refusal(allowed: &[Licensee], licence: Option<&str>) -> Option<String> {
    let Some(text) = licence else { return Some("declares no licence".to_owned()) };
    match Expression::parse_mode(text, ParseMode::LAX) {
        Ok(expression) if expression.evaluate(|wanted| allowed.iter().any(|l| l.satisfies(wanted))) => None,
        Ok(_) => Some(format!("is under {text}, which deny.toml does not allow")),
        Err(error) => Some(format!("has the licence {text:?}: {}", error.reason)),
    }
}

fn without_reason(rule: &'static str, exception: &Exception) -> Option<Finding> {
    let text =
        || Finding::new(rule, format!("the line for {} in deny.toml has no reason", exception.spec.text));
    exception.reason.trim().is_empty().then(text)
}

impl Spec {
    fn matches(&self, built: &Built) -> bool {
        self.name == built.name && self.version.matches(&built.version)
    }
}

impl TryFrom<String> for Spec {
    type Error = anyhow::Error;

    fn try_from(text: String) -> anyhow::Result<Self> {
        text.parse()
    }
}

impl FromStr for Spec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, version) = match (text.split_once('@'), text.split_once(':')) {
            (Some((name, exact)), _) => (name, format!("={exact}")),
            (None, Some((name, requirement))) => (name, requirement.to_owned()),
            (None, None) => (text, "*".to_owned()),
        };
        let version = VersionReq::parse(&version).with_context(|| format!("{text:?} is no package"))?;
        Ok(Self { text: text.to_owned(), name: name.to_owned(), version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "\
0bailiwick v0.1.0 (/somewhere/crates/bailiwick)
1sqlx v0.9.0
2base64 v0.22.1
1rcgen v0.14.10
2base64 v0.23.1
2ring v0.17.14

0xtask v0.1.0 (/somewhere/xtask)
1serde_derive v1.0.229 (proc-macro)
1sqlx v0.9.0 (*)
";

    fn rules(deny: &str, skip: &str) -> DenyRules {
        toml::from_str(&format!("bans.deny = [{deny}]\nbans.skip = [{skip}]\nlicenses.allow = ['MIT']"))
            .unwrap()
    }

    fn texts(findings: Vec<Finding>) -> Vec<String> {
        findings.into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn a_tree_is_read_with_who_uses_what() {
        let graph = BuildGraph::parse(TREE).unwrap();
        assert_eq!(graph.len(), 8);
        let users = |name: &str| -> Vec<_> {
            graph
                .users
                .iter()
                .filter(|(built, _)| built.name == name)
                .map(|(_, users)| users.clone())
                .collect()
        };
        assert_eq!(users("sqlx"), [BTreeSet::from(["bailiwick".to_owned(), "xtask".to_owned()])]);
        assert_eq!(users("ring"), [BTreeSet::from(["rcgen".to_owned()])]);
        assert_eq!(users("bailiwick"), [BTreeSet::new()]);
        assert!(BuildGraph::parse("bailiwick v0.1.0").is_err());
    }

    #[test]
    fn a_banned_crate_is_reported_unless_only_its_wrapper_uses_it() {
        let graph = BuildGraph::parse(TREE).unwrap();
        let found = texts(check_bans(&rules("{ crate = 'ring', reason = 'one provider' }", ""), &graph));
        assert_eq!(found, ["ring is banned (one provider) and used by rcgen"]);
        let deny = "{ crate = 'ring', wrappers = ['rcgen'], reason = 'one provider' }, \
                    { crate = 'openssl', reason = 'rustls' }, { crate = 'ring:<0.17', reason = 'old' }";
        assert!(texts(check_bans(&rules(deny, ""), &graph)).is_empty());
    }

    #[test]
    fn a_doubled_crate_is_reported_unless_one_version_has_a_reason() {
        let graph = BuildGraph::parse(TREE).unwrap();
        let found = texts(check_duplicates(&rules("", ""), &graph));
        assert_eq!(found, ["base64 is compiled in two versions: 0.22.1 by sqlx; 0.23.1 by rcgen"]);
        let skip = "{ crate = 'base64@0.22.1', reason = 'sqlx' }";
        assert!(texts(check_duplicates(&rules("", skip), &graph)).is_empty());
    }

    #[test]
    fn an_exception_without_a_need_or_a_reason_is_reported() {
        let graph = BuildGraph::parse(TREE).unwrap();
        let skip = "{ crate = 'base64@0.22.1', reason = 'sqlx' }, { crate = 'sqlx@0.9.0', reason = 'x' }";
        let found = texts(check_duplicates(&rules("", skip), &graph));
        assert_eq!(found, ["the exception for sqlx@0.9.0 is not needed any more"]);
        let found = texts(check_duplicates(&rules("", "{ crate = 'base64@0.22.1' }"), &graph));
        assert_eq!(found, ["the line for base64@0.22.1 in deny.toml has no reason"]);
    }

    #[test]
    fn a_licence_must_be_allowed_in_every_part_and_in_one_choice() {
        let allowed = ["MIT", "ISC"].map(|text| Licensee::parse(text).unwrap());
        for text in ["MIT", "GPL-3.0 OR MIT", "MIT/Apache-2.0", "ISC AND (Apache-2.0 OR MIT)"] {
            assert_eq!(licence_refusal(&allowed, Some(text)), None, "{text}");
        }
        for text in ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0", "nonsense"] {
            assert!(licence_refusal(&allowed, Some(text)).is_some(), "{text}");
        }
        assert!(licence_refusal(&allowed, None).is_some());
    }
}
