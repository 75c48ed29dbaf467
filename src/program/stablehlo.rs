//! StableHLO modules as data: MLIR bytecode with the VHLO dialect, read, changed and written again.
//!
//! A module's tables (strings, attributes, types, names, properties) are only ever appended to, and what is not understood
//! (Shardy's attributes, locations, attributes of the future) is passed on as it is. Formats: MLIR's `BytecodeFormat.md` and
//! `Bytecode/Encoding.h`; StableHLO's `VhloBytecode.cpp`.

mod calls;
mod constant;
mod encoding;
mod infer;
mod module;
mod print;
mod read;
mod refine;
mod schema;
mod tables;
mod work;
mod write;

pub use calls::{custom_calls, operation_counts};
pub use module::Module;
pub use print::text;
pub use refine::{Refined, Refusal, declared_sizes, refine};
pub use work::{MatrixWork, matrix_work};

/// What is wrong with a module, as a sentence without its end.
type Problem = String;

type Result<T> = std::result::Result<T, Problem>;
