//! `bailiwick man`: manual pages, made from the command line.

use std::{fs, io::stdout, path::Path};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_mangen::{Man, generate_to};

use crate::{cli::Cli, exit};

/// Prints the page of the program, or writes those of all commands to a directory.
pub(crate) fn run(directory: Option<&Path>) -> Result<u8> {
    match directory {
        None => Man::new(Cli::command()).render(&mut stdout()).context("writing to standard output")?,
        Some(directory) => fs::create_dir_all(directory)
            .and_then(|()| generate_to(Cli::command(), directory))
            .with_context(|| format!("writing manual pages to {}", directory.display()))?,
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The commands that are shown, by the names of their pages, and whether they can print JSON.
    fn commands(command: &clap::Command, name: &str, found: &mut BTreeMap<String, bool>) {
        let has_json = command.get_arguments().any(|argument| argument.get_id() == "json");
        found.insert(name.to_owned(), has_json || command.has_subcommands());
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            commands(below, &format!("{name}-{}", below.get_name()), found);
        }
    }

    fn all() -> BTreeMap<String, bool> {
        let mut found = BTreeMap::new();
        commands(&Cli::command(), "bailiwick", &mut found);
        found
    }

    #[test]
    fn every_command_has_a_page_and_hidden_ones_have_none() {
        let directory = tempfile::tempdir().unwrap();
        let pages = directory.path().join("share/man1");
        run(Some(&pages)).unwrap();
        let mut written = BTreeMap::new();
        for file in fs::read_dir(&pages).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            let page = fs::read_to_string(file.path()).unwrap();
            assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH DESCRIPTION"), "{name}");
            written.insert(name.strip_suffix(".1").unwrap().to_owned(), page);
        }
        // Each command with commands below has one that helps.
        written.retain(|name, _| !name.contains("-help"));
        let (names, commands): (Vec<_>, Vec<_>) = (written.keys().collect(), all().into_keys().collect());
        assert_eq!(names, commands.iter().collect::<Vec<_>>());
        assert!(written["bailiwick-sandbox-exec"].contains("exit code 124"));
        assert!(!names.iter().any(|name| name.contains("probe") || name.contains("reference")));
    }

    #[test]
    fn pages_are_not_written_where_there_is_no_directory() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = run(Some(&file)).unwrap_err();
        assert!(format!("{error:#}").contains("file"), "{error:#}");
    }

    #[test]
    fn every_command_that_answers_can_answer_in_json() {
        let without: Vec<_> = all().into_iter().filter(|(_, has)| !has).map(|(name, _)| name).collect();
        assert_eq!(without, WITHOUT_JSON);
    }

    /// Commands that answer nothing of their own: they run something, speak another language, or say it by their exit code.
    const WITHOUT_JSON: [&str; 5] = [
        "bailiwick-completion",
        "bailiwick-man",
        "bailiwick-mcp",
        "bailiwick-sandbox-shell",
        "bailiwick-serve",
    ];
}
