//! Templates: imported, replaced while in use, built half.

mod support;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use sandbox::{
    Create, SandboxError, SandboxId,
    template::{Builtin, TemplateError, TemplateKind, Templates},
};
use support::{ACCOUNT, Lab, possible, request};
use tar::{Builder, EntryType, Header};

/// An archive of a root file system with this machine's shell and nothing else but `marker` in a file.
fn archive(dir: &Path, marker: &str) -> PathBuf {
    let path = dir.join(format!("{marker}.tar"));
    let mut archive = Builder::new(File::create(&path).expect("archive"));
    let add = |archive: &mut Builder<File>, name: &str, mode, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, name.trim_start_matches('/'), content).expect("append");
    };
    for file in shell_and_libraries() {
        add(&mut archive, &file.display().to_string(), 0o755, &fs::read(&file).expect("library"));
    }
    let shell = fs::canonicalize("/bin/sh").expect("shell");
    let mut link = Header::new_gnu();
    link.set_entry_type(EntryType::Symlink);
    link.set_size(0);
    for field in [Header::set_uid, Header::set_gid] {
        field(&mut link, 0);
    }
    archive.append_link(&mut link, "bin/sh", shell).expect("link");
    add(&mut archive, "marker", 0o644, marker.as_bytes());
    archive.finish().expect("archive");
    path
}

#[expect(clippy::disallowed_types, reason = "the dynamic linker knows")]
fn shell_and_libraries() -> BTreeSet<PathBuf> {
    let shell = fs::canonicalize("/bin/sh").expect("shell");
    let output = std::process::Command::new("ldd").arg(&shell).output().expect("ldd");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    libraries.chain([shell]).collect()
}

async fn import(lab: &Lab, name: &str, path: PathBuf) {
    let (templates, name) = (lab.manager.templates().clone(), name.to_owned());
    let import = move || templates.import(&name, &path, &mut |_| ());
    tokio::task::spawn_blocking(import).await.expect("task").expect("import");
}

async fn create(lab: &Lab, template: &str) -> Result<SandboxId, SandboxError> {
    let request = Create { template: template.to_owned(), ..request() };
    Ok(lab.create_with(request).await?.id.parse().expect("id"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_root_file_system_runs_with_nothing_of_the_machine() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    import(&lab, "tiny", archive(lab.dir.path(), "one")).await;
    for name in ["tiny", "tpl-tiny"] {
        let id = create(&lab, name).await.expect("sandbox");
        assert_eq!(lab.run(&id, "read x < /marker; echo $x; cd; pwd; cd /etc; echo *").await, {
            "one\n/home/user\ngroup hostname hosts passwd resolv.conf shadow"
        });
        assert_eq!(lab.run_as_root(&id, "echo /usr/bin/env; cd /dev; echo n*").await, "/usr/bin/env\nnull");
        assert_ne!(lab.run_as(&id, "user", "/usr/bin/env").await.exit_code, 0);
    }
    let listed = lab.manager.templates().list().expect("list");
    let kinds: Vec<_> = listed.iter().map(|manifest| (manifest.name.as_str(), manifest.kind)).collect();
    assert_eq!(kinds, [("host", TemplateKind::Host), ("tiny", TemplateKind::Rootfs)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_replaced_or_removed_stays_for_the_sandboxes_that_use_it() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let marker = "read x < /marker; echo $x";
    import(&lab, "tiny", archive(lab.dir.path(), "one")).await;
    let old = create(&lab, "tiny").await.expect("sandbox");
    import(&lab, "tiny", archive(lab.dir.path(), "two")).await;
    let new = create(&lab, "tiny").await.expect("sandbox");
    assert_eq!(lab.run(&old, marker).await, "one");
    assert_eq!(lab.run(&new, marker).await, "two");
    assert!(lab.manager.templates().remove("tiny").expect("remove"));
    assert!(!lab.manager.templates().remove("tiny").expect("a second time"));
    assert_eq!(lab.run(&old, marker).await, "one");
    assert_eq!(lab.run(&new, marker).await, "two");
    assert!(matches!(create(&lab, "tiny").await, Err(SandboxError::UnknownTemplate(_))));
    assert_eq!(hidden(&lab), 2);
    lab.manager.kill(ACCOUNT, &old).await.expect("kill");
    assert_eq!(lab.manager.gc().await.expect("gc").templates.len(), 1);
    assert_eq!(lab.run(&new, marker).await, "two");
    lab.manager.kill(ACCOUNT, &new).await.expect("kill");
    assert_eq!(lab.manager.gc().await.expect("gc").templates.len(), 1);
    assert_eq!(hidden(&lab), 0);
}

fn hidden(lab: &Lab) -> usize {
    let entries = fs::read_dir(lab.dir.path().join("templates")).expect("templates");
    entries
        .filter(|entry| {
            entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.'))
        })
        .count()
}

#[test]
fn a_failed_import_leaves_neither_a_template_nor_remains() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let templates = Templates::open(&dir.path().join("templates")).expect("templates");
    let broken = dir.path().join("broken.tar");
    fs::write(&broken, "no archive").expect("file");
    let failed = templates.import("broken", &broken, &mut |_| ());
    assert!(matches!(failed, Err(TemplateError::Archive { .. })), "{failed:?}");
    assert!(matches!(templates.get("broken"), Err(TemplateError::Unknown(_))));
    assert!(templates.list().expect("list").is_empty());
    assert_eq!(fs::read_dir(dir.path().join("templates")).expect("templates").count(), 0);
}

#[test]
fn names_that_are_paths_or_taken_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let templates = Templates::open(dir.path()).expect("templates");
    for name in [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        ".hidden",
        "Large",
        "host",
        "base",
        "python",
        "node",
        "mcp-server",
        "tpl-x",
        "ä",
    ] {
        let refused = templates.import(name, Path::new("/nonexistent"), &mut |_| ());
        assert!(matches!(refused, Err(TemplateError::Name(_))), "{name}: {refused:?}");
        assert!(templates.get(name).is_err(), "{name}");
    }
    for builtin in Builtin::ALL {
        assert!(matches!(templates.get(builtin.name()), Err(TemplateError::NotReady(_))));
    }
    let accepted = templates.import("my-image_1.2", Path::new("/nonexistent"), &mut |_| ());
    assert!(matches!(accepted, Err(TemplateError::Io { .. })), "{accepted:?}");
}
