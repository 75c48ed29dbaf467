//! The one error of the library: what failed, where, and what to do about it.
//!
//! A variant names its subject (file, tensor, argument, plugin function); [`Error::blame`] says whose
//! fault it is, so that a service can tell a retry from a reject from a bug report.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::dtype::DType;
use crate::printable::{Block, File, Line, Name};

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on a file.
    #[error("cannot {action} {}", File(path))]
    Io {
        /// What was being done, as a verb: `open`, `write`, `rename`.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The system did not give the process as much memory.
    #[error("cannot get {bytes} bytes of host memory")]
    HostMemory {
        /// How much was asked for.
        bytes: usize,
        /// What the system said.
        source: io::Error,
    },

    /// What is loaded does not fit the device's memory: found before anything was allocated.
    #[error(
        "with it, what is loaded takes {needed} bytes, and {device} has {free} of its {limit} free; nothing was loaded; load \
         less of it, cast it to a smaller type, or drop other arrays first"
    )]
    DeviceMemory {
        /// The device.
        device: String,
        /// Bytes that the tensors take, up to the one that does not fit.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that the allocator may use.
        limit: u64,
    },

    /// A load ended without this tensor: a mistake of the library's.
    #[error("it was read, and did not get to the device; this is a bug of safejax, please report it")]
    Undelivered,

    /// Somebody cancelled the work; nothing of it is left.
    #[error("it was cancelled")]
    Cancelled,

    /// A file's content breaks the rules of its format.
    #[error("{} is not a valid {format}: {}", Line(origin), Line(problem))]
    Malformed {
        /// The file, or `bytes in memory`.
        origin: String,
        /// The format that was expected, such as `safetensors file`.
        format: &'static str,
        /// Which rule is broken, with names, offsets, what was expected and found.
        problem: String,
    },

    /// Something failed while working on one tensor.
    #[error("tensor `{}`", Name(tensor))]
    Tensor {
        /// The tensor's name in its file.
        tensor: String,
        /// What failed.
        source: Box<Error>,
    },

    /// Something failed while working on one argument of a call.
    #[error("{}", Line(argument))]
    Argument {
        /// The argument, as JAX writes it: `args[0]['w']`.
        argument: String,
        /// What failed.
        source: Box<Error>,
    },

    /// There is no tensor or node of this name.
    #[error("there is no {what} `{}`{}", Line(name), suggestion(.nearest))]
    NotFound {
        /// `tensor`, `leaf`, `device`, …
        what: &'static str,
        /// The name asked for.
        name: String,
        /// Names that exist and look alike.
        nearest: Vec<String>,
    },

    /// Names that cannot stand in one tree: two leaves with one name, or a name both leaf and node.
    #[error("the names do not form a tree: {}", Line(.0))]
    Tree(String),

    /// A checkpoint is not what the template says; one line per leaf.
    #[error("the checkpoint does not fit the template:{}", lines(.problems))]
    Template {
        /// One sentence per leaf that is missing, unused or mismatched.
        problems: Vec<String>,
    },

    /// The caller passed something that cannot be used.
    #[error("{}", Line(.0))]
    InvalidArgument(String),

    /// The arguments of a call do not fit the program; one line per argument.
    #[error("the arguments do not fit `{}`:{}", Line(program), lines(.problems))]
    Arguments {
        /// The program's name.
        program: String,
        /// One sentence per argument that does not fit, naming it, what was expected and given.
        problems: Vec<String>,
    },

    /// An element type that this operation, format or plugin cannot hold.
    #[error("{context} cannot hold elements of type {dtype}")]
    UnsupportedDType {
        /// The element type.
        dtype: DType,
        /// Who cannot hold it.
        context: String,
    },

    /// An array is not of the type asked for.
    #[error("the array is {found}, but {expected} was asked for")]
    DTypeMismatch {
        /// The type asked for.
        expected: DType,
        /// The type of the array.
        found: DType,
    },

    /// No plugin was found for a platform.
    #[error(
        "no PJRT plugin for `{}` was found in {} places, which `safejax doctor` lists\n{remedy}",
        Line(name),
        searched.len()
    )]
    PluginNotFound {
        /// The platform or plugin asked for.
        name: String,
        /// Every place that was looked at, and what was there.
        searched: Vec<String>,
        /// The command or setting that helps.
        remedy: String,
    },

    /// A plugin's library cannot be used.
    #[error("{} cannot be used as a PJRT plugin: {}", File(path), Block(reason))]
    PluginLibrary {
        /// The library.
        path: PathBuf,
        /// Why not, and what would.
        reason: String,
    },

    /// Installing did not work; nothing was changed.
    #[error("`{name}` was not installed: {}", Block(reason))]
    PluginInstall {
        /// The plugin.
        name: String,
        /// Why not, and what to do.
        reason: String,
    },

    /// The machine has no device for this plugin.
    #[error("no {platform} device: {reason}")]
    NoDevice {
        /// The plugin or platform.
        platform: String,
        /// What was looked at.
        reason: String,
    },

    /// The plugin is too old for a function.
    #[error("the plugin (PJRT C API {version}) does not have {function}{}", hint.as_deref().unwrap_or(""))]
    Unsupported {
        /// The C API function.
        function: &'static str,
        /// The plugin's C API version.
        version: String,
        /// What to do instead, if anything, beginning with `; `.
        hint: Option<String>,
    },

    /// The plugin or its device reported an error.
    #[error("{function} failed: {} [{code}]", Block(message))]
    Pjrt {
        /// The C API function that was called.
        function: &'static str,
        /// The status code.
        code: ErrorCode,
        /// The plugin's own words, and the device's memory where that helps.
        message: String,
    },

    /// Work of the device had not ended when the caller's time limit was over.
    #[error(
        "{work} has not ended within {limit:?}, which is the time limit; the device may be stuck. What it may still use of \
         the host's memory stays allocated"
    )]
    TimeLimit {
        /// The C API function that started the work, or what the work is.
        work: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },

    /// The processes of a job do not work together.
    #[error("{}", Line(.0))]
    Processes(String),

    /// The `xla` crate, or the XLA behind it, reported an error.
    #[cfg(feature = "xla")]
    #[error("the xla crate cannot {action}: {}", Block(message))]
    Xla {
        /// What it was asked to do, as a verb.
        action: &'static str,
        /// What it said.
        message: String,
    },
}

