//! Developer commands: `cargo xtask <command>`.

mod compatibility;
mod demo;
mod generate;
mod lab;
mod layers;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// Developer commands of this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check who depends on whom: layers, banned and doubled crates, licences, unsafe code, long files.
    ///
    /// The rules are in xtask/layers.toml and deny.toml.
    Layers,
    /// Namespaced laboratories: a small internet with the built daemon in it.
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Write docs/reference and docs/compatibility.md from the code and from interop/compatibility.toml, or check them.
    Gen(generate::GenerateArgs),
    /// Lock a sandbox to one host, try to get out, and show what decided.
    Demo(demo::DemoArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    let root = root();
    match Arguments::parse().command {
        Command::Layers => layers::run(&root),
        Command::Lab(command) => lab::run(command).map(|()| ExitCode::SUCCESS),
        Command::Gen(args) => generate::run(&root, &args).map(|()| ExitCode::SUCCESS),
        Command::Demo(args) => demo::run(&args).map(|()| ExitCode::SUCCESS),
    }
}

/// The root of the repository this program was built in.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}
