//! Failures: a code and a message, as the C API has them.

use crate::c_api as c;

/// Why a call, or the work that it started, failed.
#[derive(Debug, Clone)]
pub struct Failure {
    pub code: c::PJRT_Error_Code,
    pub message: String,
}

pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub fn new(code: c::PJRT_Error_Code, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(c::PJRT_Error_Code_INVALID_ARGUMENT, message)
    }

    pub fn unimplemented(message: impl Into<String>) -> Failure {
        Failure::new(c::PJRT_Error_Code_UNIMPLEMENTED, message)
    }

    /// Of a device that is gone.
    pub fn lost() -> Failure {
        Failure::new(c::PJRT_Error_Code_UNAVAILABLE, "the device was lost")
    }
}
