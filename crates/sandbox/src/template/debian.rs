//! The built-in templates but `host`: made by mmdebstrap from the package sources that the machine itself uses.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};

use super::{
    Builtin, Progress,
    error::{Doing as _, TemplateError},
    root::Root,
};

const PROGRAM: &str = "mmdebstrap";

/// What is in all of them: a shell to work in, downloads that can be verified, and tools to look around.
const COMMON: &[&str] = &["ca-certificates", "curl", "less", "procps"];

const PYTHON: &[&str] = &["python3", "python3-pip", "python3-venv"];
const NODE: &[&str] = &["nodejs", "npm"];

/// Parts of packages that nobody reads in a sandbox.
const LEFT_OUT: &[&str] =
    &["/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*"];
/// And what of it stays: licences.
const KEPT: &[&str] = &["/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias"];

/// How many of the last lines of a failed build are told.
const DETAIL_LINES: usize = 8;

/// The machine's distribution, for people.
pub(super) fn distribution() -> String {
    os_release("PRETTY_NAME").unwrap_or_else(|| "this machine's distribution".to_owned())
}

/// Fills `rootfs`, which is an empty directory; `dir` takes files that the build needs meanwhile.
pub(super) fn build(
    builtin: Builtin,
    dir: &Path,
    rootfs: &Path,
    progress: Progress<'_>,
) -> Result<(), TemplateError> {
    let release = os_release("VERSION_CODENAME").ok_or_else(|| TemplateError::NoSources(distribution()))?;
    let sources = sources(&release, dir)?;
    let packages = match builtin {
        Builtin::Host | Builtin::Base => [COMMON, &["git", "jq"]].concat(),
        Builtin::Python => [COMMON, PYTHON].concat(),
        Builtin::Node => [COMMON, NODE].concat(),
        Builtin::McpServer => [COMMON, PYTHON, NODE].concat(),
    };
    let mut arguments = vec![
        "--variant=minbase".to_owned(),
        "--mode=root".to_owned(),
        "--format=directory".to_owned(),
        format!("--include={}", packages.join(",")),
        // Recommended packages would bring a compiler with pip and double the size.
        "--aptopt=APT::Install-Recommends \"false\"".to_owned(),
    ];
    arguments.extend(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    arguments.extend(KEPT.iter().map(|path| format!("--dpkgopt=path-include={path}")));
    arguments.extend([release, rootfs.display().to_string()]);
    arguments.extend(sources.iter().map(|path| path.display().to_string()));
    run(builtin.name(), &arguments, progress)?;
    for path in sources {
        fs::remove_file(&path).doing("remove", &path)?;
    }
    let root = Root::open(rootfs)?;
    root.write("etc/machine-id", 0o444, "")?;
    root.complete()
}

#[expect(clippy::disallowed_types, reason = "building a template is the one place that starts a program")]
fn run(name: &str, arguments: &[String], progress: Progress<'_>) -> Result<(), TemplateError> {
    let started = std::process::Command::new(PROGRAM)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(TemplateError::ProgramMissing(PROGRAM));
        }
        other => other.doing("start", PROGRAM)?,
    };
    let mut last = VecDeque::with_capacity(DETAIL_LINES);
    if let Some(output) = child.stderr.take() {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            progress(&line);
            if last.len() == DETAIL_LINES {
                last.pop_front();
            }
            last.push_back(line);
        }
    }
    let status = child.wait().doing("wait for", PROGRAM)?;
    if status.success() {
        return Ok(());
    }
    let detail = format!("{PROGRAM} ended with {status}\n{}", Vec::from(last).join("\n"));
    Err(TemplateError::Build { name: name.to_owned(), detail })
}

/// Copies those of the machine's package sources that are its distribution's to files in `dir`.
fn sources(release: &str, dir: &Path) -> Result<Vec<PathBuf>, TemplateError> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = Path::new("/etc/apt/sources.list.d");
    if let Ok(entries) = fs::read_dir(parts) {
        files.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    }
    files.sort();
    let (mut lines, mut stanzas) = (String::new(), String::new());
    for file in files {
        let text = || fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => lines.push_str(&own_lines(&text(), release)),
            Some("sources") => stanzas.push_str(&own_stanzas(&text(), release)),
            _ => {}
        }
    }
    let mut written = Vec::new();
    for (name, text) in [("packages.list", lines), ("packages.sources", stanzas)] {
        if !text.is_empty() {
            let path = dir.join(name);
            fs::write(&path, text).doing("write", &path)?;
            written.push(path);
        }
    }
    if written.is_empty() { Err(TemplateError::NoSources(distribution())) } else { Ok(written) }
}

/// Of one-line entries (sources.list(5)) those whose suite is of `release`.
fn own_lines(text: &str, release: &str) -> String {
    let own = |line: &&str| {
        let mut words = line.split_whitespace();
        let mut in_options = false;
        let is_binary = words.next() == Some("deb");
        let mut rest = words.filter(|word| {
            in_options |= word.starts_with('[');
            let option = in_options;
            in_options &= !word.ends_with(']');
            !option
        });
        is_binary && rest.nth(1).is_some_and(|suite| is_of(suite, release))
    };
    text.lines().filter(own).map(|line| format!("{line}\n")).collect()
}

/// Of stanzas (deb822) those whose suites are all of `release`.
fn own_stanzas(text: &str, release: &str) -> String {
    let text: String = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| format!("{}\n", line.trim_end()))
        .collect();
    let own = |stanza: &&str| {
        let field = |name: &str| {
            let value = |line: &str| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
            };
            stanza.lines().find_map(value).unwrap_or_default()
        };
        let suites = field("Suites");
        let mut suites = suites.split_whitespace().peekable();
        field("Types").split_whitespace().any(|kind| kind == "deb")
            && field("Enabled") != "no"
            && suites.peek().is_some()
            && suites.all(|suite| is_of(suite, release))
    };
    text.split("\n\n").filter(own).map(|stanza| format!("{}\n\n", stanza.trim_matches('\n'))).collect()
}

/// `bookworm`, `bookworm-updates` and so on.
fn is_of(suite: &str, release: &str) -> bool {
    suite.strip_prefix(release).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn os_release(key: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_of_the_distribution_itself_are_taken() {
        let lines = "\
# a comment
deb http://mirror.test/debian bookworm main
deb [signed-by=/k.gpg arch=amd64] http://mirror.test/debian bookworm-updates main
deb-src http://mirror.test/debian bookworm main
deb http://third-party.test/apt tools-bookworm main
deb http://third-party.test/apt stable main
deb http://mirror.test/debian bookwormish main
";
        let own = own_lines(lines, "bookworm");
        assert_eq!(own.lines().count(), 2, "{own}");
        assert!(own.contains("bookworm main") && own.contains("bookworm-updates main"));
    }

    #[test]
    fn stanzas_are_taken_whole_or_not_at_all() {
        let text = "\
Types: deb
# with a comment
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://third-party.test
Suites: nodistro
Components: main

Types: deb
URIs: http://mirror.test/debian-security
Suites: bookworm-security
Enabled: no

Types: deb-src
URIs: http://mirror.test/debian
Suites: bookworm
";
        let own = own_stanzas(text, "bookworm");
        assert_eq!(
            own,
            "Types: deb\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\nComponents: main\n\n"
        );
    }
}
