//! From a checkpoint to a device: a plan is made first, then carried out, then reported.

mod names;
mod options;
mod plan;

use std::borrow::Cow;

use bytes::Bytes;

pub use options::{LoadOptions, Rename, Sharing, Strictness, Structure, Template, Verification};
pub use plan::{LoadPlan, Route, Step, Target};

use crate::array::ArraySpec;
use crate::cast::Cast;
use crate::checkpoint::{Checkpoint, TensorInfo, read_digests, sha256};
use crate::error::{Context, Error, Result};
use crate::params::Params;
use crate::pjrt::{Buffer, Client, HostSemantics, Placement};
use crate::sub_byte;
use crate::tree::{Framework, KeyMap, Node, record};

/// XLA:CPU uses host memory in place only at this alignment, in bytes (`cpu_function_runtime::MinAlign`).
const CPU_ALIAS_ALIGNMENT: usize = 64;

/// What a load did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[non_exhaustive]
pub struct LoadReport {
    /// The framework whose names these are: as it was given, recorded or recognised.
    pub framework: Framework,
    /// Whether the tree came from a structure record, rather than from the names.
    pub has_record: bool,
    /// Tensors that were loaded.
    pub tensors: usize,
    /// Their bytes in the file.
    pub bytes: u64,
    /// Tensors that use the file's memory map in place.
    pub aliased_tensors: usize,
    /// Their bytes.
    pub aliased_bytes: u64,
    /// Tensors that were copied.
    pub copied_tensors: usize,
    /// Their bytes.
    pub copied_bytes: u64,
    /// Tensors whose elements were cast.
    pub cast_tensors: usize,
}

/// Loads a checkpoint, and reports how.
pub(crate) fn load(
    client: &Client,
    checkpoint: &Checkpoint,
    options: &LoadOptions,
) -> Result<(Params, LoadReport)> {
    let to = match &options.to {
        Some(placement) => placement.clone(),
        None => Placement::from(&client.device(0)?),
    };
    let target = Target {
        alias_alignment: (options.sharing == Sharing::Allowed).then(|| alias_alignment(client)).flatten(),
    };
    let selection =
        names::select(checkpoint, options).map_err(|error| in_file(error, checkpoint.origin()))?;
    let digests = match options.verification {
        Verification::Digests => read_digests(checkpoint.metadata())?,
        Verification::None => Default::default(),
    };
    let plan =
        LoadPlan::new(&selection.tensors(), checkpoint.data().as_ptr() as usize, target, &options.dtypes)?;
    let mut report = LoadReport {
        framework: selection.framework,
        has_record: selection.has_record,
        ..LoadReport::default()
    };
    let mut buffers: Vec<Option<Buffer>> = vec![None; plan.steps.len()];
    // In the order of the bytes, so that reads are sequential.
    for &position in &plan.order {
        let step = &plan.steps[position];
        let bytes = checkpoint.data().slice(step.range.clone());
        if let Some(expected) = digests.get(&step.name) {
            check_digest(&bytes, expected).for_tensor(&step.name)?;
        }
        let buffer = carry_out(client, step, bytes.clone(), &to).for_tensor(&step.name)?;
        report.add(step, step.route == Route::Alias && is_in_place(&buffer, &bytes));
        buffers[position] = Some(buffer);
    }
    tracing::debug!(origin = checkpoint.origin(), ?report, "loaded");
    let params = Params::from_parts(selection.keys, buffers.into_iter().flatten().collect());
    if options.sharing == Sharing::Never {
        // Until the copies are made, they still need the file.
        params.wait()?;
    }
    Ok((params.with_metadata(record::strip(checkpoint.metadata()), selection.framework), report))
}

