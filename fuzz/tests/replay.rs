//! What has to hold, for every input that is kept: hand-made ones, and those for which it once did not.

use std::{
    fs, panic,
    path::{Path, PathBuf},
};

#[test]
fn every_property_holds_for_every_seed() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut failed = Vec::new();
    for (name, check) in fuzz::TARGETS {
        let files = files_below(&seeds.join(name));
        assert!(!files.is_empty(), "{name} has no seeds");
        failed.extend(files.into_iter().filter(|path| {
            let input = fs::read(path).unwrap();
            panic::catch_unwind(|| check(&input)).is_err()
        }));
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn every_directory_of_seeds_has_a_target_and_every_target_a_program() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |directory: &str| {
        let mut names: Vec<String> = fs::read_dir(root.join(directory))
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    };
    let targets: Vec<_> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("seeds"), targets);
    assert_eq!(names("fuzz_targets"), targets);
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.expect("the directory can be read").path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}
