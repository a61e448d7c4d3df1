//! What may stand in the source files: unsafe code in one crate only, and no file without an end.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use cargo_metadata::Package;
use proc_macro2::{TokenStream, TokenTree};
use serde::Deserialize;

use super::Finding;

/// The only crate that may have unsafe code.
const UNSAFE_CRATE: &str = "sys";
const LONGEST: usize = 600;

/// A file that may be longer, and why.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LongFile {
    path: PathBuf,
    reason: String,
}

/// A source file of the workspace.
pub(super) struct SourceFile {
    /// The crate it belongs to.
    package: String,
    /// From the root of the repository.
    path: PathBuf,
    text: String,
}

/// Every Rust file of the workspace's crates.
pub(super) fn read(root: &Path, packages: &[&Package]) -> anyhow::Result<Vec<SourceFile>> {
    let mut files = Vec::new();
    for package in packages {
        let dir = package.manifest_path.parent().context("a manifest is in a directory")?;
        read_directory(root, package.name.as_str(), dir.as_std_path(), &mut files)?;
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn read_directory(root: &Path, package: &str, dir: &Path, files: &mut Vec<SourceFile>) -> anyhow::Result<()> {
    let context = || format!("cannot read {}", dir.display());
    for entry in fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        let path = entry.path();
        if entry.file_type().with_context(context)?.is_dir() {
            read_directory(root, package, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let path = path.strip_prefix(root).unwrap_or(&path).to_owned();
            files.push(SourceFile { package: package.to_owned(), path, text });
        }
    }
    Ok(())
}

/// Whether there is unsafe code, or leave for it, outside the one crate.
pub(super) fn check_unsafe(files: &[SourceFile]) -> Vec<Finding> {
    const RULE: &str = "unsafe";
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.package != UNSAFE_CRATE) {
        match file.text.parse::<TokenStream>() {
            Ok(tokens) => {
                let mut lines = BTreeSet::new();
                find_unsafe(tokens, &mut lines);
                findings.extend(lines.into_iter().map(|line| {
                    let place = format!("{}:{line}", file.path.display());
                    Finding::new(
                        RULE,
                        format!("{place} is for crates/{UNSAFE_CRATE}, the only crate with unsafe code"),
                    )
                }));
            }
            Err(error) => findings.push(Finding::new(RULE, format!("{}: {error}", file.path.display()))),
        }
    }
    findings
}

/// Adds the lines with `unsafe`, or with an attribute that permits it. Comments and texts are no tokens.
fn find_unsafe(tokens: TokenStream, lines: &mut BTreeSet<usize>) {
    let mut permits = false;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => {
                if ident == "unsafe" {
                    lines.insert(ident.span().start().line);
                }
                permits = ["allow", "warn", "expect"].iter().any(|level| ident == level);
            }
            TokenTree::Group(group) => {
                let names_lint =
                    |token: TokenTree| matches!(token, TokenTree::Ident(i) if i == "unsafe_code");
                if permits && group.stream().into_iter().any(names_lint) {
                    lines.insert(group.span().start().line);
                }
                find_unsafe(group.stream(), lines);
                permits = false;
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => permits = false,
        }
    }
}

/// Whether a file under `src` is too long without a reason, and every reason is still needed.
pub(super) fn check_length(files: &[SourceFile], long: &[LongFile]) -> Vec<Finding> {
    const RULE: &str = "length";
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.path.components().any(|part| part.as_os_str() == "src")) {
        let lines = file.text.lines().count();
        let exception = long.iter().find(|long| long.path == file.path);
        let place = file.path.display();
        match exception {
            None if lines > LONGEST => {
                let text = format!(
                    "{place} has {lines} lines, more than {LONGEST}: give it another wall, or a reason in xtask/layers.toml"
                );
                findings.push(Finding::new(RULE, text));
            }
            Some(_) if lines <= LONGEST => {
                findings
                    .push(Finding::new(RULE, format!("the exception for {place} is not needed any more")));
            }
            Some(exception) if exception.reason.trim().is_empty() => {
                findings.push(Finding::new(RULE, format!("the exception for {place} has no reason")));
            }
            _ => {}
        }
    }
    for exception in long.iter().filter(|long| !files.iter().any(|file| file.path == long.path)) {
        findings.push(Finding::new(RULE, format!("there is no file {}", exception.path.display())));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(package: &str, text: &str) -> SourceFile {
        let path = format!("crates/{package}/src/lib.rs").into();
        SourceFile { package: package.to_owned(), path, text: text.to_owned() }
    }

    fn texts(findings: Vec<Finding>) -> Vec<String> {
        findings.into_iter().map(|finding| finding.text).collect()
    }

    #[test]
    fn unsafe_code_is_reported_outside_sys_and_passes_inside() {
        let text = "fn f() {\n    unsafe { g() }\n}\nunsafe fn g() {}\n#[unsafe(no_mangle)]\nfn h() {}";
        let found = texts(check_unsafe(&[file("gate", text), file("sys", text)]));
        let places: Vec<_> = found.iter().map(|text| text.split(' ').next().unwrap()).collect();
        assert_eq!(
            places,
            ["crates/gate/src/lib.rs:2", "crates/gate/src/lib.rs:4", "crates/gate/src/lib.rs:5"]
        );
    }

    #[test]
    fn leave_for_unsafe_code_is_reported_and_its_refusal_passes() {
        assert_eq!(check_unsafe(&[file("gate", "#![allow(unsafe_code)]")]).len(), 1);
        assert_eq!(
            check_unsafe(&[file("gate", "#[expect(unsafe_code, reason = \"x\")] fn f() {}")]).len(),
            1
        );
        assert!(check_unsafe(&[file("gate", "#![forbid(unsafe_code)]\n#![deny(unsafe_code)]")]).is_empty());
    }

    #[test]
    fn the_word_in_a_comment_or_a_text_passes() {
        let text = "//! unsafe { }\n/* unsafe fn */\nconst A: &str = \"unsafe { }\";\nconst B: char = '\"';\n\
                    const C: &str = r#\"unsafe \"quoted\" { }\"#;\n/// unsafe\nfn unsafe_looking<'a>() {}";
        assert_eq!(texts(check_unsafe(&[file("gate", text)])), [""; 0]);
    }

    #[test]
    fn a_long_file_is_reported_unless_it_has_a_reason() {
        let (long, short) = (file("gate", &"\n".repeat(601)), file("dns", &"\n".repeat(600)));
        let path = long.path.clone();
        let files = [long, short];
        assert_eq!(check_length(&files, &[]).len(), 1);
        let exception = |path, reason: &str| LongFile { path, reason: reason.to_owned() };
        assert!(check_length(&files, &[exception(path.clone(), "a table")]).is_empty());
        assert_eq!(check_length(&files, &[exception(path.clone(), "")]).len(), 1);
        let unused = [exception(path, "a table"), exception("crates/dns/src/lib.rs".into(), "none")];
        assert_eq!(
            texts(check_length(&files, &unused)),
            ["the exception for crates/dns/src/lib.rs is not needed any more"]
        );
    }
}
