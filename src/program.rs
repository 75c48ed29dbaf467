//! Programs: StableHLO and HLO, compiled for a device and called with buffers and trees of them.

pub(crate) mod argument;
pub(crate) mod artifact;
pub(crate) mod bind;
mod buckets;
mod bundle;
mod cache;
pub(crate) mod call;
pub(crate) mod compilation;
mod compile;
mod compiled;
mod compiled_output;
mod dim;
pub(crate) mod executable_file;
mod exported;
mod flatbuffer;
mod hlo;
pub(crate) mod outputs;
mod pad;
mod padding;
mod recent;
mod sharding;
mod signature;
mod stablehlo;
mod symbolic;
mod version;

pub use argument::{ArrayArgument, LeafArgument};
pub use bundle::{BUNDLE_KEY, Bucket, Bundle};
pub use cache::{CACHE_VARIABLE, cache_dir};
pub use compilation::{Compilation, DevicesIdentity, Identity, PluginIdentity};
pub use compiled_output::{CompiledOutput, Layout};
pub use executable_file::{EXECUTABLES_KEY, Entry, ExecutableFile};
pub use exported::{Aval, Dim, Exported};
pub use outputs::OutputTransfer;
pub use signature::{ArgumentKey, ArgumentTree, Parameter, Signature};
pub use stablehlo::MatrixWork;
