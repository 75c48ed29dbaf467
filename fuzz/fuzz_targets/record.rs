//! The structure record: what is read is written and read again as the same.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use safejax::tree::record;
use safejax::{Framework, KeyMap};

fuzz_target!(|text: &str| {
    let metadata = BTreeMap::from([
        (record::FORMAT_KEY.to_owned(), record::FORMAT.to_owned()),
        (record::TREE_KEY.to_owned(), text.to_owned()),
    ]);
    let Ok(Some(def)) = record::read(&metadata) else { return };
    if let Ok(written) = record::write(&def, Framework::Plain) {
        assert_eq!(record::read(&written).unwrap(), Some(def.clone()));
    }
    let _ = KeyMap::new(def);
});
