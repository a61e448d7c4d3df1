//! `bailiwick sandbox cp`: one file, in or out, as a stream.

use std::{
    fs::Permissions,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use client::Client;
use sandbox::SandboxId;
use serde_json::json;
use tokio::fs::File;

use crate::{
    cli::CopyArgs,
    exit::{self, BadInput},
    printable::printable,
    remote::ApiFailure,
};

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// A path in a sandbox.
    Inside(SandboxId, String),
    /// A file or directory of this machine.
    Here(PathBuf),
    /// Standard input or output.
    Stream,
}

impl Place {
    /// `ID:PATH`, `-` or a path of this machine. A file here that is called like the first is written `./ID:PATH`.
    fn parse(text: &str) -> Result<Self> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        let inside = text.split_once(':').and_then(|(id, path)| Some((id.parse::<SandboxId>().ok()?, path)));
        match inside {
            Some((_, path)) if !path.starts_with('/') => Err(anyhow!(BadInput(format!(
                "{text:?}: the path in a sandbox must be absolute, as in ID:/home/user/file"
            )))),
            Some((id, path)) => Ok(Self::Inside(id, path.to_owned())),
            None => Ok(Self::Here(text.into())),
        }
    }
}

/// Copies the file and says how many bytes it has.
pub(super) async fn run(connect: impl FnOnce() -> Result<Client>, args: &CopyArgs) -> Result<u8> {
    let (source, target) = (Place::parse(&args.source)?, Place::parse(&args.target)?);
    let user = args.user.as_deref();
    let (target, bytes) = match (source, target) {
        (Place::Inside(id, from), Place::Here(to)) => {
            let to = if to.is_dir() { to.join(file_name(Path::new(&from), &args.source)?) } else { to };
            let bytes = fetch(&connect()?, &id, &from, user, &to).await?;
            (to.display().to_string(), bytes)
        }
        (Place::Inside(id, from), Place::Stream) => {
            let copied = connect()?.read_file(id.as_str(), &from, user, &mut tokio::io::stdout()).await;
            copied.map_err(ApiFailure)?;
            // Standard output is the file.
            return Ok(exit::OK);
        }
        (Place::Here(from), Place::Inside(id, to)) => {
            let to = if to.ends_with('/') { to + &file_name(&from, &args.source)? } else { to };
            let file = open(&from).await?;
            let written = connect()?.write_file(id.as_str(), &to, user, file).await.map_err(ApiFailure)?;
            (format!("{id}:{to}"), written.size)
        }
        (Place::Stream, Place::Inside(id, to)) => {
            let input = tokio::io::stdin();
            let written = connect()?.write_file(id.as_str(), &to, user, input).await.map_err(ApiFailure)?;
            (format!("{id}:{to}"), written.size)
        }
        (Place::Inside(..), Place::Inside(..)) => {
            return Err(anyhow!(BadInput(
                "both sides are in a sandbox: copy by way of a file here".to_owned()
            )));
        }
        (Place::Here(_) | Place::Stream, Place::Here(_) | Place::Stream) => {
            return Err(anyhow!(BadInput(
                "neither side is in a sandbox: one has to be ID:PATH, with the id of a sandbox".to_owned()
            )));
        }
    };
    if args.json {
        anstream::println!("{}", json!({ "source": args.source, "target": target, "bytes": bytes }));
    } else {
        anstream::println!("{bytes} bytes to {}", printable(&target));
    }
    Ok(exit::OK)
}

async fn open(path: &Path) -> Result<File> {
    let opened = async {
        let file = File::open(path).await?;
        // It can be opened, and would fail in the middle.
        if file.metadata().await?.is_dir() { Err(std::io::ErrorKind::IsADirectory.into()) } else { Ok(file) }
    };
    opened.await.map_err(|error: std::io::Error| anyhow!(BadInput(format!("{}: {error}", path.display()))))
}

/// Copies a file from a sandbox. Where there was none, or another, it is there as a whole or not at all.
async fn fetch(client: &Client, id: &SandboxId, from: &str, user: Option<&str>, to: &Path) -> Result<u64> {
    let failed = || format!("writing {}", to.display());
    if to.exists() && !to.is_file() {
        // A device or a pipe takes what it gets.
        let mut file = File::options().write(true).open(to).await.with_context(failed)?;
        return Ok(client.read_file(id.as_str(), from, user, &mut file).await.map_err(ApiFailure)?);
    }
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // The system takes from this what the user's mask says, and not more than an existing file had.
    let mode = to.metadata().map_or(0o666, |existing| existing.permissions().mode() & 0o777);
    let part = tempfile::Builder::new()
        .prefix(".bailiwick-cp-")
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(directory)
        .with_context(failed)?;
    let mut file = File::from_std(part.reopen().with_context(failed)?);
    let bytes = client.read_file(id.as_str(), from, user, &mut file).await.map_err(ApiFailure)?;
    part.persist(to).with_context(failed)?;
    Ok(bytes)
}

fn file_name(path: &Path, given: &str) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| anyhow!(BadInput(format!("{given:?} does not end in a file's name"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_in_a_sandbox_if_it_begins_with_the_id_of_one() {
        let inside = Place::parse("sbx-abcd1234:/a:b").unwrap();
        assert_eq!(inside, Place::Inside("sbx-abcd1234".parse().unwrap(), "/a:b".to_owned()));
        for here in ["a", "./sbx-abcd1234:/a", "sbx-short:/a", "C:/a"] {
            assert_eq!(Place::parse(here).unwrap(), Place::Here(here.into()));
        }
        assert_eq!(Place::parse("-").unwrap(), Place::Stream);
        for relative in ["sbx-abcd1234:", "sbx-abcd1234:a"] {
            assert_eq!(exit::code_of(&Place::parse(relative).unwrap_err()), exit::BAD_INPUT, "{relative}");
        }
    }

    #[tokio::test]
    async fn two_sides_of_the_same_kind_are_refused_before_anything_is_asked_for() {
        for (source, target) in [("a", "b"), ("-", "-"), ("sbx-abcd1234:/a", "sbx-abcd1234:/b")] {
            let args =
                CopyArgs { source: source.to_owned(), target: target.to_owned(), user: None, json: false };
            let error = run(|| panic!("nothing is connected"), &args).await.unwrap_err();
            assert_eq!(exit::code_of(&error), exit::BAD_INPUT, "{error}");
        }
    }
}
