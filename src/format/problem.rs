//! Why a parser gives up: what the bytes say is wrong, or they cannot be read.

use std::fmt;

use crate::error::Error;

/// Why a file cannot be parsed.
#[derive(Debug)]
pub(super) enum Problem {
    /// What is wrong with its content, as a sentence without its end.
    Content(String),
    /// It cannot be read.
    Unreadable(Error),
}

impl Problem {
    /// Why a stream over the file cannot be read on: what it is over cannot, or what it makes of that is wrong.
    pub fn of_stream(error: std::io::Error, what: &str) -> Problem {
        match error.downcast::<Error>() {
            Ok(error) => error.into(),
            Err(error) => Problem::Content(format!("{what}: {error}")),
        }
    }

    /// The same problem, with the place that it is at.
    pub fn at(self, place: impl fmt::Display) -> Problem {
        match self {
            Problem::Content(problem) => Problem::Content(format!("{place}: {problem}")),
            unreadable => unreadable,
        }
    }

    /// The error for a file of this format that comes from there.
    pub fn into_error(self, origin: &str, format: &'static str) -> Error {
        match self {
            Problem::Content(problem) => Error::Malformed { origin: origin.to_owned(), format, problem },
            Problem::Unreadable(error) => error,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Content(problem) => f.write_str(problem),
            Problem::Unreadable(error) => error.fmt(f),
        }
    }
}

impl From<String> for Problem {
    fn from(problem: String) -> Problem {
        Problem::Content(problem)
    }
}

impl From<&str> for Problem {
    fn from(problem: &str) -> Problem {
        Problem::Content(problem.to_owned())
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        match error {
            // The parser knows better which format it is.
            Error::Malformed { problem, .. } => Problem::Content(problem),
            error => Problem::Unreadable(error),
        }
    }
}