/// A checkpoint's tree, without its bytes.
#[derive(Debug, Clone)]
pub struct Outline {
    /// The structure and the leaves.
    pub keys: KeyMap,
    /// The types and shapes of the leaves in the file, in JAX's order.
    pub specs: Vec<ArraySpec>,
    /// Where the leaves' bytes are, from the beginning of the file.
    pub ranges: Vec<std::ops::Range<usize>>,
    /// The framework whose names these are.
    pub framework: Framework,
    /// Whether the tree came from a structure record.
    pub has_record: bool,
}

impl Outline {
    /// The tree with the sums over its nodes.
    pub fn tree(&self) -> Node {
        Node::build(self.keys.def(), &mut self.specs.iter())
    }
}

/// The tree that [`Params::load_with`] would load with these options, without loading it.
///
/// # Errors
/// [`Error::Tree`] when the names or the structure record do not make a tree; [`Error::Template`].
pub fn outline(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Outline> {
    let selection =
        names::select(checkpoint, options).map_err(|error| in_file(error, checkpoint.origin()))?;
    let tensors = selection.tensors();
    let specs = tensors.iter().map(|(_, tensor)| tensor.spec.clone()).collect();
    let ranges = tensors.iter().map(|(_, tensor)| tensor.range.clone()).collect();
    Ok(Outline {
        specs,
        ranges,
        framework: selection.framework,
        has_record: selection.has_record,
        keys: selection.keys,
    })
}

/// What host memory must be aligned to for the client to use it in place; `None` where it never does.
fn alias_alignment(client: &Client) -> Option<usize> {
    (client.platform_name() == "cpu").then_some(CPU_ALIAS_ALIGNMENT)
}

fn carry_out(client: &Client, step: &Step, bytes: Bytes, to: &Placement) -> Result<Buffer> {
    let (bytes, semantics): (Bytes, _) = match step.route {
        Route::Alias => (bytes, HostSemantics::Alias),
        Route::Copy => (bytes, HostSemantics::Copy),
        Route::Unpack => (sub_byte::unpack(&bytes, step.spec.dtype).into(), HostSemantics::Copy),
        Route::Cast { from } => {
            let cast = Cast::new(&bytes, from, step.spec.dtype)?;
            if cast.overflows > 0 {
                tracing::warn!(
                    tensor = step.name,
                    elements = cast.overflows,
                    "elements became infinite in a cast"
                );
            }
            (cast.bytes.into(), HostSemantics::Copy)
        }
    };
    client.buffer_from_host(&step.spec, bytes, to, semantics)
}

fn check_digest(bytes: &[u8], expected: &str) -> Result<()> {
    let found = sha256(bytes);
    if found == expected {
        return Ok(());
    }
    Err(Error::Malformed {
        origin: "the tensor".into(),
        format: "copy of what was written",
        problem: format!("its sha256 is {found}, and {expected} was recorded"),
    })
}

/// Whether the buffer really uses these bytes: a plugin may copy although it was told that it need not.
fn is_in_place(buffer: &Buffer, bytes: &Bytes) -> bool {
    buffer
        .external_reference()
        .is_ok_and(|reference| reference.as_ptr().cast_const() == bytes.as_ptr().cast())
}

/// Names the file in an error about its names.
fn in_file(error: Error, origin: &str) -> Error {
    match error {
        Error::Tree(problem) => Error::Tree(format!("in {origin}, {problem}")),
        other => other,
    }
}

impl LoadReport {
    fn add(&mut self, step: &Step, in_place: bool) {
        let bytes = step.range.len() as u64;
        self.tensors += 1;
        self.bytes += bytes;
        self.cast_tensors += usize::from(matches!(step.route, Route::Cast { .. }));
        let (tensors, sum) = if in_place {
            (&mut self.aliased_tensors, &mut self.aliased_bytes)
        } else {
            (&mut self.copied_tensors, &mut self.copied_bytes)
        };
        *tensors += 1;
        *sum += bytes;
    }
}

/// A tensor of the file under the name that it is loaded by.
pub(crate) type Selected<'a> = (Cow<'a, str>, &'a TensorInfo);
