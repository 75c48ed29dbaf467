//! The ABI of the PJRT C API: its structs, its function table, its constants, and no logic.
//!
//! The names are the C header's (`xla/pjrt/c/pjrt_c_api.h`), so that one can be read beside the other.
//! Sizes and offsets are checked against the real header, compiled, by `tests` below. What is declared
//! here is the API as of version 0.81, with fields that were appended later where they are used; a
//! struct says how much of it the caller knows through `struct_size`, and so does the plugin's table.

#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals, missing_docs)]
#![allow(dead_code)] // The ABI is declared as the header has it, whether or not all of it is called.

use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;
use std::mem::offset_of;

/// The major version of the ABI that this file describes (`PJRT_API_MAJOR`).
pub const PJRT_API_MAJOR: c_int = 0;

macro_rules! opaque {
    ($($name:ident),* $(,)?) => {$(
        #[repr(C)]
        pub struct $name {
            _private: [u8; 0],
        }
    )*};
}

opaque! {
    PJRT_Error, PJRT_Event, PJRT_Client, PJRT_Device, PJRT_Memory, PJRT_DeviceDescription,
    PJRT_TopologyDescription, PJRT_Executable, PJRT_LoadedExecutable, PJRT_Buffer,
    PJRT_AsyncHostToDeviceTransferManager, PJRT_ExecuteContext, PJRT_SerializedExecutable,
    PJRT_SerializedTopology, PJRT_Extension_Base,
}

pub type PJRT_Error_Code = u32;
pub type PJRT_Buffer_Type = u32;
pub type PJRT_NamedValue_Type = u32;
pub type PJRT_HostBufferSemantics = u32;

pub const PJRT_NamedValue_kString: PJRT_NamedValue_Type = 0;
pub const PJRT_NamedValue_kInt64: PJRT_NamedValue_Type = 1;
pub const PJRT_NamedValue_kInt64List: PJRT_NamedValue_Type = 2;
pub const PJRT_NamedValue_kFloat: PJRT_NamedValue_Type = 3;
pub const PJRT_NamedValue_kBool: PJRT_NamedValue_Type = 4;

pub const PJRT_HostBufferSemantics_kImmutableOnlyDuringCall: PJRT_HostBufferSemantics = 0;
pub const PJRT_HostBufferSemantics_kImmutableUntilTransferCompletes: PJRT_HostBufferSemantics = 1;
pub const PJRT_HostBufferSemantics_kImmutableZeroCopy: PJRT_HostBufferSemantics = 2;
pub const PJRT_HostBufferSemantics_kMutableZeroCopy: PJRT_HostBufferSemantics = 3;

pub const PJRT_Buffer_MemoryLayout_Type_Tiled: u32 = 0;
pub const PJRT_Buffer_MemoryLayout_Type_Strides: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
pub union PJRT_NamedValue_Value {
    pub string_value: *const c_char,
    pub int64_value: i64,
    pub int64_array_value: *const i64,
    pub float_value: f32,
    pub bool_value: bool,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub union PJRT_Buffer_MemoryLayout_Union {
    pub tiled: PJRT_Buffer_MemoryLayout_Tiled,
    pub strides: PJRT_Buffer_MemoryLayout_Strides,
}

/// What every extension begins with (`PJRT_Extension_Base`).
#[repr(C)]
pub struct ExtensionHead {
    pub struct_size: usize,
    pub type_: u32,
    pub next: *const ExtensionHead,
}

/// `PJRT_Extension_Type_Shardings`, of the C API from 0.91 on.
pub const PJRT_Extension_Type_Shardings: u32 = 19;

/// `PJRT_Shardings_Extension`.
#[repr(C)]
pub struct PJRT_Shardings_Extension {
    pub head: ExtensionHead,
    /// `PJRT_Shardings_PJRT_Executable_ParameterShardings`.
    pub parameter_shardings: *const c_void,
    /// `PJRT_Shardings_PJRT_Executable_OutputShardings`.
    pub output_shardings: *const c_void,
}

/// The arguments of both functions: `PJRT_Shardings_PJRT_Executable_ParameterShardings_Args` and that of the outputs, which are
/// alike. The header that the other structs are tested against is older.
#[repr(C)]
pub struct PJRT_Executable_Shardings_Args {
    pub struct_size: usize,
    pub extension_start: *mut PJRT_Extension_Base,
    pub executable: *mut PJRT_Executable,
    pub num_shardings: usize,
    pub shardings: *const *const c_char,
    pub sharding_sizes: *const usize,
}

impl PJRT_Executable_Shardings_Args {
    pub fn new() -> Self {
        PJRT_Executable_Shardings_Args {
            struct_size: size_of::<Self>(),
            extension_start: std::ptr::null_mut(),
            executable: std::ptr::null_mut(),
            num_shardings: 0,
            shardings: std::ptr::null(),
            sharding_sizes: std::ptr::null(),
        }
    }
}

pub type PJRT_Event_OnReadyCallback = unsafe extern "C" fn(error: *mut PJRT_Error, user_arg: *mut c_void);
/// Makes the errors of a caller's callbacks.
pub type PJRT_CallbackError = unsafe extern "C" fn(
    code: PJRT_Error_Code,
    message: *const c_char,
    message_size: usize,
) -> *mut PJRT_Error;
/// `PJRT_KeyValueGetCallback_ValueDeleter`, and that of the other function.
pub type PJRT_KeyValue_ValueDeleter = unsafe extern "C" fn(value: *mut c_char);
pub type PJRT_OnDeleteCallback = unsafe extern "C" fn(device_buffer_ptr: *mut c_void, user_arg: *mut c_void);

/// Size and field offsets of one struct, for the test against the C header.
#[cfg(test)]
pub struct Layout {
    pub name: &'static str,
    pub struct_size: usize,
    pub size: usize,
    pub fields: &'static [(&'static str, usize)],
}