/// Whose fault an [`Error`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blame {
    /// The file is damaged or of another format: reject it.
    File,
    /// The call is wrong: fix the code or the command.
    Caller,
    /// The plugin or the device: another plugin, more memory, or a bug report.
    Plugin,
    /// The system: disk, permissions, network. Trying again can help.
    System,
}

/// The status codes of the PJRT C API (`PJRT_Error_Code`), which are absl's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs)] // absl's names, documented by absl
pub enum ErrorCode {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

/// The codes in the order of their numbers, from 1, with absl's spelling.
const CODES: [(ErrorCode, &str); 16] = [
    (ErrorCode::Cancelled, "CANCELLED"),
    (ErrorCode::Unknown, "UNKNOWN"),
    (ErrorCode::InvalidArgument, "INVALID_ARGUMENT"),
    (ErrorCode::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (ErrorCode::NotFound, "NOT_FOUND"),
    (ErrorCode::AlreadyExists, "ALREADY_EXISTS"),
    (ErrorCode::PermissionDenied, "PERMISSION_DENIED"),
    (ErrorCode::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (ErrorCode::FailedPrecondition, "FAILED_PRECONDITION"),
    (ErrorCode::Aborted, "ABORTED"),
    (ErrorCode::OutOfRange, "OUT_OF_RANGE"),
    (ErrorCode::Unimplemented, "UNIMPLEMENTED"),
    (ErrorCode::Internal, "INTERNAL"),
    (ErrorCode::Unavailable, "UNAVAILABLE"),
    (ErrorCode::DataLoss, "DATA_LOSS"),
    (ErrorCode::Unauthenticated, "UNAUTHENTICATED"),
];

impl ErrorCode {
    /// The code behind absl's number; numbers out of range are [`ErrorCode::Unknown`].
    pub fn from_number(number: u32) -> ErrorCode {
        let position = (number as usize).wrapping_sub(1);
        CODES.get(position).map_or(ErrorCode::Unknown, |&(code, _)| code)
    }

    /// absl's number of the code.
    pub(crate) fn number(self) -> u32 {
        self as u32 + 1
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(CODES[*self as usize].1)
    }
}

impl Error {
    /// Says which argument of a call the error is about.
    pub(crate) fn in_argument(self, argument: &str) -> Error {
        Error::Argument { argument: argument.to_owned(), source: Box::new(self) }
    }

    /// Whose fault this is.
    pub fn blame(&self) -> Blame {
        match self {
            Error::Malformed { .. } | Error::Tree(_) | Error::Template { .. } => Blame::File,
            Error::Io { .. }
            | Error::HostMemory { .. }
            | Error::PluginInstall { .. }
            | Error::Processes(_) => Blame::System,
            Error::NotFound { .. }
            | Error::InvalidArgument(_)
            | Error::Cancelled
            | Error::Arguments { .. }
            | Error::DTypeMismatch { .. }
            | Error::UnsupportedDType { .. } => Blame::Caller,
            Error::PluginNotFound { .. }
            | Error::PluginLibrary { .. }
            | Error::NoDevice { .. }
            | Error::DeviceMemory { .. }
            | Error::Unsupported { .. }
            | Error::TimeLimit { .. }
            | Error::Undelivered => Blame::Plugin,
            Error::Pjrt { code: ErrorCode::InvalidArgument, .. } => Blame::Caller,
            Error::Pjrt { .. } => Blame::Plugin,
            #[cfg(feature = "xla")]
            Error::Xla { .. } => Blame::Plugin,
            Error::Tensor { source, .. } | Error::Argument { source, .. } => source.blame(),
        }
    }

    /// The plugin's status code, where the plugin or its device is the source.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Error::Pjrt { code, .. } => Some(*code),
            Error::DeviceMemory { .. } => Some(ErrorCode::ResourceExhausted),
            Error::TimeLimit { .. } => Some(ErrorCode::DeadlineExceeded),
            Error::Tensor { source, .. } | Error::Argument { source, .. } => source.code(),
            _ => None,
        }
    }

    /// What the `xla` crate said, without the backtrace that it adds.
    #[cfg(feature = "xla")]
    pub(crate) fn xla(action: &'static str, error: ::xla::Error) -> Error {
        let message = match error {
            ::xla::Error::XlaError { msg, .. } => msg,
            other => other.to_string(),
        };
        Error::Xla { action, message }
    }

    /// Says in the plugin's words what they are about.
    pub(crate) fn about(self, what: &str) -> Error {
        match self {
            Error::Pjrt { function, code, message } => {
                Error::Pjrt { function, code, message: format!("`{}`: {message}", Line(what)) }
            }
            other => other,
        }
    }

    /// Adds to what the plugin said of memory that it does not have.
    pub(crate) fn with_memory_note(self, note: impl FnOnce() -> String) -> Error {
        match self {
            Error::Pjrt { function, code: code @ ErrorCode::ResourceExhausted, message } => {
                Error::Pjrt { function, code, message: message + &note() }
            }
            Error::Tensor { tensor, source } => {
                Error::Tensor { tensor, source: Box::new(source.with_memory_note(note)) }
            }
            other => other,
        }
    }

    /// Says of a time limit what it was as a whole.
    pub(crate) fn after(self, limit: Duration) -> Error {
        match self {
            Error::TimeLimit { work, .. } => Error::TimeLimit { work, limit },
            other => other,
        }
    }

    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Error {
        Error::Io { action, path: path.as_ref().to_owned(), source }
    }

    /// [`Error::NotFound`] with the names among `existing` that look like `name`.
    pub(crate) fn not_found<'a>(
        what: &'static str,
        name: &str,
        existing: impl IntoIterator<Item = &'a str>,
    ) -> Error {
        Error::NotFound { what, name: name.to_owned(), nearest: nearest(name, existing) }
    }
}

