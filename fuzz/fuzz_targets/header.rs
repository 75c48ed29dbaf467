//! Safetensors files: the header, the tree, every tensor's bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use safejax::Checkpoint;
use safejax::convert::Source;
use safejax::load::Selection;

fuzz_target!(|data: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_bytes(data.to_vec()) else { return };
    for tensor in checkpoint.tensors() {
        assert_eq!(checkpoint.read(&tensor.name).unwrap().len(), tensor.bytes());
    }
    let _ = Source::new(checkpoint, &Selection::default());
});