/// Declares structs that begin with `struct_size` and `extension_start`, as all but a few do.
macro_rules! structs {
    ($($name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[repr(C)]
            #[derive(Clone, Copy)]
            pub struct $name {
                pub struct_size: usize,
                pub extension_start: *mut PJRT_Extension_Base,
                $(pub $field: $type,)*
            }

            impl $name {
                /// `PJRT_STRUCT_SIZE`: where the last field ends, without the padding after it.
                pub const STRUCT_SIZE: usize = {
                    let ends = [
                        offset_of!(Self, extension_start) + size_of::<*mut PJRT_Extension_Base>(),
                        $(offset_of!(Self, $field) + size_of::<$type>(),)*
                    ];
                    ends[ends.len() - 1]
                };

                /// The struct with its size set and all else zero: null, none, false.
                pub fn new() -> Self {
                    // SAFETY: every field is an integer, a raw pointer, a bool, an optional function
                    // pointer, or a struct or union of those; all-zero bytes are a valid value of each.
                    let mut zeroed: Self = unsafe { std::mem::zeroed() };
                    zeroed.struct_size = Self::STRUCT_SIZE;
                    zeroed
                }
            }
        )*

        #[cfg(test)]
        pub const LAYOUTS: &[Layout] = &[$(Layout {
            name: stringify!($name),
            struct_size: $name::STRUCT_SIZE,
            size: size_of::<$name>(),
            fields: &[
                ("struct_size", offset_of!($name, struct_size)),
                ("extension_start", offset_of!($name, extension_start)),
                $((stringify!($field), offset_of!($name, $field)),)*
            ],
        }),*];
    };
}

