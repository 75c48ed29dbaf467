//! A plugin's function table, the one way to call through it, and its errors.

use std::ffi::c_char;
use std::fmt;

use super::ffi;
use crate::error::{Error, ErrorCode, Result};

/// The version of the PJRT C API that a plugin was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct ApiVersion {
    /// Changes when the ABI breaks.
    pub major: i32,
    /// Grows when something is added.
    pub minor: i32,
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The function table of a plugin, which lives as long as the process.
#[derive(Clone, Copy)]
pub(super) struct Api {
    table: *const ffi::PJRT_Api,
}

// SAFETY: the table is constant after `GetPjrtApi` has returned it, is never freed (libraries are never
// unloaded), and the C API allows its functions to be called from any thread.
unsafe impl Send for Api {}
// SAFETY: as above.
unsafe impl Sync for Api {}

/// More extensions than any plugin has.
const MAX_EXTENSIONS: usize = 256;

type RawFunction<Args> = unsafe extern "C" fn(*mut Args) -> *mut ffi::PJRT_Error;
type RawInfallible<Args> = unsafe extern "C" fn(*mut Args);

impl Api {
    /// Wraps the table that `GetPjrtApi` returned.
    ///
    /// Fails with the reason when the table is null, of another major version, or too short to have
    /// even the functions that every version had.
    ///
    /// # Safety
    /// `table` is null, or points to a `PJRT_Api` of `struct_size` bytes that stays valid and unchanged
    /// for the rest of the process.
    pub unsafe fn from_table(table: *const ffi::PJRT_Api) -> Result<Api, String> {
        if table.is_null() {
            return Err("its GetPjrtApi returned null".into());
        }
        let api = Api { table };
        // SAFETY: every PJRT_Api begins with its size (the caller promises that it is one).
        let size = unsafe { (&raw const (*table).struct_size).read() };
        if size < ffi::PJRT_Event_Destroy.offset {
            return Err(format!("its function table has {size} bytes, too few to hold anything"));
        }
        let version = api.version();
        if version.major != ffi::PJRT_API_MAJOR {
            return Err(format!(
                "it speaks PJRT C API {version}, and this build speaks major version {}; use a plugin of \
                 that major version, or another version of safejax",
                ffi::PJRT_API_MAJOR
            ));
        }
        Ok(api)
    }

    pub fn version(&self) -> ApiVersion {
        // SAFETY: `from_table` checked that the table is longer than its version field.
        let version = unsafe { (&raw const (*self.table).pjrt_api_version).read_unaligned() };
        ApiVersion { major: version.major_version, minor: version.minor_version }
    }

    /// The function's pointer, if the plugin's table reaches that far and the entry is not null.
    fn pointer<Args>(&self, function: &ffi::Function<Args>) -> Option<*const ()> {
        // SAFETY: `struct_size` is the first field of any table.
        let size = unsafe { (&raw const (*self.table).struct_size).read() };
        if function.offset + size_of::<*const ()>() > size {
            return None;
        }
        // SAFETY: the entry lies within the table's own `struct_size`, at the offset that the C header
        // gives it (checked by the ABI test), and entries are pointer-aligned.
        let pointer = unsafe { self.table.byte_add(function.offset).cast::<*const ()>().read() };
        (!pointer.is_null()).then_some(pointer)
    }

    /// Whether the plugin has this function.
    pub fn has<Args>(&self, function: &ffi::Function<Args>) -> bool {
        self.pointer(function).is_some()
    }

