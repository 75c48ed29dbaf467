//! Failures: a code and a message, as the C API has them; and what it asks of them.

use crate::c_api as c;
use crate::calls::{Call, plugin};
use crate::device::text;

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

pub fn get_code(args: &mut c::PJRT_Error_GetCode_Args, _: &mut Call) -> Result<()> {
    args.code = plugin().objects.get::<Failure>(args.error)?.code;
    Ok(())
}

/// The message of an error.
///
/// # Safety
/// `args` points to such a struct.
pub unsafe extern "C" fn message(args: *mut c::PJRT_Error_Message_Args) {
    // SAFETY: passed on to the caller.
    let args = unsafe { &mut *args };
    if let Ok(failure) = plugin().objects.get::<Failure>(args.error) {
        (args.message, args.message_size) = text(&failure.message);
    }
}

/// Takes an error back.
///
/// # Safety
/// `args` points to such a struct.
pub unsafe extern "C" fn destroy(args: *mut c::PJRT_Error_Destroy_Args) {
    // SAFETY: passed on to the caller.
    let args = unsafe { &mut *args };
    let _ = plugin().objects.take::<Failure>(args.error);
}