structs! {
    PJRT_Api_Version { major_version: c_int, minor_version: c_int }
    PJRT_Error_Destroy_Args { error: *mut PJRT_Error }
    PJRT_Error_Message_Args { error: *const PJRT_Error, message: *const c_char, message_size: usize }
    PJRT_Error_GetCode_Args { error: *const PJRT_Error, code: PJRT_Error_Code }
    PJRT_NamedValue {
        name: *const c_char, name_size: usize, type_: PJRT_NamedValue_Type, value: PJRT_NamedValue_Value,
        value_size: usize,
    }
    PJRT_Plugin_Initialize_Args {}
    PJRT_Plugin_Attributes_Args { attributes: *const PJRT_NamedValue, num_attributes: usize }

    PJRT_Event_Destroy_Args { event: *mut PJRT_Event }
    PJRT_Event_IsReady_Args { event: *mut PJRT_Event, is_ready: bool }
    PJRT_Event_Error_Args { event: *mut PJRT_Event }
    PJRT_Event_Await_Args { event: *mut PJRT_Event }
    PJRT_Event_OnReady_Args {
        event: *mut PJRT_Event, callback: Option<PJRT_Event_OnReadyCallback>, user_arg: *mut c_void,
    }

    PJRT_Client_Create_Args {
        create_options: *const PJRT_NamedValue, num_options: usize,
        kv_get_callback: *const c_void, kv_get_user_arg: *mut c_void,
        kv_put_callback: *const c_void, kv_put_user_arg: *mut c_void,
        client: *mut PJRT_Client,
        kv_try_get_callback: *const c_void, kv_try_get_user_arg: *mut c_void,
    }
    PJRT_KeyValueGetCallback_Args {
        key: *const c_char, key_size: usize, timeout_in_ms: c_int,
        callback_error: *const Option<PJRT_CallbackError>, user_arg: *mut c_void,
        value: *mut c_char, value_size: usize, value_deleter_callback: Option<PJRT_KeyValue_ValueDeleter>,
    }
    PJRT_KeyValueTryGetCallback_Args {
        key: *const c_char, key_size: usize,
        callback_error: *const Option<PJRT_CallbackError>, user_arg: *mut c_void,
        value: *mut c_char, value_size: usize, value_deleter_callback: Option<PJRT_KeyValue_ValueDeleter>,
    }
    PJRT_KeyValuePutCallback_Args {
        key: *const c_char, key_size: usize, value: *const c_char, value_size: usize,
        callback_error: *const Option<PJRT_CallbackError>, user_arg: *mut c_void,
    }
    PJRT_Client_Destroy_Args { client: *mut PJRT_Client }
    PJRT_Client_PlatformName_Args {
        client: *mut PJRT_Client, platform_name: *const c_char, platform_name_size: usize,
    }
    PJRT_Client_ProcessIndex_Args { client: *mut PJRT_Client, process_index: c_int }
    PJRT_Client_PlatformVersion_Args {
        client: *mut PJRT_Client, platform_version: *const c_char, platform_version_size: usize,
    }
    PJRT_Client_TopologyDescription_Args { client: *mut PJRT_Client, topology: *mut PJRT_TopologyDescription }
    PJRT_Client_Devices_Args { client: *mut PJRT_Client, devices: *const *mut PJRT_Device, num_devices: usize }
    PJRT_Client_AddressableDevices_Args {
        client: *mut PJRT_Client, addressable_devices: *const *mut PJRT_Device, num_addressable_devices: usize,
    }
    PJRT_Client_AddressableMemories_Args {
        client: *mut PJRT_Client, addressable_memories: *const *mut PJRT_Memory, num_addressable_memories: usize,
    }
    PJRT_Program {
        code: *mut c_char, code_size: usize, format: *const c_char, format_size: usize,
    }
    PJRT_Client_Compile_Args {
        client: *mut PJRT_Client, program: *const PJRT_Program,
        compile_options: *const c_char, compile_options_size: usize,
        executable: *mut PJRT_LoadedExecutable,
    }
    PJRT_Client_DefaultDeviceAssignment_Args {
        client: *mut PJRT_Client, num_replicas: c_int, num_partitions: c_int,
        default_assignment_size: usize, default_assignment: *mut c_int,
    }
    PJRT_Client_DmaMap_Args { client: *mut PJRT_Client, data: *mut c_void, size: usize }
    PJRT_Client_DmaUnmap_Args { client: *mut PJRT_Client, data: *mut c_void }
    PJRT_Buffer_MemoryLayout_Tiled {
        minor_to_major: *const i64, minor_to_major_size: usize,
        tile_dims: *const i64, tile_dim_sizes: *const usize, num_tiles: usize,
    }
    PJRT_Buffer_MemoryLayout_Strides { byte_strides: *const i64, num_byte_strides: usize }
    PJRT_Buffer_MemoryLayout { layout: PJRT_Buffer_MemoryLayout_Union, type_: u32 }
    PJRT_Client_CreateUninitializedBuffer_Args {
        client: *mut PJRT_Client, shape_dims: *const i64, shape_num_dims: usize,
        shape_element_type: PJRT_Buffer_Type, shape_layout: *mut PJRT_Buffer_MemoryLayout,
        device: *mut PJRT_Device, memory: *mut PJRT_Memory, buffer: *mut PJRT_Buffer,
    }
    PJRT_Client_BufferFromHostBuffer_Args {
        client: *mut PJRT_Client, data: *const c_void, type_: PJRT_Buffer_Type,
        dims: *const i64, num_dims: usize, byte_strides: *const i64, num_byte_strides: usize,
        host_buffer_semantics: PJRT_HostBufferSemantics, device: *mut PJRT_Device,
        memory: *mut PJRT_Memory, device_layout: *mut PJRT_Buffer_MemoryLayout,
        done_with_host_buffer: *mut PJRT_Event, buffer: *mut PJRT_Buffer,
    }
    PJRT_Client_CreateViewOfDeviceBuffer_Args {
        client: *mut PJRT_Client, device_buffer_ptr: *mut c_void, dims: *const i64, num_dims: usize,
        element_type: PJRT_Buffer_Type, layout: *mut PJRT_Buffer_MemoryLayout, device: *mut PJRT_Device,
        on_delete_callback: Option<PJRT_OnDeleteCallback>, on_delete_callback_arg: *mut c_void,
        stream: isize, buffer: *mut PJRT_Buffer, memory: *mut PJRT_Memory,
    }
    PJRT_ShapeSpec { dims: *const i64, num_dims: usize, element_type: PJRT_Buffer_Type }
    PJRT_Client_CreateBuffersForAsyncHostToDevice_Args {
        client: *mut PJRT_Client, shape_specs: *mut PJRT_ShapeSpec, num_shape_specs: usize,
        device_layouts: *mut *mut PJRT_Buffer_MemoryLayout, num_device_layouts: usize,
        memory: *mut PJRT_Memory, transfer_manager: *mut PJRT_AsyncHostToDeviceTransferManager,
    }

    PJRT_AsyncHostToDeviceTransferManager_Destroy_Args {
        transfer_manager: *mut PJRT_AsyncHostToDeviceTransferManager,
    }
    PJRT_AsyncHostToDeviceTransferManager_TransferData_Args {
        transfer_manager: *mut PJRT_AsyncHostToDeviceTransferManager, buffer_index: c_int,
        data: *const c_void, offset: i64, transfer_size: i64, is_last_transfer: bool,
        done_with_h2d_transfer: *mut PJRT_Event,
    }
    PJRT_AsyncHostToDeviceTransferManager_RetrieveBuffer_Args {
        transfer_manager: *mut PJRT_AsyncHostToDeviceTransferManager, buffer_index: c_int,
        buffer_out: *mut PJRT_Buffer,
    }
    PJRT_AsyncHostToDeviceTransferManager_BufferSize_Args {
        transfer_manager: *mut PJRT_AsyncHostToDeviceTransferManager, buffer_index: c_int, buffer_size: usize,
    }
    PJRT_AsyncHostToDeviceTransferManager_SetBufferError_Args {
        transfer_manager: *mut PJRT_AsyncHostToDeviceTransferManager, buffer_index: c_int,
        error_code: PJRT_Error_Code, error_message: *const c_char, error_message_size: usize,
    }

    PJRT_DeviceDescription_Id_Args { device_description: *mut PJRT_DeviceDescription, id: c_int }
    PJRT_DeviceDescription_ProcessIndex_Args {
        device_description: *mut PJRT_DeviceDescription, process_index: c_int,
    }
    PJRT_DeviceDescription_Attributes_Args {
        device_description: *mut PJRT_DeviceDescription, num_attributes: usize,
        attributes: *const PJRT_NamedValue,
    }
    PJRT_DeviceDescription_Kind_Args {
        device_description: *mut PJRT_DeviceDescription, device_kind: *const c_char, device_kind_size: usize,
    }
    PJRT_DeviceDescription_DebugString_Args {
        device_description: *mut PJRT_DeviceDescription, debug_string: *const c_char, debug_string_size: usize,
    }
    PJRT_DeviceDescription_ToString_Args {
        device_description: *mut PJRT_DeviceDescription, to_string: *const c_char, to_string_size: usize,
    }
    PJRT_Device_GetDescription_Args {
        device: *mut PJRT_Device, device_description: *mut PJRT_DeviceDescription,
    }
    PJRT_Device_IsAddressable_Args { device: *mut PJRT_Device, is_addressable: bool }
    PJRT_Device_LocalHardwareId_Args { device: *mut PJRT_Device, local_hardware_id: c_int }
    PJRT_Device_AddressableMemories_Args {
        device: *mut PJRT_Device, memories: *const *mut PJRT_Memory, num_memories: usize,
    }
    PJRT_Device_DefaultMemory_Args { device: *mut PJRT_Device, memory: *mut PJRT_Memory }
    PJRT_Device_MemoryStats_Args {
        device: *mut PJRT_Device,
        bytes_in_use: i64,
        peak_bytes_in_use: i64, peak_bytes_in_use_is_set: bool,
        num_allocs: i64, num_allocs_is_set: bool,
        largest_alloc_size: i64, largest_alloc_size_is_set: bool,
        bytes_limit: i64, bytes_limit_is_set: bool,
        bytes_reserved: i64, bytes_reserved_is_set: bool,
        peak_bytes_reserved: i64, peak_bytes_reserved_is_set: bool,
        bytes_reservable_limit: i64, bytes_reservable_limit_is_set: bool,
        largest_free_block_bytes: i64, largest_free_block_bytes_is_set: bool,
        pool_bytes: i64, pool_bytes_is_set: bool,
        peak_pool_bytes: i64, peak_pool_bytes_is_set: bool,
    }
    PJRT_Memory_Id_Args { memory: *mut PJRT_Memory, id: c_int }
    PJRT_Memory_Kind_Args { memory: *mut PJRT_Memory, kind: *const c_char, kind_size: usize }
    PJRT_Memory_DebugString_Args {
        memory: *mut PJRT_Memory, debug_string: *const c_char, debug_string_size: usize,
    }
    PJRT_Memory_AddressableByDevices_Args {
        memory: *mut PJRT_Memory, devices: *const *mut PJRT_Device, num_devices: usize,
    }

    PJRT_Executable_Destroy_Args { executable: *mut PJRT_Executable }
    PJRT_LoadedExecutable_Destroy_Args { executable: *mut PJRT_LoadedExecutable }
    PJRT_LoadedExecutable_GetExecutable_Args {
        loaded_executable: *mut PJRT_LoadedExecutable, executable: *mut PJRT_Executable,
    }
    PJRT_Executable_Name_Args {
        executable: *mut PJRT_Executable, executable_name: *const c_char, executable_name_size: usize,
    }
    PJRT_Executable_NumReplicas_Args { executable: *mut PJRT_Executable, num_replicas: usize }
    PJRT_Executable_NumPartitions_Args { executable: *mut PJRT_Executable, num_partitions: usize }
    PJRT_LoadedExecutable_AddressableDevices_Args {
        executable: *mut PJRT_LoadedExecutable, addressable_devices: *const *mut PJRT_Device,
        num_addressable_devices: usize,
    }
    PJRT_Executable_OptimizedProgram_Args { executable: *mut PJRT_Executable, program: *mut PJRT_Program }
    PJRT_LoadedExecutable_Delete_Args { executable: *mut PJRT_LoadedExecutable }
    PJRT_LoadedExecutable_IsDeleted_Args { executable: *mut PJRT_LoadedExecutable, is_deleted: bool }
    PJRT_ExecuteOptions {
        send_callbacks: *mut *mut c_void, recv_callbacks: *mut *mut c_void,
        num_send_ops: usize, num_recv_ops: usize, launch_id: c_int,
        non_donatable_input_indices: *const i64, num_non_donatable_input_indices: usize,
        context: *mut PJRT_ExecuteContext, call_location: *const c_char,
        num_tasks: usize, task_ids: *mut c_int, incarnation_ids: *mut i64,
    }
    PJRT_LoadedExecutable_Execute_Args {
        executable: *mut PJRT_LoadedExecutable, options: *mut PJRT_ExecuteOptions,
        argument_lists: *const *const *mut PJRT_Buffer, num_devices: usize, num_args: usize,
        output_lists: *const *mut *mut PJRT_Buffer, device_complete_events: *mut *mut PJRT_Event,
        execute_device: *mut PJRT_Device,
    }
    PJRT_Executable_NumOutputs_Args { executable: *mut PJRT_Executable, num_outputs: usize }
    PJRT_Executable_SizeOfGeneratedCodeInBytes_Args { executable: *mut PJRT_Executable, size_in_bytes: i64 }
    PJRT_Executable_Fingerprint_Args {
        executable: *mut PJRT_Executable, executable_fingerprint: *const c_char,
        executable_fingerprint_size: usize,
    }
    PJRT_Executable_GetCostAnalysis_Args {
        executable: *mut PJRT_Executable, num_properties: usize, properties: *const PJRT_NamedValue,
    }
    PJRT_Executable_GetCompiledMemoryStats_Args {
        executable: *mut PJRT_Executable,
        generated_code_size_in_bytes: i64, argument_size_in_bytes: i64, output_size_in_bytes: i64,
        alias_size_in_bytes: i64, temp_size_in_bytes: i64,
        host_generated_code_size_in_bytes: i64, host_argument_size_in_bytes: i64,
        host_output_size_in_bytes: i64, host_alias_size_in_bytes: i64, host_temp_size_in_bytes: i64,
        peak_memory_in_bytes: i64,
    }
    PJRT_Executable_OutputElementTypes_Args {
        executable: *mut PJRT_Executable, output_types: *mut PJRT_Buffer_Type, num_output_types: usize,
    }
    PJRT_Executable_OutputDimensions_Args {
        executable: *mut PJRT_Executable, num_outputs: usize, dims: *const i64, dim_sizes: *const usize,
    }
    PJRT_Executable_OutputMemoryKinds_Args {
        executable: *mut PJRT_Executable, num_outputs: usize,
        memory_kinds: *const *const c_char, memory_kind_sizes: *const usize,
    }
    PJRT_Executable_Serialize_Args {
        executable: *const PJRT_Executable, serialized_bytes: *const c_char, serialized_bytes_size: usize,
        serialized_executable: *mut PJRT_SerializedExecutable,
        serialized_executable_deleter: Option<unsafe extern "C" fn(*mut PJRT_SerializedExecutable)>,
    }
    PJRT_Executable_DeserializeAndLoad_Args {
        client: *mut PJRT_Client, serialized_executable: *const c_char, serialized_executable_size: usize,
        loaded_executable: *mut PJRT_LoadedExecutable,
        overridden_serialized_compile_options: *const c_char,
        overridden_serialized_compile_options_size: usize,
    }

    PJRT_Buffer_Destroy_Args { buffer: *mut PJRT_Buffer }
    PJRT_Buffer_ElementType_Args { buffer: *mut PJRT_Buffer, type_: PJRT_Buffer_Type }
    PJRT_Buffer_Dimensions_Args { buffer: *mut PJRT_Buffer, dims: *const i64, num_dims: usize }
    PJRT_Buffer_GetMemoryLayout_Args { buffer: *mut PJRT_Buffer, layout: PJRT_Buffer_MemoryLayout }
    PJRT_Buffer_ToHostBuffer_Args {
        src: *mut PJRT_Buffer, host_layout: *mut PJRT_Buffer_MemoryLayout, dst: *mut c_void, dst_size: usize,
        event: *mut PJRT_Event,
    }
    PJRT_Buffer_OnDeviceSizeInBytes_Args { buffer: *mut PJRT_Buffer, on_device_size_in_bytes: usize }
    PJRT_Buffer_Delete_Args { buffer: *mut PJRT_Buffer }
    PJRT_Buffer_IsDeleted_Args { buffer: *mut PJRT_Buffer, is_deleted: bool }
    PJRT_Buffer_CopyRawToHost_Args {
        buffer: *mut PJRT_Buffer, dst: *mut c_void, offset: i64, transfer_size: i64, event: *mut PJRT_Event,
    }
    PJRT_Buffer_CopyToDevice_Args {
        buffer: *mut PJRT_Buffer, dst_device: *mut PJRT_Device, dst_buffer: *mut PJRT_Buffer,
    }
    PJRT_Buffer_CopyToMemory_Args {
        buffer: *mut PJRT_Buffer, dst_memory: *mut PJRT_Memory, dst_buffer: *mut PJRT_Buffer,
    }
    PJRT_Buffer_IsOnCpu_Args { buffer: *mut PJRT_Buffer, is_on_cpu: bool }
    PJRT_Buffer_Device_Args { buffer: *mut PJRT_Buffer, device: *mut PJRT_Device }
    PJRT_Buffer_Memory_Args { buffer: *mut PJRT_Buffer, memory: *mut PJRT_Memory }
    PJRT_Buffer_ReadyEvent_Args { buffer: *mut PJRT_Buffer, event: *mut PJRT_Event }
    PJRT_Buffer_IncreaseExternalReferenceCount_Args { buffer: *mut PJRT_Buffer }
    PJRT_Buffer_DecreaseExternalReferenceCount_Args { buffer: *mut PJRT_Buffer }
    PJRT_Buffer_OpaqueDeviceMemoryDataPointer_Args { buffer: *mut PJRT_Buffer, device_memory_ptr: *mut c_void }

    PJRT_TopologyDescription_Create_Args {
        topology_name: *const c_char, topology_name_size: usize,
        create_options: *const PJRT_NamedValue, num_options: usize, topology: *mut PJRT_TopologyDescription,
    }
    PJRT_TopologyDescription_Destroy_Args { topology: *mut PJRT_TopologyDescription }
    PJRT_TopologyDescription_PlatformVersion_Args {
        topology: *mut PJRT_TopologyDescription, platform_version: *const c_char, platform_version_size: usize,
    }
    PJRT_TopologyDescription_GetDeviceDescriptions_Args {
        topology: *const PJRT_TopologyDescription, descriptions: *const *mut PJRT_DeviceDescription,
        num_descriptions: usize,
    }
    PJRT_TopologyDescription_Deserialize_Args {
        serialized_topology: *const c_char, serialized_topology_size: usize,
        topology: *mut PJRT_TopologyDescription,
    }
    PJRT_Compile_Args {
        topology: *const PJRT_TopologyDescription, program: *const PJRT_Program,
        compile_options: *const c_char, compile_options_size: usize, client: *mut PJRT_Client,
        executable: *mut PJRT_Executable,
    }
    PJRT_TopologyDescription_PlatformName_Args {
        topology: *const PJRT_TopologyDescription, platform_name: *const c_char, platform_name_size: usize,
    }
    PJRT_TopologyDescription_Attributes_Args {
        topology: *mut PJRT_TopologyDescription, attributes: *const PJRT_NamedValue, num_attributes: usize,
    }
    PJRT_TopologyDescription_Serialize_Args {
        topology: *mut PJRT_TopologyDescription, serialized_bytes: *const c_char, serialized_bytes_size: usize,
        serialized_topology: *mut PJRT_SerializedTopology,
        serialized_topology_deleter: Option<unsafe extern "C" fn(*mut PJRT_SerializedTopology)>,
    }
}