    /// The plugin's extension of this type, if it has it, is at least so large, and so holds a `T`.
    pub fn extension<T>(&self, type_: u32) -> Option<&'static T> {
        // SAFETY: `from_table` checked that the table is longer than this field.
        let mut next: *const ffi::ExtensionHead =
            unsafe { (&raw const (*self.table).extension_start).read() }.cast();
        // A chain that is longer than there are types is a circle.
        for _ in 0..MAX_EXTENSIONS {
            // SAFETY: every extension begins with its head, and lives as long as the table.
            let head = unsafe { next.as_ref() }?;
            if head.type_ == type_ {
                // SAFETY: an extension of this type begins with a `T`, as far as its size goes.
                return (head.struct_size >= size_of::<T>()).then(|| unsafe { &*next.cast::<T>() });
            }
            next = head.next;
        }
        None
    }

    /// Calls a function of an extension, as [`Api::call`] does one of the table.
    ///
    /// # Errors
    /// [`Error::Pjrt`] when it fails.
    ///
    /// # Safety
    /// `pointer` is a function that takes these arguments; else as for [`Api::call`].
    pub unsafe fn call_extension<Args>(
        &self,
        name: &'static str,
        pointer: *const std::ffi::c_void,
        args: &mut Args,
    ) -> Result<()> {
        // SAFETY: passed on to the caller.
        let error =
            unsafe { std::mem::transmute::<*const std::ffi::c_void, RawFunction<Args>>(pointer)(args) };
        // SAFETY: the function returned null or an error that is now ours.
        unsafe { self.result(name, error) }
    }

    /// Calls a function of the table and turns its status into a `Result`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when the plugin's table does not have it; [`Error::Pjrt`] when it fails.
    ///
    /// # Safety
    /// `args` are what the C API documents for `function`: handles that are alive, and pointers valid for
    /// as long as the function uses them.
    pub unsafe fn call<Args>(&self, function: ffi::Function<Args>, args: &mut Args) -> Result<()> {
        let pointer = self.pointer(&function).ok_or_else(|| Error::Unsupported {
            function: function.name,
            version: self.version().to_string(),
            hint: None,
        })?;
        // SAFETY: the entry is a function of this signature (the header's, for every function but the two
        // that are called through `call_infallible`), and the caller vouches for the arguments.
        let error = unsafe { std::mem::transmute::<*const (), RawFunction<Args>>(pointer)(args) };
        // SAFETY: the function returned null or an error that is now ours.
        unsafe { self.result(function.name, error) }
    }

    /// Calls a function in a destructor: a failure there can only be logged.
    ///
    /// # Safety
    /// As for [`Api::call`].
    pub unsafe fn call_in_drop<Args>(&self, function: ffi::Function<Args>, args: &mut Args) {
        // SAFETY: passed on to the caller.
        if let Err(error) = unsafe { self.call(function, args) } {
            tracing::warn!(%error, "a PJRT handle could not be freed");
        }
    }

    /// Takes ownership of an error returned by `function` (null is success).
    ///
    /// # Safety
    /// `error` is null or an error of this plugin that nobody else will free.
    pub unsafe fn result(&self, function: &'static str, error: *mut ffi::PJRT_Error) -> Result<()> {
        if error.is_null() {
            return Ok(());
        }
        let mut message = ffi::PJRT_Error_Message_Args::new();
        message.error = error;
        let mut code = ffi::PJRT_Error_GetCode_Args::new();
        code.error = error;
        // SAFETY: `error` is alive until it is destroyed below; the message is copied before that.
        let (message, code) = unsafe {
            self.call_infallible(ffi::PJRT_Error_Message, &mut message);
            let message = string(message.message, message.message_size);
            let failed = self.raw(ffi::PJRT_Error_GetCode).map(|get_code| get_code(&mut code));
            failed.filter(|failed| !failed.is_null()).inspect(|failed| self.destroy_error(*failed));
            (message, if failed.is_some_and(|failed| failed.is_null()) { code.code } else { 0 })
        };
        // SAFETY: the error is ours to free, and is not used after this.
        unsafe { self.destroy_error(error) };
        let message = message.trim().to_owned();
        Err(Error::Pjrt { function, code: ErrorCode::from_number(code), message })
    }

    /// Frees an error.
    ///
    /// # Safety
    /// It is of this plugin, ours, and not used after this.
    unsafe fn destroy_error(&self, error: *mut ffi::PJRT_Error) {
        let mut destroy = ffi::PJRT_Error_Destroy_Args::new();
        destroy.error = error;
        // SAFETY: passed on to the caller.
        unsafe { self.call_infallible(ffi::PJRT_Error_Destroy, &mut destroy) };
    }

    fn raw<Args>(&self, function: ffi::Function<Args>) -> Option<RawFunction<Args>> {
        // SAFETY: as in `call`.
        self.pointer(&function)
            .map(|pointer| unsafe { std::mem::transmute::<*const (), RawFunction<Args>>(pointer) })
    }

    /// Calls one of the two functions that return nothing (`Error_Destroy`, `Error_Message`).
    ///
    /// # Safety
    /// As for [`Api::call`], and `function` is one of those two.
    unsafe fn call_infallible<Args>(&self, function: ffi::Function<Args>, args: &mut Args) {
        if let Some(pointer) = self.pointer(&function) {
            // SAFETY: those two have this signature in the header; the caller vouches for the arguments.
            unsafe { std::mem::transmute::<*const (), RawInfallible<Args>>(pointer)(args) }
        }
    }
}

