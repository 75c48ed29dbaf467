//! Programs: `jax.export` artifacts, bundles, StableHLO, HLO protos.
#![no_main]

use libfuzzer_sys::fuzz_target;
use safejax::Program;

fuzz_target!(|data: &[u8]| {
    let Ok(program) = Program::from_bytes(data.to_vec()) else { return };
    let _ = (program.signature_text(), program.stablehlo_version(), program.code().len());
    if let Some(exported) = program.exported() {
        let _ = (exported.in_tree.paths(), exported.out_tree.to_string(), exported.symbolic_dimensions());
        let sizes = exported.dimension_variables().into_iter().map(|name| (name, 4)).collect::<Vec<_>>();
        let sizes = sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect::<Vec<_>>();
        let _ = (program.refined(&sizes, None), program.stablehlo_text(), program.constraints());
    }
});
