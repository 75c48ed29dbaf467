//! Clients.

use std::ffi::{c_char, c_int};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::c_api as c;
use crate::calls::{Call, plugin};
use crate::config::Config;
use crate::device::{Device, pointer, text};
use crate::failure::{Failure, Result};
use crate::objects::Object;

pub struct Client {
    platform: String,
    pub devices: Vec<Arc<Device>>,
    /// What the caller knows the devices by: all, those of this process, and their memories.
    all: Vec<usize>,
    here: Vec<usize>,
    memories: Vec<usize>,
    process: c_int,
}

impl Object for Client {
    type Raw = c::PJRT_Client;
    const NAME: &'static str = "client";
}

const VERSION: &str = "simulator";

pub fn client(handle: *mut c::PJRT_Client) -> Result<Arc<Client>> {
    plugin().objects.get::<Client>(handle)
}

/// A create option that is a whole number.
///
/// # Safety
/// `options` points to so many.
unsafe fn option(options: *const c::PJRT_NamedValue, count: usize, wanted: &str) -> Option<i64> {
    // SAFETY: the caller vouches for the options, which say which of their values is set.
    let options = if count == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(options, count) } };
    options.iter().find_map(|option| {
        // SAFETY: as above.
        let name = unsafe { std::slice::from_raw_parts(option.name.cast::<u8>(), option.name_size) };
        let is_number = option.type_ == c::PJRT_NamedValue_kInt64;
        // SAFETY: as above.
        (name == wanted.as_bytes() && is_number).then_some(unsafe { option.__bindgen_anon_1.int64_value })
    })
}

pub fn create(args: &mut c::PJRT_Client_Create_Args, _: &mut Call) -> Result<()> {
    let config = plugin().config();
    // SAFETY: the caller's options.
    let option = |name| unsafe { option(args.create_options, args.num_options, name) };
    let process = usize::try_from(option("node_id").unwrap_or(0)).unwrap_or(0);
    let processes = option("num_nodes").map_or(config.processes, |count| usize::try_from(count).unwrap_or(1));
    if processes > 1 {
        exchange_keys(args, process, processes)?;
    }
    args.client = plugin().objects.give::<Client>(Client::new(&config, process, processes));
    Ok(())
}

impl Client {
    fn new(config: &Config, process: usize, processes: usize) -> Client {
        let count = config.devices * processes;
        let devices: Vec<Arc<Device>> = (0..count)
            .map(|index| {
                let of = index / config.devices.max(1);
                Device::new(index, of, of == process, config)
            })
            .collect();
        let own = |device: &Arc<Device>| device.handles.own.get().copied().unwrap_or(0);
        let here = || devices.iter().filter(|device| device.is_here);
        Client {
            platform: config.platform.clone(),
            all: devices.iter().map(own).collect(),
            here: here().map(own).collect(),
            memories: here()
                .flat_map(|device| device.handles.memories.get().cloned().unwrap_or_default())
                .collect(),
            process: process as c_int,
            devices,
        }
    }
}