/// Copies a string that a plugin returned as pointer and length; bytes that are not UTF-8 are replaced.
///
/// # Safety
/// `data` is null or points to `size` bytes that stay valid during the call.
pub(super) unsafe fn string(data: *const c_char, size: usize) -> String {
    // SAFETY: passed on to the caller.
    String::from_utf8_lossy(unsafe { slice(data.cast::<u8>(), size) }).into_owned()
}

/// A slice that a plugin returned as pointer and length; null is empty.
///
/// # Safety
/// `data` is null or points to `size` values that stay valid and unchanged for `'a`.
pub(super) unsafe fn slice<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if data.is_null() || size == 0 {
        return &[];
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { std::slice::from_raw_parts(data, size) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(struct_size: usize, major: i32) -> ffi::PJRT_Api {
        // SAFETY: the table is integers and raw pointers, for which zero bytes are valid.
        let mut table: ffi::PJRT_Api = unsafe { std::mem::zeroed() };
        table.struct_size = struct_size;
        table.pjrt_api_version.major_version = major;
        table.pjrt_api_version.minor_version = 7;
        table
    }

    #[test]
    fn a_table_of_another_major_version_is_refused() {
        let table = table(size_of::<ffi::PJRT_Api>(), 1);
        // SAFETY: a valid table that outlives the call.
        let reason = unsafe { Api::from_table(&table) }.err().unwrap();
        assert!(reason.contains("PJRT C API 1.7"), "{reason}");
        // SAFETY: null is allowed.
        assert!(unsafe { Api::from_table(std::ptr::null()) }.is_err());
    }

    #[test]
    fn a_function_past_the_end_of_the_table_is_unsupported_and_named() {
        let table = table(ffi::PJRT_Client_DmaMap.offset, 0);
        // SAFETY: a valid table that outlives the calls.
        let api = unsafe { Api::from_table(&table) }.unwrap();
        assert!(!api.has(&ffi::PJRT_Client_DmaMap));
        let mut args = ffi::PJRT_Client_DmaMap_Args::new();
        // SAFETY: the table does not have the function, so nothing is called.
        let error = unsafe { api.call(ffi::PJRT_Client_DmaMap, &mut args) }.unwrap_err();
        assert_eq!(error.to_string(), "the plugin (PJRT C API 0.7) does not have PJRT_Client_DmaMap");
        let mut args = ffi::PJRT_Client_Create_Args::new();
        // SAFETY: the entry is null, so nothing is called.
        let error = unsafe { api.call(ffi::PJRT_Client_Create, &mut args) }.unwrap_err();
        assert!(matches!(error, Error::Unsupported { function: "PJRT_Client_Create", .. }));
    }
}
