//! What has to hold, for every input that is kept: hand-made ones, and those for which it once did not.

use std::{fs, panic, path::Path};

#[test]
fn every_property_holds_for_every_seed() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let mut failed = Vec::new();
    for (name, check) in fuzz::TARGETS {
        let directory =
            fs::read_dir(seeds.join(name)).unwrap_or_else(|error| panic!("seeds of {name}: {error}"));
        let mut count = 0;
        for file in directory {
            let path = file.unwrap().path();
            let input = fs::read(&path).unwrap();
            count += 1;
            if panic::catch_unwind(|| check(&input)).is_err() {
                failed.push(path);
            }
        }
        assert!(count > 0, "{name} has no seeds");
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
