//! docs/compatibility.md, from interop/compatibility.toml.

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result};
use serde::Deserialize;

/// The table, below the root of the repository.
const TABLE: &str = "interop/compatibility.toml";
/// What everything that is not there is answered with, unless the table says otherwise.
const ABSENT: &str = "501 `not_implemented`";

/// What the published clients find.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    introduction: String,
    area: Vec<Area>,
    absent: Vec<Absent>,
    contradiction: Vec<Contradiction>,
    difference: Vec<Difference>,
}

/// A part of the API that is there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Area {
    title: String,
    /// What belongs to it.
    subject: Option<String>,
    state: String,
    /// By method and path.
    #[serde(default)]
    endpoints: BTreeMap<String, Endpoint>,
    #[serde(default, rename = "tests")]
    _tests: Vec<String>,
}

/// A request that works.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Endpoint {
    /// How it is not what the clients' documentation says.
    differs: Option<String>,
    #[serde(rename = "tests")]
    _tests: Vec<String>,
}

/// A part of the API that is not there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Absent {
    name: String,
    subject: Option<String>,
    /// Without it: [`ABSENT`].
    state: Option<String>,
    #[serde(default)]
    endpoints: Vec<String>,
    /// Fields of a new sandbox with which it is refused.
    #[serde(default)]
    fields: Vec<String>,
    #[serde(rename = "tests")]
    _tests: Vec<String>,
}

/// A point where clients and their documentation say different things.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Contradiction {
    topic: String,
    between: String,
    ours: String,
    #[serde(rename = "tests")]
    _tests: Vec<String>,
}

/// Something else that is not as one may expect.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    topic: String,
    ours: String,
    #[serde(rename = "tests")]
    _tests: Vec<String>,
}

/// The page.
pub(crate) fn page(root: &Path) -> Result<String> {
    let text = fs::read_to_string(root.join(TABLE)).with_context(|| format!("reading {TABLE}"))?;
    let table = toml::from_str(&text).with_context(|| format!("reading {TABLE}"))?;
    Ok(rendered(&table)?)
}

fn rendered(table: &Table) -> Result<String, std::fmt::Error> {
    let mut page = String::new();
    writeln!(page, "<!-- from {TABLE}, by `cargo xtask gen` -->\n")?;
    writeln!(page, "# Compatibility with Declaw clients\n\n{}", table.introduction)?;
    writeln!(
        page,
        "Every line of this page is one of a table, `{TABLE}`, that names the tests which show it.\n"
    )?;

    writeln!(page, "## What is there\n\n| area | state |\n|---|---|")?;
    for area in &table.area {
        row(&mut page, &[&named(&area.title, area.subject.as_deref(), ": "), &area.state])?;
    }
    for absent in &table.absent {
        let subject = absent.subject.as_ref().map(|subject| format!("{subject})"));
        let state = absent.state.as_deref().unwrap_or(ABSENT);
        row(&mut page, &[&named(&absent.name, subject.as_deref(), " ("), state])?;
    }

    writeln!(page, "\n## Where clients, their documentation and Bailiwick differ\n")?;
    writeln!(page, "Where clients and their documentation say different things:\n")?;
    writeln!(page, "| topic | who says what | what Bailiwick does |\n|---|---|---|")?;
    for contradiction in &table.contradiction {
        row(&mut page, &[&contradiction.topic, &contradiction.between, &contradiction.ours])?;
    }
    writeln!(page, "\nWhat else is good to know:\n\n| topic | what Bailiwick does |\n|---|---|")?;
    for difference in &table.difference {
        row(&mut page, &[&difference.topic, &difference.ours])?;
    }

    writeln!(page, "\n## Every request\n\n| request | state |\n|---|---|")?;
    for area in &table.area {
        for (request, endpoint) in by_path(area.endpoints.iter().map(|(key, value)| (key.as_str(), value))) {
            let state =
                endpoint.differs.as_deref().map(|differs| format!("works, with a difference: {differs}"));
            row(&mut page, &[&format!("`{request}`"), state.as_deref().unwrap_or("works")])?;
        }
    }
    for absent in &table.absent {
        for (request, ()) in by_path(absent.endpoints.iter().map(|request| (request.as_str(), ()))) {
            row(&mut page, &[&format!("`{request}`"), ABSENT])?;
        }
    }
    for field in table.absent.iter().flat_map(|absent| &absent.fields) {
        row(&mut page, &[&format!("`POST /sandboxes` with `{field}`"), "501 naming the field"])?;
    }
    Ok(page)
}

/// The requests in the order of their paths, and of their methods for one path.
fn by_path<'a, T>(requests: impl Iterator<Item = (&'a str, T)>) -> Vec<(&'a str, T)> {
    let mut requests: Vec<_> = requests.collect();
    requests.sort_by_key(|(request, _)| {
        let (method, path) = request.split_once(' ').unwrap_or((request, ""));
        (path, method)
    });
    requests
}

fn named(title: &str, subject: Option<&str>, between: &str) -> String {
    subject.map_or_else(|| title.to_owned(), |subject| format!("{title}{between}{subject}"))
}

fn row(page: &mut String, cells: &[&str]) -> std::fmt::Result {
    for cell in cells {
        write!(page, "| {} ", cell.replace('|', "\\|"))?;
    }
    writeln!(page, "|")
}
