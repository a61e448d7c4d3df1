//! Which crate of the workspace may use which.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata};
use serde::Deserialize;

use super::Finding;

const RULE: &str = "layers";

/// The layers, and the edges permitted inside them.
#[derive(Default, Deserialize)]
pub(super) struct LayerRules {
    /// Crates for development: they may use everything, and only tests may use them.
    tools: BTreeSet<String>,
    layers: BTreeMap<String, u8>,
    #[serde(default)]
    edge: Vec<Edge>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Edge {
    from: String,
    to: String,
    reason: String,
}

/// A crate of the workspace and those of the workspace that it uses.
pub(super) struct Crate {
    name: String,
    uses: Vec<Use>,
}

struct Use {
    name: String,
    only_in_tests: bool,
}

/// The crates of the workspace.
pub(super) fn crates(metadata: &Metadata) -> Vec<Crate> {
    let packages = metadata.workspace_packages();
    packages
        .iter()
        .map(|package| {
            let uses = package
                .dependencies
                .iter()
                .filter(|dependency| dependency.path.is_some())
                .map(|dependency| Use {
                    name: dependency.name.clone(),
                    only_in_tests: dependency.kind == DependencyKind::Development,
                })
                .collect();
            Crate { name: package.name.to_string(), uses }
        })
        .collect()
}

/// Whether every crate has a layer and keeps to it, and every permitted edge has a reason.
pub(super) fn check(rules: &LayerRules, crates: &[Crate]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for of in crates {
        if !rules.tools.contains(&of.name) && !rules.layers.contains_key(&of.name) {
            findings.push(Finding::new(RULE, format!("{} has no layer in xtask/layers.toml", of.name)));
        }
        for used in &of.uses {
            findings.extend(refusal(rules, &of.name, used).map(|why| {
                Finding::new(RULE, format!("{} must not depend on {}: {why}", of.name, used.name))
            }));
        }
    }
    // An edge that the architecture foresees and nobody needs yet is no harm.
    for edge in &rules.edge {
        if ![&edge.from, &edge.to].iter().all(|name| rules.layers.contains_key(*name)) {
            findings.push(Finding::new(RULE, format!("the edge {} → {} names no crate", edge.from, edge.to)));
        } else if edge.reason.trim().is_empty() {
            findings.push(Finding::new(RULE, format!("the edge {} → {} has no reason", edge.from, edge.to)));
        }
    }
    findings
}

/// Why `of` must not use `used`; `None` if it may.
fn refusal(rules: &LayerRules, of: &str, used: &Use) -> Option<String> {
    if rules.tools.contains(of) {
        return None;
    }
    if rules.tools.contains(&used.name) {
        return (!used.only_in_tests).then(|| "it is for tests and development only".to_owned());
    }
    let (Some(&from), Some(&to)) = (rules.layers.get(of), rules.layers.get(&used.name)) else {
        return None;
    };
    let listed = rules.edge.iter().any(|edge| edge.from == of && edge.to == used.name);
    // Tests may look at their neighbours; upwards not even they.
    if to < from || listed || (to == from && used.only_in_tests) {
        return None;
    }
    Some(match to == from {
        true => format!("both are in layer {from}, and xtask/layers.toml permits no such edge"),
        false => format!("it is in layer {to}, above layer {from}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> LayerRules {
        let layers = [("policy", 0), ("proxy", 2), ("tls", 2), ("dns", 2), ("gate", 3)];
        LayerRules {
            tools: BTreeSet::from(["testkit".to_owned()]),
            layers: layers.into_iter().map(|(name, layer)| (name.to_owned(), layer)).collect(),
            edge: vec![Edge {
                from: "proxy".to_owned(),
                to: "tls".to_owned(),
                reason: "a reason".to_owned(),
            }],
        }
    }

    fn findings(rules: &LayerRules, of: &str, used: &str, only_in_tests: bool) -> Vec<String> {
        let uses = vec![Use { name: used.to_owned(), only_in_tests }];
        let crates = [Crate { name: of.to_owned(), uses }];
        check(rules, &crates).into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn a_forbidden_edge_is_reported_and_its_permitted_twin_passes() {
        let rules = rules();
        let upwards = findings(&rules, "proxy", "gate", false);
        assert_eq!(upwards, ["proxy must not depend on gate: it is in layer 3, above layer 2"]);
        assert!(findings(&rules, "gate", "proxy", false).is_empty());
    }

    #[test]
    fn inside_a_layer_only_the_listed_edges_pass() {
        let rules = rules();
        assert!(findings(&rules, "proxy", "tls", false).is_empty());
        assert_eq!(findings(&rules, "tls", "proxy", false).len(), 1);
        assert_eq!(findings(&rules, "proxy", "dns", false).len(), 1);
    }

    #[test]
    fn tests_may_use_tools_and_neighbours_but_nothing_above() {
        let rules = rules();
        assert!(findings(&rules, "policy", "testkit", true).is_empty());
        assert_eq!(findings(&rules, "policy", "testkit", false).len(), 1);
        assert!(findings(&rules, "proxy", "dns", true).is_empty());
        assert_eq!(findings(&rules, "proxy", "gate", true).len(), 1);
        assert!(findings(&rules, "testkit", "gate", false).is_empty());
    }

    #[test]
    fn a_crate_without_a_layer_is_reported() {
        assert_eq!(findings(&rules(), "guard", "policy", false), ["guard has no layer in xtask/layers.toml"]);
    }

    #[test]
    fn an_edge_must_name_crates_and_have_a_reason() {
        let mut rules = rules();
        rules.edge[0].reason = " ".to_owned();
        assert_eq!(findings(&rules, "gate", "proxy", false), ["the edge proxy → tls has no reason"]);
        rules.edge[0].to = "nobody".to_owned();
        assert_eq!(findings(&rules, "gate", "proxy", false), ["the edge proxy → nobody names no crate"]);
    }
}
