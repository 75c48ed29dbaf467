//! Safetensors to safetensors: another layout, another floating point type. Memory is bounded by the
//! largest tensor.

use std::collections::BTreeMap;
use std::path::Path;

use crate::array::ArraySpec;
use crate::cast::{Cast, cast_dtype};
use crate::checkpoint::{Checkpoint, CheckpointWriter, DEFAULT_ALIGNMENT, Layout, WriteOptions};
use crate::dtype::DType;
use crate::error::{Context, Result};

/// How a file is converted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// What floating point tensors are cast to; others stay as they are.
    pub dtype: Option<DType>,
    /// What tensors are aligned to where they can be, in bytes: a power of two, 8 to 4096.
    pub alignment: usize,
    /// How the file is written.
    pub write: WriteOptions,
}

impl Default for ConvertOptions {
    fn default() -> ConvertOptions {
        ConvertOptions { dtype: None, alignment: DEFAULT_ALIGNMENT, write: WriteOptions::default() }
    }
}

/// What a conversion did.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct ConvertReport {
    /// Tensors in the file.
    pub tensors: usize,
    /// Tensors that were cast.
    pub cast_tensors: usize,
    /// Finite elements that became infinite, by tensor.
    pub overflows: BTreeMap<String, usize>,
    /// Tensors that could not be aligned.
    pub unaligned_tensors: usize,
    /// The new file's size in bytes.
    pub file_bytes: u64,
}

/// Writes the tensors and metadata of a checkpoint to a new file, atomically.
///
/// # Errors
/// [`Error::InvalidArgument`] when `dtype` is not float16, bfloat16, float32 or float64, or a tensor of
/// another floating point type would have to be cast; [`Error::Io`].
pub fn convert(input: &Checkpoint, output: &Path, options: &ConvertOptions) -> Result<ConvertReport> {
    let specs: Vec<(String, ArraySpec)> = input
        .tensors()
        .iter()
        .map(|tensor| {
            let dtype = cast_dtype(tensor.spec.dtype, options.dtype).for_tensor(&tensor.name)?;
            Ok((tensor.name.clone(), ArraySpec::new(dtype, tensor.spec.shape.clone())))
        })
        .collect::<Result<_>>()?;
    let layout = Layout::new(&specs, input.metadata(), options.alignment)?;
    let mut report = ConvertReport {
        tensors: specs.len(),
        unaligned_tensors: layout.unaligned().count(),
        file_bytes: layout.file_bytes as u64,
        ..ConvertReport::default()
    };
    let mut writer = CheckpointWriter::create(output, layout, options.write)?;
    while let Some(index) = writer.next_index() {
        let (tensor, dtype) = (&input.tensors()[index], specs[index].1.dtype);
        let bytes = input.bytes(tensor);
        if dtype == tensor.spec.dtype {
            writer.write_next(&bytes).for_tensor(&tensor.name)?;
            continue;
        }
        let cast = Cast::new(&bytes, tensor.spec.dtype, dtype).for_tensor(&tensor.name)?;
        writer.write_next(&cast.bytes).for_tensor(&tensor.name)?;
        report.cast_tensors += 1;
        if cast.overflows > 0 {
            report.overflows.insert(tensor.name.clone(), cast.overflows);
        }
    }
    writer.finish()?;
    Ok(report)
}
