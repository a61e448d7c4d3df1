//! `cargo xtask gen`: the pages that are made from the code, or from a table that tests use, too.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::compatibility;

/// The pages below docs/reference, and what the built program calls them.
const PAGES: [(&str, &str); 2] = [("cli.md", "cli"), ("openapi.json", "openapi")];

/// Pages with a section between the two marks, and what the built program calls that.
const SECTIONS: [(&str, &str); 1] = [("docs/threat-model.md", "residual")];
const BEGIN: &str = "<!-- from crates/bailiwick/src/residual.rs, by `cargo xtask gen` -->\n";
const END: &str = "<!-- end -->\n";

/// Options of `gen`.
#[derive(Args, Debug)]
pub(crate) struct GenerateArgs {
    /// Change nothing; fail if a page is not what the code says
    #[arg(long)]
    check: bool,
}

/// Writes or checks the pages.
pub(crate) fn run(root: &Path, args: &GenerateArgs) -> Result<()> {
    let directory = root.join("docs/reference");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut wanted = Vec::new();
    for (file, page) in PAGES {
        wanted.push((format!("docs/reference/{file}"), generated(page)?));
    }
    for (file, section) in SECTIONS {
        let path = root.join(file);
        let page = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let text = with_section(&page, &String::from_utf8(generated(section)?)?);
        wanted.push((file.to_owned(), text.with_context(|| format!("in {file}"))?.into_bytes()));
    }
    wanted.push(("docs/compatibility.md".to_owned(), compatibility::page(root)?.into_bytes()));
    let mut stale = Vec::new();
    for (file, text) in wanted {
        let path = root.join(&file);
        if fs::read(&path).is_ok_and(|existing| existing == text) {
            continue;
        }
        if args.check {
            stale.push(file);
        } else {
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    if !stale.is_empty() {
        bail!("not what the code or the table says: {}; run `cargo xtask gen` and commit", stale.join(", "));
    }
    Ok(())
}

/// The page with this section between the marks.
fn with_section(page: &str, section: &str) -> Result<String> {
    let missing = || format!("there is no section between {BEGIN:?} and {END:?}");
    let (before, rest) = page.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{BEGIN}\n{section}\n{END}{after}"))
}

fn generated(page: &str) -> Result<Vec<u8>> {
    #[expect(clippy::disallowed_types, reason = "a developer command that asks the built program")]
    let mut command = std::process::Command::new(testkit::sibling("bailiwick")?);
    // A page must not depend on who generates it.
    let done =
        command.args(["reference", page]).env_clear().output().context("running bailiwick reference")?;
    if !done.status.success() {
        bail!("bailiwick reference {page}: {}", String::from_utf8_lossy(&done.stderr));
    }
    Ok(done.stdout)
}
