//! Root file systems from a directory in the OCI image layout (image-spec 1.1).

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{
    Progress,
    archive::{self, Layering, refuse},
    error::{Doing as _, TemplateError},
    root::Root,
};

/// Unpacks all layers of the image for this machine in `layout` into the directory `rootfs`.
///
/// Every blob is checked against its digest before it is used.
pub(super) fn unpack(layout: &Path, rootfs: &Path, progress: Progress<'_>) -> Result<(), TemplateError> {
    let index: Index = read_json(&layout.join("index.json"))?;
    let manifest = manifest(layout, &index, MAX_NESTING)?;
    let root = Root::open(rootfs)?;
    let count = manifest.layers.len();
    for (number, layer) in (1..).zip(&manifest.layers) {
        progress(&format!("layer {number} of {count}: {}", layer.digest));
        let path = verified_blob(layout, layer)?;
        let file = File::open(&path).doing("open", &path)?;
        archive::unpack(archive::decompressed(file, &path)?, &path, &root, Layering::Layer, progress)?;
    }
    if count == 0 { Err(refuse(layout, "has an image without layers")) } else { Ok(()) }
}

/// How often an index may lead to another one.
const MAX_NESTING: usize = 4;

/// The longest index or manifest that is read.
const MAX_JSON: u64 = 4 << 20;

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// The manifest of this machine's platform. Where platforms are not said, the first one.
fn manifest(layout: &Path, index: &Index, nesting: usize) -> Result<Manifest, TemplateError> {
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture();
    let descriptor = index
        .manifests
        .iter()
        .find(|descriptor| descriptor.platform.as_ref().is_none_or(fits))
        .ok_or_else(|| refuse(layout, &format!("has no image for linux/{}", architecture())))?;
    let path = verified_blob(layout, descriptor)?;
    if !descriptor.media_type.contains("index") && !descriptor.media_type.contains("manifest.list") {
        return read_json(&path);
    }
    if nesting == 0 {
        return Err(refuse(layout, "has indexes of indexes without end"));
    }
    manifest(layout, &read_json(&path)?, nesting - 1)
}

/// The name of this machine's architecture in the specification: that of the Go language.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The path of a blob whose content is what its descriptor says.
fn verified_blob(layout: &Path, descriptor: &Descriptor) -> Result<PathBuf, TemplateError> {
    let Descriptor { digest, size, .. } = descriptor;
    let hex = digest.strip_prefix("sha256:").filter(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    });
    let hex = hex.ok_or_else(|| refuse(layout, &format!("has a digest that is not SHA-256: {digest}")))?;
    let path = layout.join("blobs/sha256").join(hex);
    let file = File::open(&path).doing("open", &path)?;
    let mut hasher = Sha256::new();
    // One byte more than promised is enough to know.
    let length = io::copy(&mut file.take(size.saturating_add(1)), &mut hasher).doing("read", &path)?;
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if length != *size || found != hex {
        return Err(refuse(&path, "is not what its digest says"));
    }
    Ok(path)
}

fn read_json<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, TemplateError> {
    let length = fs::metadata(path).doing("read", path)?.len();
    if length > MAX_JSON {
        return Err(refuse(path, "is too long"));
    }
    let text = fs::read(path).doing("read", path)?;
    serde_json::from_slice(&text).map_err(|error| refuse(path, &error.to_string()))
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};
    use serde_json::json;

    use super::*;

    fn blob(layout: &Path, bytes: &[u8]) -> serde_json::Value {
        let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        fs::create_dir_all(layout.join("blobs/sha256")).expect("directory");
        fs::write(layout.join("blobs/sha256").join(&hex), bytes).expect("blob");
        json!({ "mediaType": "x", "digest": format!("sha256:{hex}"), "size": bytes.len() })
    }

    fn layer(files: &[(&str, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (path, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            archive.append_data(&mut header, path, text.as_bytes()).expect("append");
        }
        archive.into_inner().expect("archive").finish().expect("gzip")
    }

    fn layout() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary directory");
        let lower = blob(dir.path(), &layer(&[("etc/passwd", "lower"), ("etc/gone", "")]));
        let upper = blob(dir.path(), &layer(&[("etc/passwd", "upper"), ("etc/.wh.gone", "")]));
        let image = blob(dir.path(), json!({ "layers": [lower, upper] }).to_string().as_bytes());
        let mut other = blob(dir.path(), b"{}");
        other["platform"] = json!({ "os": "linux", "architecture": "a-strange-one" });
        let index = json!({ "manifests": [other, image] });
        fs::write(dir.path().join("index.json"), index.to_string()).expect("index");
        dir
    }

    #[test]
    fn layers_are_put_on_top_of_each_other() {
        let (layout, rootfs) = (layout(), tempfile::tempdir().expect("temporary directory"));
        unpack(layout.path(), rootfs.path(), &mut |_| ()).expect("unpacked");
        let passwd = fs::read_to_string(rootfs.path().join("etc/passwd")).expect("passwd");
        assert_eq!(passwd, "upper");
        assert!(!rootfs.path().join("etc/gone").exists());
    }

    #[test]
    fn a_blob_that_was_changed_is_refused() {
        let (layout, rootfs) = (layout(), tempfile::tempdir().expect("temporary directory"));
        for entry in fs::read_dir(layout.path().join("blobs/sha256")).expect("blobs") {
            let path = entry.expect("blob").path();
            let mut bytes = fs::read(&path).expect("blob");
            if let Some(byte) = bytes.last_mut() {
                *byte ^= 1;
            }
            fs::write(&path, bytes).expect("blob");
        }
        let refused = unpack(layout.path(), rootfs.path(), &mut |_| ());
        assert!(matches!(refused, Err(TemplateError::Archive { .. })), "{refused:?}");
    }
}