/// Puts this process's key into the caller's store and gets that of every other.
fn exchange_keys(args: &c::PJRT_Client_Create_Args, process: usize, processes: usize) -> Result<()> {
    let (Some(get), Some(put)) = (args.kv_get_callback, args.kv_put_callback) else {
        return Err(Failure::invalid("several processes need a key-value store"));
    };
    let key = |process: usize| format!("simulator/process/{process}");
    let value = format!("process {process}");
    let mut put_args = c::PJRT_KeyValuePutCallback_Args {
        struct_size: size_of::<c::PJRT_KeyValuePutCallback_Args>(),
        extension_start: std::ptr::null_mut(),
        key: std::ptr::null(),
        key_size: 0,
        value: value.as_ptr().cast(),
        value_size: value.len(),
        callback_error: std::ptr::from_ref(&MAKE_ERROR).cast_mut(),
        user_arg: args.kv_put_user_arg,
    };
    let own = key(process);
    (put_args.key, put_args.key_size) = text(&own);
    // SAFETY: the arguments live until it returns.
    check(unsafe { put(&mut put_args) })?;
    for other in (0..processes).filter(|other| *other != process) {
        let mut get_args = c::PJRT_KeyValueGetCallback_Args {
            struct_size: size_of::<c::PJRT_KeyValueGetCallback_Args>(),
            extension_start: std::ptr::null_mut(),
            key: std::ptr::null(),
            key_size: 0,
            timeout_in_ms: 10_000,
            callback_error: std::ptr::from_ref(&MAKE_ERROR).cast_mut(),
            user_arg: args.kv_get_user_arg,
            value: std::ptr::null_mut(),
            value_size: 0,
            value_deleter_callback: None,
        };
        let wanted = key(other);
        (get_args.key, get_args.key_size) = text(&wanted);
        // SAFETY: as above; the value is read before it is given back.
        let value = unsafe {
            check(get(&mut get_args))?;
            let value = std::slice::from_raw_parts(get_args.value.cast::<u8>(), get_args.value_size).to_vec();
            if let Some(delete) = get_args.value_deleter_callback {
                delete(get_args.value);
            }
            value
        };
        if value != format!("process {other}").as_bytes() {
            return Err(Failure::invalid(format!("the store gives {value:?} for process {other}")));
        }
        plugin().exchanged_keys.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}

static MAKE_ERROR: c::PJRT_CallbackError = Some(make_error);

/// Makes the errors of the caller's callbacks.
///
/// # Safety
/// `message` points to so many bytes.
unsafe extern "C" fn make_error(
    code: c::PJRT_Error_Code,
    message: *const c_char,
    message_size: usize,
) -> *mut c::PJRT_Error {
    // SAFETY: passed on to the caller.
    let message = unsafe { std::slice::from_raw_parts(message.cast::<u8>(), message_size) };
    plugin().objects.give(Failure::new(code, String::from_utf8_lossy(message)))
}

fn check(error: *mut c::PJRT_Error) -> Result<()> {
    if error.is_null() {
        return Ok(());
    }
    Err(Failure::clone(&*plugin().objects.take::<Failure>(error)?))
}

pub fn destroy(args: &mut c::PJRT_Client_Destroy_Args, _: &mut Call) -> Result<()> {
    let plugin = plugin();
    let client = plugin.objects.take::<Client>(args.client)?;
    plugin.release();
    for device in &client.devices {
        device.close();
    }
    // What the lanes came to only now.
    plugin.release();
    let alive = plugin.objects.alive();
    if !alive.contains_key("client") {
        for kind in ["buffer", "loaded executable", "transfer manager"] {
            if let Some(count) = alive.get(kind) {
                plugin.violation(format!("the client goes before {count} of kind {kind}"));
            }
        }
    }
    if let Some(path) = plugin.config().report.clone() {
        let report = serde_json::to_vec(&plugin.report()).unwrap_or_default();
        if let Err(error) = std::fs::write(&path, report) {
            plugin.violation(format!("{}: {error}", path.display()));
        }
    }
    Ok(())
}

pub fn platform_name(args: &mut c::PJRT_Client_PlatformName_Args, _: &mut Call) -> Result<()> {
    (args.platform_name, args.platform_name_size) = text(&client(args.client)?.platform);
    Ok(())
}

pub fn platform_version(args: &mut c::PJRT_Client_PlatformVersion_Args, _: &mut Call) -> Result<()> {
    client(args.client)?;
    (args.platform_version, args.platform_version_size) = text(VERSION);
    Ok(())
}

pub fn process_index(args: &mut c::PJRT_Client_ProcessIndex_Args, _: &mut Call) -> Result<()> {
    args.process_index = client(args.client)?.process;
    Ok(())
}

pub fn devices(args: &mut c::PJRT_Client_Devices_Args, _: &mut Call) -> Result<()> {
    let client = client(args.client)?;
    (args.devices, args.num_devices) = (client.all.as_ptr().cast(), client.all.len());
    Ok(())
}

pub fn addressable_devices(args: &mut c::PJRT_Client_AddressableDevices_Args, _: &mut Call) -> Result<()> {
    let client = client(args.client)?;
    (args.addressable_devices, args.num_addressable_devices) =
        (client.here.as_ptr().cast(), client.here.len());
    Ok(())
}

pub fn addressable_memories(args: &mut c::PJRT_Client_AddressableMemories_Args, _: &mut Call) -> Result<()> {
    let client = client(args.client)?;
    (args.addressable_memories, args.num_addressable_memories) =
        (client.memories.as_ptr().cast(), client.memories.len());
    Ok(())
}

pub fn lookup(args: &mut c::PJRT_Client_LookupDevice_Args, _: &mut Call) -> Result<()> {
    args.device = find(&*client(args.client)?, args.id, |_| true)?;
    Ok(())
}

pub fn lookup_addressable(
    args: &mut c::PJRT_Client_LookupAddressableDevice_Args,
    _: &mut Call,
) -> Result<()> {
    args.addressable_device = find(&*client(args.client)?, args.local_hardware_id, |device| device.is_here)?;
    Ok(())
}

fn find(client: &Client, id: c_int, fits: impl Fn(&Device) -> bool) -> Result<*mut c::PJRT_Device> {
    let found = client.devices.iter().find(|device| device.index as c_int == id && fits(device));
    found
        .map(|device| pointer(&device.handles.own))
        .ok_or_else(|| Failure::invalid(format!("there is no device {id}")))
}

pub fn default_assignment(
    args: &mut c::PJRT_Client_DefaultDeviceAssignment_Args,
    _: &mut Call,
) -> Result<()> {
    let client = client(args.client)?;
    let count = usize::try_from(args.num_replicas * args.num_partitions).unwrap_or(0);
    if count > client.devices.len() || count > args.default_assignment_size {
        return Err(Failure::invalid(format!("{count} devices are not there")));
    }
    for index in 0..count {
        // SAFETY: the caller's array has that size.
        unsafe { *args.default_assignment.add(index) = index as c_int };
    }
    Ok(())
}

pub fn initialize(_: &mut c::PJRT_Plugin_Initialize_Args, _: &mut Call) -> Result<()> {
    Ok(())
}

pub fn plugin_attributes(args: &mut c::PJRT_Plugin_Attributes_Args, _: &mut Call) -> Result<()> {
    (args.attributes, args.num_attributes) = (std::ptr::null(), 0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::ffi::c_void;
    use std::sync::Mutex;

    use super::*;
    use crate::calls::lock;

    /// The caller's store.
    #[derive(Default)]
    struct Store(Mutex<HashMap<Vec<u8>, Vec<u8>>>);

    unsafe fn bytes(start: *const c_char, size: usize) -> Vec<u8> {
        // SAFETY: the plugin's arguments.
        unsafe { std::slice::from_raw_parts(start.cast(), size) }.to_vec()
    }

    unsafe extern "C" fn put(args: *mut c::PJRT_KeyValuePutCallback_Args) -> *mut c::PJRT_Error {
        // SAFETY: the plugin's arguments, and the store that it was given.
        unsafe {
            let args = &*args;
            let store = &*args.user_arg.cast::<Store>();
            lock(&store.0).insert(bytes(args.key, args.key_size), bytes(args.value, args.value_size));
        }
        std::ptr::null_mut()
    }

    unsafe extern "C" fn get(args: *mut c::PJRT_KeyValueGetCallback_Args) -> *mut c::PJRT_Error {
        unsafe extern "C" fn free(value: *mut c_char) {
            // SAFETY: the string that was leaked below.
            drop(unsafe { std::ffi::CString::from_raw(value) });
        }
        // SAFETY: as above.
        unsafe {
            let args = &mut *args;
            let store = &*args.user_arg.cast::<Store>();
            let Some(value) = lock(&store.0).get(&bytes(args.key, args.key_size)).cloned() else {
                let message = "there is no such key";
                let make = (*args.callback_error).unwrap();
                return make(c::PJRT_Error_Code_NOT_FOUND, message.as_ptr().cast(), message.len());
            };
            args.value_size = value.len();
            args.value = std::ffi::CString::new(value).unwrap().into_raw();
            args.value_deleter_callback = Some(free);
        }
        std::ptr::null_mut()
    }

    fn create(store: &Store, process: i64) -> Result<*mut c::PJRT_Client> {
        let option = |name: &'static str, value| c::PJRT_NamedValue {
            struct_size: size_of::<c::PJRT_NamedValue>(),
            extension_start: std::ptr::null_mut(),
            name: name.as_ptr().cast(),
            name_size: name.len(),
            type_: c::PJRT_NamedValue_kInt64,
            __bindgen_anon_1: c::PJRT_NamedValue__bindgen_ty_1 { int64_value: value },
            value_size: 1,
        };
        let options = [option("node_id", process), option("num_nodes", 2)];
        // SAFETY: numbers, pointers and optional functions.
        let mut args: c::PJRT_Client_Create_Args = unsafe { std::mem::zeroed() };
        args.struct_size = size_of::<c::PJRT_Client_Create_Args>();
        (args.create_options, args.num_options) = (options.as_ptr(), options.len());
        let argument = std::ptr::from_ref(store).cast_mut().cast::<c_void>();
        args.kv_get_callback = Some(get);
        args.kv_put_callback = Some(put);
        (args.kv_get_user_arg, args.kv_put_user_arg) = (argument, argument);
        super::create(&mut args, &mut Call { work: None }).map(|()| args.client)
    }

    #[test]
    fn processes_find_each_other_by_the_callers_store() {
        let store = Store::default();
        // The other has not put its key, and this store does not wait.
        assert_eq!(create(&store, 0).err().unwrap().code, c::PJRT_Error_Code_NOT_FOUND);
        let handle = create(&store, 1).unwrap();
        let made = client(handle).unwrap();
        assert_eq!((made.all.len(), made.here.len(), made.process), (2, 1, 1));
        assert!(made.devices[1].is_here && !made.devices[0].is_here);
        let mut args = c::PJRT_Client_Destroy_Args {
            struct_size: size_of::<c::PJRT_Client_Destroy_Args>(),
            extension_start: std::ptr::null_mut(),
            client: handle,
        };
        destroy(&mut args, &mut Call { work: None }).unwrap();
        assert!(plugin().report().violations.is_empty());
        assert_eq!(plugin().report().exchanged_keys, 1);
    }
}
