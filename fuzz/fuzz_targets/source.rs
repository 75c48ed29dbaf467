//! Files of every format, told by their content: npy, npz, msgpack, pickles, PyTorch's, safetensors. What is read is written
//! in two formats and read again: it must be the same.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use safejax::convert::{ConvertOptions, convert, open};
use safejax::load::Selection;

fuzz_target!(|data: &[u8]| {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    std::fs::File::create(&path).unwrap().write_all(data).unwrap();
    let options = Selection::default();
    let Ok(source) = open(&path, &options) else { return };
    let Ok(arrays) = source.to_host() else { return };
    let mut write = ConvertOptions::default();
    write.write.sync = false;
    for name in ["copy.safetensors", "copy.msgpack"] {
        let copy = directory.path().join(name);
        // Not everything that is read has a place in every format.
        if convert(&source, &copy, &write).is_err() {
            continue;
        }
        let again = open(&copy, &options).unwrap().to_host().unwrap();
        if name == "copy.safetensors" {
            assert_eq!(again, arrays);
        }
        assert_eq!(again.leaves().len(), arrays.leaves().len());
    }
});