/// A function of the table: its name, its place, and the arguments that it takes.
pub struct Function<Args> {
    pub name: &'static str,
    pub offset: usize,
    pub args: PhantomData<fn(*mut Args)>,
}

/// Declares the table in the header's order. A function with its arguments after the arrow is one that is
/// called through [`Function`]; the others only keep their place.
macro_rules! table {
    ($($name:ident $(=> $args:ident)?),* $(,)?) => {
        /// The function table that `GetPjrtApi` returns. A plugin's table can be shorter (it is older)
        /// or longer: a field may be read only where it ends within the plugin's `struct_size`.
        #[repr(C)]
        pub struct PJRT_Api {
            pub struct_size: usize,
            pub extension_start: *mut PJRT_Extension_Base,
            pub pjrt_api_version: PJRT_Api_Version,
            $(pub $name: *const c_void,)*
        }

        $($(
            pub const $name: Function<$args> = Function {
                name: stringify!($name),
                offset: offset_of!(PJRT_Api, $name),
                args: PhantomData,
            };
        )?)*

        #[cfg(test)]
        pub const API_LAYOUT: Layout = Layout {
            name: "PJRT_Api",
            struct_size: size_of::<PJRT_Api>(),
            size: size_of::<PJRT_Api>(),
            fields: &[
                ("pjrt_api_version", offset_of!(PJRT_Api, pjrt_api_version)),
                $((stringify!($name), offset_of!(PJRT_Api, $name)),)*
            ],
        };
    };
}

