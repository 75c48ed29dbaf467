//! The tree alone, as JSON: the structure record, and the type and shape of every leaf by name.

use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::target::Conversion;
use crate::checkpoint::{WriteOptions, write_atomically};
use crate::error::Result;
use crate::tree::record;

pub fn write(conversion: &Conversion<'_>, target: &Path, options: WriteOptions) -> Result<()> {
    let source = conversion.source;
    let leaves: Map<String, Value> = source
        .keys()
        .leaves()
        .iter()
        .zip(&conversion.specs)
        .map(|(leaf, spec)| {
            (
                leaf.name.clone(),
                json!({"path": leaf.path.to_string(), "dtype": spec.dtype, "shape": spec.shape}),
            )
        })
        .collect();
    let document = json!({
        "format": record::FORMAT,
        "tree": record::to_json(source.keys().def()),
        "framework": source.framework(),
        "leaves": leaves,
        "metadata": source.metadata(),
    });
    write_atomically(target, options, |file| writeln!(file, "{document:#}"))
}
