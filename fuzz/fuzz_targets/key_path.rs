//! Key paths, patterns, and trees of names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use safejax::tree::matches_glob;
use safejax::{Framework, KeyMap, KeyPath};

fuzz_target!(|text: &str| {
    if let Ok(path) = text.parse::<KeyPath>() {
        assert_eq!(path.to_string().parse::<KeyPath>().unwrap().to_string(), path.to_string());
    }
    let names: Vec<&str> = text.lines().collect();
    let framework = Framework::detect(names.iter().copied());
    if let Ok(map) = KeyMap::from_names_by(framework, names.iter().copied()) {
        for leaf in map.leaves() {
            assert!(map.index(&leaf.name).is_ok());
        }
    }
    if let [pattern, name, ..] = names[..] {
        matches_glob(pattern, name);
    }
});