table! {
    PJRT_Error_Destroy => PJRT_Error_Destroy_Args,
    PJRT_Error_Message => PJRT_Error_Message_Args,
    PJRT_Error_GetCode => PJRT_Error_GetCode_Args,
    PJRT_Plugin_Initialize => PJRT_Plugin_Initialize_Args,
    PJRT_Plugin_Attributes => PJRT_Plugin_Attributes_Args,
    PJRT_Event_Destroy => PJRT_Event_Destroy_Args,
    PJRT_Event_IsReady => PJRT_Event_IsReady_Args,
    PJRT_Event_Error => PJRT_Event_Error_Args,
    PJRT_Event_Await => PJRT_Event_Await_Args,
    PJRT_Event_OnReady => PJRT_Event_OnReady_Args,
    PJRT_Client_Create => PJRT_Client_Create_Args,
    PJRT_Client_Destroy => PJRT_Client_Destroy_Args,
    PJRT_Client_PlatformName => PJRT_Client_PlatformName_Args,
    PJRT_Client_ProcessIndex => PJRT_Client_ProcessIndex_Args,
    PJRT_Client_PlatformVersion => PJRT_Client_PlatformVersion_Args,
    PJRT_Client_Devices => PJRT_Client_Devices_Args,
    PJRT_Client_AddressableDevices => PJRT_Client_AddressableDevices_Args,
    PJRT_Client_LookupDevice,
    PJRT_Client_LookupAddressableDevice,
    PJRT_Client_AddressableMemories => PJRT_Client_AddressableMemories_Args,
    PJRT_Client_Compile => PJRT_Client_Compile_Args,
    PJRT_Client_DefaultDeviceAssignment => PJRT_Client_DefaultDeviceAssignment_Args,
    PJRT_Client_BufferFromHostBuffer => PJRT_Client_BufferFromHostBuffer_Args,
    PJRT_DeviceDescription_Id => PJRT_DeviceDescription_Id_Args,
    PJRT_DeviceDescription_ProcessIndex => PJRT_DeviceDescription_ProcessIndex_Args,
    PJRT_DeviceDescription_Attributes => PJRT_DeviceDescription_Attributes_Args,
    PJRT_DeviceDescription_Kind => PJRT_DeviceDescription_Kind_Args,
    PJRT_DeviceDescription_DebugString => PJRT_DeviceDescription_DebugString_Args,
    PJRT_DeviceDescription_ToString => PJRT_DeviceDescription_ToString_Args,
    PJRT_Device_GetDescription => PJRT_Device_GetDescription_Args,
    PJRT_Device_IsAddressable => PJRT_Device_IsAddressable_Args,
    PJRT_Device_LocalHardwareId => PJRT_Device_LocalHardwareId_Args,
    PJRT_Device_AddressableMemories => PJRT_Device_AddressableMemories_Args,
    PJRT_Device_DefaultMemory => PJRT_Device_DefaultMemory_Args,
    PJRT_Device_MemoryStats => PJRT_Device_MemoryStats_Args,
    PJRT_Memory_Id => PJRT_Memory_Id_Args,
    PJRT_Memory_Kind => PJRT_Memory_Kind_Args,
    PJRT_Memory_DebugString => PJRT_Memory_DebugString_Args,
    PJRT_Memory_ToString,
    PJRT_Memory_AddressableByDevices => PJRT_Memory_AddressableByDevices_Args,
    PJRT_Executable_Destroy => PJRT_Executable_Destroy_Args,
    PJRT_Executable_Name => PJRT_Executable_Name_Args,
    PJRT_Executable_NumReplicas => PJRT_Executable_NumReplicas_Args,
    PJRT_Executable_NumPartitions => PJRT_Executable_NumPartitions_Args,
    PJRT_Executable_NumOutputs => PJRT_Executable_NumOutputs_Args,
    PJRT_Executable_SizeOfGeneratedCodeInBytes => PJRT_Executable_SizeOfGeneratedCodeInBytes_Args,
    PJRT_Executable_GetCostAnalysis => PJRT_Executable_GetCostAnalysis_Args,
    PJRT_Executable_OutputMemoryKinds => PJRT_Executable_OutputMemoryKinds_Args,
    PJRT_Executable_OptimizedProgram => PJRT_Executable_OptimizedProgram_Args,
    PJRT_Executable_Serialize => PJRT_Executable_Serialize_Args,
    PJRT_LoadedExecutable_Destroy => PJRT_LoadedExecutable_Destroy_Args,
    PJRT_LoadedExecutable_GetExecutable => PJRT_LoadedExecutable_GetExecutable_Args,
    PJRT_LoadedExecutable_AddressableDevices => PJRT_LoadedExecutable_AddressableDevices_Args,
    PJRT_LoadedExecutable_Delete => PJRT_LoadedExecutable_Delete_Args,
    PJRT_LoadedExecutable_IsDeleted => PJRT_LoadedExecutable_IsDeleted_Args,
    PJRT_LoadedExecutable_Execute => PJRT_LoadedExecutable_Execute_Args,
    PJRT_Executable_DeserializeAndLoad => PJRT_Executable_DeserializeAndLoad_Args,
    PJRT_LoadedExecutable_Fingerprint,
    PJRT_Buffer_Destroy => PJRT_Buffer_Destroy_Args,
    PJRT_Buffer_ElementType => PJRT_Buffer_ElementType_Args,
    PJRT_Buffer_Dimensions => PJRT_Buffer_Dimensions_Args,
    PJRT_Buffer_UnpaddedDimensions,
    PJRT_Buffer_DynamicDimensionIndices,
    PJRT_Buffer_GetMemoryLayout => PJRT_Buffer_GetMemoryLayout_Args,
    PJRT_Buffer_OnDeviceSizeInBytes => PJRT_Buffer_OnDeviceSizeInBytes_Args,
    PJRT_Buffer_Device => PJRT_Buffer_Device_Args,
    PJRT_Buffer_Memory => PJRT_Buffer_Memory_Args,
    PJRT_Buffer_Delete => PJRT_Buffer_Delete_Args,
    PJRT_Buffer_IsDeleted => PJRT_Buffer_IsDeleted_Args,
    PJRT_Buffer_CopyToDevice => PJRT_Buffer_CopyToDevice_Args,
    PJRT_Buffer_ToHostBuffer => PJRT_Buffer_ToHostBuffer_Args,
    PJRT_Buffer_IsOnCpu => PJRT_Buffer_IsOnCpu_Args,
    PJRT_Buffer_ReadyEvent => PJRT_Buffer_ReadyEvent_Args,
    PJRT_Buffer_UnsafePointer,
    PJRT_Buffer_IncreaseExternalReferenceCount => PJRT_Buffer_IncreaseExternalReferenceCount_Args,
    PJRT_Buffer_DecreaseExternalReferenceCount => PJRT_Buffer_DecreaseExternalReferenceCount_Args,
    PJRT_Buffer_OpaqueDeviceMemoryDataPointer => PJRT_Buffer_OpaqueDeviceMemoryDataPointer_Args,
    PJRT_CopyToDeviceStream_Destroy,
    PJRT_CopyToDeviceStream_AddChunk,
    PJRT_CopyToDeviceStream_TotalBytes,
    PJRT_CopyToDeviceStream_GranuleSize,
    PJRT_CopyToDeviceStream_CurrentBytes,
    PJRT_TopologyDescription_Create => PJRT_TopologyDescription_Create_Args,
    PJRT_TopologyDescription_Destroy => PJRT_TopologyDescription_Destroy_Args,
    PJRT_TopologyDescription_PlatformName => PJRT_TopologyDescription_PlatformName_Args,
    PJRT_TopologyDescription_PlatformVersion => PJRT_TopologyDescription_PlatformVersion_Args,
    PJRT_TopologyDescription_GetDeviceDescriptions => PJRT_TopologyDescription_GetDeviceDescriptions_Args,
    PJRT_TopologyDescription_Serialize => PJRT_TopologyDescription_Serialize_Args,
    PJRT_TopologyDescription_Attributes => PJRT_TopologyDescription_Attributes_Args,
    PJRT_Compile => PJRT_Compile_Args,
    PJRT_Executable_OutputElementTypes => PJRT_Executable_OutputElementTypes_Args,
    PJRT_Executable_OutputDimensions => PJRT_Executable_OutputDimensions_Args,
    PJRT_Buffer_CopyToMemory => PJRT_Buffer_CopyToMemory_Args,
    PJRT_Client_CreateViewOfDeviceBuffer => PJRT_Client_CreateViewOfDeviceBuffer_Args,
    PJRT_Executable_Fingerprint => PJRT_Executable_Fingerprint_Args,
    PJRT_Client_TopologyDescription => PJRT_Client_TopologyDescription_Args,
    PJRT_Executable_GetCompiledMemoryStats => PJRT_Executable_GetCompiledMemoryStats_Args,
    PJRT_Memory_Kind_Id,
    PJRT_ExecuteContext_Create,
    PJRT_ExecuteContext_Destroy,
    PJRT_Buffer_CopyRawToHost => PJRT_Buffer_CopyRawToHost_Args,
    PJRT_AsyncHostToDeviceTransferManager_Destroy => PJRT_AsyncHostToDeviceTransferManager_Destroy_Args,
    PJRT_AsyncHostToDeviceTransferManager_TransferData =>
        PJRT_AsyncHostToDeviceTransferManager_TransferData_Args,
    PJRT_Client_CreateBuffersForAsyncHostToDevice => PJRT_Client_CreateBuffersForAsyncHostToDevice_Args,
    PJRT_AsyncHostToDeviceTransferManager_RetrieveBuffer =>
        PJRT_AsyncHostToDeviceTransferManager_RetrieveBuffer_Args,
    PJRT_AsyncHostToDeviceTransferManager_Device,
    PJRT_AsyncHostToDeviceTransferManager_BufferCount,
    PJRT_AsyncHostToDeviceTransferManager_BufferSize => PJRT_AsyncHostToDeviceTransferManager_BufferSize_Args,
    PJRT_AsyncHostToDeviceTransferManager_SetBufferError =>
        PJRT_AsyncHostToDeviceTransferManager_SetBufferError_Args,
    PJRT_AsyncHostToDeviceTransferManager_AddMetadata,
    PJRT_Client_DmaMap => PJRT_Client_DmaMap_Args,
    PJRT_Client_DmaUnmap => PJRT_Client_DmaUnmap_Args,
    PJRT_Client_CreateUninitializedBuffer => PJRT_Client_CreateUninitializedBuffer_Args,
    PJRT_Client_UpdateGlobalProcessInfo,
    PJRT_TopologyDescription_Deserialize => PJRT_TopologyDescription_Deserialize_Args,
    PJRT_Client_CreateAliasBuffer,
    PJRT_Client_FulfillAliasBuffer,
    PJRT_LoadedExecutable_GetDeviceAssignment,
}

#[cfg(test)]
#[path = "ffi_tests.rs"]
mod tests;