/// An error and what led to it, on one line. What stands there already is not said again.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let message = error.to_string();
        if !text.contains(&message) {
            text = format!("{text}: {message}");
        }
        source = error.source();
    }
    text
}

/// Adds to an error, on its way up, what it is about.
pub trait Context<T> {
    /// Says which tensor the error is about; an error that already names one is left alone.
    fn for_tensor(self, name: &str) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn for_tensor(self, name: &str) -> Result<T> {
        self.map_err(|error| match error {
            // What was cancelled did not fail with a tensor.
            Error::Tensor { .. } | Error::Cancelled => error,
            source => Error::Tensor { tensor: name.to_owned(), source: Box::new(source) },
        })
    }
}

fn suggestion(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        names => format!(
            "; did you mean {}?",
            names.iter().map(|name| format!("`{}`", Name(name))).collect::<Vec<_>>().join(" or ")
        ),
    }
}

fn lines(entries: &[String]) -> String {
    entries.iter().map(|entry| format!("\n  {}", Line(entry))).collect()
}

/// At most this many names are suggested for one that does not exist.
const SUGGESTIONS: usize = 3;

/// The names that are within a third of their length in edits, or end or begin with what was asked for.
pub(crate) fn nearest<'a>(name: &str, existing: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(usize, &str)> = existing
        .into_iter()
        .filter_map(|candidate| {
            if !name.is_empty() && (candidate.ends_with(name) || candidate.starts_with(name)) {
                return Some((0, candidate));
            }
            if candidate.len().abs_diff(name.len()) > 8 {
                return None;
            }
            let distance = edit_distance(name, candidate);
            (distance * 3 <= name.len().max(3)).then_some((distance, candidate))
        })
        .collect();
    scored.sort();
    let nearest = scored.first().map_or(0, |(distance, _)| *distance);
    scored.retain(|(distance, _)| *distance == nearest);
    scored.into_iter().take(SUGGESTIONS).map(|(_, name)| name.to_owned()).collect()
}

