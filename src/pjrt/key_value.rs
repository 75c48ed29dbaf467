//! The key-value store of a client's: a plugin of several processes tells the other processes' plugins what they need to know of
//! each other, through functions of its caller's.

use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::ffi;
use crate::error::{Error, ErrorCode, Result};
use crate::processes::KeyValueStore;

/// What a plugin's callbacks work on. It lives as long as the client: a plugin can call whenever it likes.
pub struct ClientStore {
    store: Arc<dyn KeyValueStore>,
    /// What the client's keys begin with: other clients of the job have the same keys.
    prefix: String,
}

/// What a callback answers in place of a value.
type Refusal = (ErrorCode, String);

impl ClientStore {
    pub fn new(store: Arc<dyn KeyValueStore>, prefix: String) -> Arc<ClientStore> {
        Arc::new(ClientStore { store, prefix })
    }

    /// Hands the callbacks over. What is made with these arguments must not outlive the store.
    pub fn offer(self: &Arc<ClientStore>, args: &mut ffi::PJRT_Client_Create_Args) {
        let own = Arc::as_ptr(self).cast_mut().cast::<c_void>();
        args.kv_get_callback = get as *const c_void;
        args.kv_put_callback = put as *const c_void;
        args.kv_try_get_callback = try_get as *const c_void;
        (args.kv_get_user_arg, args.kv_put_user_arg, args.kv_try_get_user_arg) = (own, own, own);
    }

    /// # Safety
    /// `key` points to so many bytes.
    unsafe fn key(&self, key: *const c_char, size: usize) -> Result<String, Refusal> {
        // SAFETY: passed on to the caller.
        let key = unsafe { super::api::slice(key.cast::<u8>(), size) };
        match std::str::from_utf8(key) {
            Ok(key) => Ok(format!("{}{key}", self.prefix)),
            Err(error) => Err((ErrorCode::InvalidArgument, format!("the key is not UTF-8: {error}"))),
        }
    }
}

fn refusal(error: Error) -> Refusal {
    (ErrorCode::Internal, error.to_string())
}

fn missing(key: &str, waited: Option<Duration>) -> Refusal {
    match waited {
        Some(limit) => {
            (ErrorCode::DeadlineExceeded, format!("no process has put a value for `{key}` within {limit:?}"))
        }
        None => (ErrorCode::NotFound, format!("there is no value for `{key}`")),
    }
}

/// Turns what was answered into the plugin's error, or null. A panic is one too: it must not unwind through C.
///
/// # Safety
/// `make_error` is null, or points to the plugin's function that makes errors.
unsafe fn answer(
    make_error: *const Option<ffi::PJRT_CallbackError>,
    work: impl FnOnce() -> Result<(), Refusal>,
) -> *mut ffi::PJRT_Error {
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        std::mem::forget(panic);
        Err((ErrorCode::Internal, "the key-value store panicked".into()))
    });
    let Err((code, message)) = outcome else { return std::ptr::null_mut() };
    tracing::debug!(message, "a plugin's question to the key-value store failed");
    // SAFETY: passed on to the caller.
    match unsafe { make_error.as_ref() }.copied().flatten() {
        // SAFETY: the message has as many bytes as is said, and the plugin copies it.
        Some(make) => unsafe { make(code.number(), message.as_ptr().cast(), message.len()) },
        None => std::ptr::null_mut(),
    }
}

/// # Safety
/// The plugin's arguments, and the store that it was given.
unsafe extern "C" fn put(args: *mut ffi::PJRT_KeyValuePutCallback_Args) -> *mut ffi::PJRT_Error {
    // SAFETY: the C API passes complete arguments; the store is alive as long as the client.
    let (store, args) = unsafe { (&*(*args).user_arg.cast::<ClientStore>(), &*args) };
    // SAFETY: keys and values have as many bytes as is said.
    unsafe {
        answer(args.callback_error, || {
            let key = store.key(args.key, args.key_size)?;
            let value = super::api::slice(args.value.cast::<u8>(), args.value_size);
            store.store.put(&key, value).map_err(refusal)
        })
    }
}

/// # Safety
/// As for [`put`].
unsafe extern "C" fn get(args: *mut ffi::PJRT_KeyValueGetCallback_Args) -> *mut ffi::PJRT_Error {
    // SAFETY: as above.
    let (store, args) = unsafe { (&*(*args).user_arg.cast::<ClientStore>(), &mut *args) };
    // SAFETY: as above.
    unsafe {
        answer(args.callback_error, || {
            let key = store.key(args.key, args.key_size)?;
            // Negative for as long as it takes; nobody waits for longer than this.
            let limit =
                Duration::from_millis(u64::try_from(args.timeout_in_ms).unwrap_or(u64::from(u32::MAX)));
            let value = store.store.get(&key, limit).map_err(refusal)?;
            let value = value.ok_or_else(|| missing(&key, Some(limit)))?;
            args.value_size = value.len();
            args.value = lend(&value);
            args.value_deleter_callback = Some(take_back);
            Ok(())
        })
    }
}

/// # Safety
/// As for [`put`].
unsafe extern "C" fn try_get(args: *mut ffi::PJRT_KeyValueTryGetCallback_Args) -> *mut ffi::PJRT_Error {
    // SAFETY: as above.
    let (store, args) = unsafe { (&*(*args).user_arg.cast::<ClientStore>(), &mut *args) };
    // SAFETY: as above.
    unsafe {
        answer(args.callback_error, || {
            let key = store.key(args.key, args.key_size)?;
            let value = store.store.try_get(&key).map_err(refusal)?;
            let value = value.ok_or_else(|| missing(&key, None))?;
            args.value_size = value.len();
            args.value = lend(&value);
            args.value_deleter_callback = Some(take_back);
            Ok(())
        })
    }
}

/// Before a value that is lent stands how long it is: who gives it back does not say.
const HEAD: usize = size_of::<usize>();

/// A copy of a value, for the plugin to give back to [`take_back`].
fn lend(value: &[u8]) -> *mut c_char {
    let block: Box<[u8]> = [&value.len().to_ne_bytes()[..], value].concat().into();
    let block = Box::into_raw(block).cast::<u8>();
    // SAFETY: the block begins with so many bytes.
    unsafe { block.add(HEAD).cast() }
}

/// # Safety
/// `value` comes from [`lend`], and is not used after this.
unsafe extern "C" fn take_back(value: *mut c_char) {
    if value.is_null() {
        return;
    }
    // SAFETY: `lend` made a block of a head and as many bytes as it says.
    unsafe {
        let block = value.cast::<u8>().sub(HEAD);
        let mut length = [0; HEAD];
        length.copy_from_slice(std::slice::from_raw_parts(block, HEAD));
        let bytes = HEAD + usize::from_ne_bytes(length);
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(block, bytes)));
    }
}
