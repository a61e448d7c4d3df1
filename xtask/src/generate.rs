//! `cargo xtask gen`: the reference pages that are made from the code.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use clap::Args;

/// The pages below docs/reference, and what the built program calls them.
const PAGES: [(&str, &str); 2] = [("cli.md", "cli"), ("openapi.json", "openapi")];

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
    let mut stale = Vec::new();
    for (file, page) in PAGES {
        let path = directory.join(file);
        let text = generated(page)?;
        if fs::read(&path).is_ok_and(|existing| existing == text) {
            continue;
        }
        if args.check {
            stale.push(format!("docs/reference/{file}"));
        } else {
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    if !stale.is_empty() {
        bail!("not what the code says: {}; run `cargo xtask gen` and commit", stale.join(", "));
    }
    Ok(())
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
