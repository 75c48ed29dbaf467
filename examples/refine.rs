//! Refines StableHLO bytecode from standard input, whose `main` takes arrays of known sizes, to standard output: what
//! JAX's own `refine_polymorphic_shapes` does.
//!
//! `cargo run --release --example refine < module.mlirbc > refined.mlirbc`

use std::io::{Read, Write};

use safejax::Program;

fn main() -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    let refined = Program::from_bytes(bytes)?.refined(&[], None)?;
    std::io::stdout().write_all(refined.code())?;
    Ok(())
}