/// Levenshtein's distance, in bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nearly_right_is_suggested() {
        let names = ["params.Dense_0.kernel", "params.Dense_0.bias", "params.Conv_0.kernel"];
        let error = Error::not_found("leaf", "params.Dense_0.kernle", names);
        assert_eq!(
            error.to_string(),
            "there is no leaf `params.Dense_0.kernle`; did you mean `params.Dense_0.kernel`?"
        );
        let error = Error::not_found("leaf", "Dense_0.bias", names);
        assert!(error.to_string().contains("`params.Dense_0.bias`"));
        let error = Error::not_found("leaf", "optimizer", names);
        assert_eq!(error.to_string(), "there is no leaf `optimizer`");
    }

    #[test]
    fn the_innermost_tensor_is_kept() {
        let inner: Result<()> = Err(Error::InvalidArgument("no".into()));
        let error = inner.for_tensor("a").for_tensor("b").unwrap_err();
        assert_eq!(error.to_string(), "tensor `a`");
        assert_eq!(error.blame(), Blame::Caller);
    }

    #[test]
    fn codes_are_in_the_order_of_their_numbers() {
        for (position, (code, name)) in CODES.iter().enumerate() {
            assert_eq!(*code as usize, position);
            assert_eq!(ErrorCode::from_number(position as u32 + 1), *code);
            assert_eq!(code.to_string(), *name);
        }
        assert_eq!(ErrorCode::from_number(0), ErrorCode::Unknown);
        assert_eq!(ErrorCode::from_number(99), ErrorCode::Unknown);
    }
}
