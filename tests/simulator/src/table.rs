//! The function table.

use std::mem::offset_of;
use std::sync::OnceLock;

use crate::c_api as c;
use crate::calls::{Counter, answer, plugin};
use crate::config::Config;
use crate::{buffer, client, device, dma, event, executable, failure, manager};

/// A table that threads share.
struct Table {
    api: c::PJRT_Api,
    /// What the extension points to; of a kind that nobody knows, so that callers must skip it.
    _extension: Box<c::PJRT_Extension_Base>,
}

// SAFETY: it is not changed once it is made.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

/// Kinds of extensions have small numbers.
const NO_EXTENSION: c::PJRT_Extension_Type = 9_999;

/// What a plugin is asked for first.
#[unsafe(no_mangle)]
pub extern "C" fn GetPjrtApi() -> *const c::PJRT_Api {
    static TABLE: OnceLock<Table> = OnceLock::new();
    &TABLE.get_or_init(|| Table::new(&plugin().config())).api
}

macro_rules! fill {
    ($api:ident, $config:ident: $($function:ident($args:ident) => $run:path,)*) => {
        $(
            if !$config.missing.iter().any(|name| name == stringify!($function)) {
                static COUNTER: Counter = Counter::new(stringify!($function));
                unsafe extern "C" fn entry(args: *mut c::$args) -> *mut c::PJRT_Error {
                    // SAFETY: the caller of the C API passes such a struct.
                    unsafe { answer(&COUNTER, args, $run) }
                }
                plugin().register(&COUNTER);
                $api.$function = Some(entry);
            }
        )*
        if let Some(last) = &$config.last_function {
            $(
                if last == stringify!($function) {
                    $api.struct_size = offset_of!(c::PJRT_Api, $function) + size_of::<c::$function>();
                }
            )*
        }
    };
}

impl Table {
    fn new(config: &Config) -> Table {
        // SAFETY: every field is a number, a pointer, or an optional function.
        let mut api: c::PJRT_Api = unsafe { std::mem::zeroed() };
        let mut extension = Box::new(c::PJRT_Extension_Base {
            struct_size: size_of::<c::PJRT_Extension_Base>(),
            type_: NO_EXTENSION,
            next: std::ptr::null_mut(),
        });
        api.struct_size = size_of::<c::PJRT_Api>();
        api.extension_start = &raw mut *extension;
        api.pjrt_api_version = c::PJRT_Api_Version {
            struct_size: size_of::<c::PJRT_Api_Version>(),
            extension_start: std::ptr::null_mut(),
            major_version: c::PJRT_API_MAJOR as i32,
            minor_version: config.api_minor,
        };
        api.PJRT_Error_Destroy = Some(failure::destroy);
        api.PJRT_Error_Message = Some(failure::message);
        fill! { api, config:
            PJRT_Error_GetCode(PJRT_Error_GetCode_Args) => failure::get_code,
            PJRT_Plugin_Initialize(PJRT_Plugin_Initialize_Args) => client::initialize,
            PJRT_Plugin_Attributes(PJRT_Plugin_Attributes_Args) => client::plugin_attributes,
            PJRT_Event_Destroy(PJRT_Event_Destroy_Args) => event::destroy,
            PJRT_Event_IsReady(PJRT_Event_IsReady_Args) => event::is_ready,
            PJRT_Event_Error(PJRT_Event_Error_Args) => event::error,
            PJRT_Event_Await(PJRT_Event_Await_Args) => event::wait,
            PJRT_Event_OnReady(PJRT_Event_OnReady_Args) => event::on_ready,
            PJRT_Client_Create(PJRT_Client_Create_Args) => client::create,
            PJRT_Client_Destroy(PJRT_Client_Destroy_Args) => client::destroy,
            PJRT_Client_PlatformName(PJRT_Client_PlatformName_Args) => client::platform_name,
            PJRT_Client_ProcessIndex(PJRT_Client_ProcessIndex_Args) => client::process_index,
            PJRT_Client_PlatformVersion(PJRT_Client_PlatformVersion_Args) => client::platform_version,
            PJRT_Client_Devices(PJRT_Client_Devices_Args) => client::devices,
            PJRT_Client_AddressableDevices(PJRT_Client_AddressableDevices_Args) => client::addressable_devices,
            PJRT_Client_LookupDevice(PJRT_Client_LookupDevice_Args) => client::lookup,
            PJRT_Client_LookupAddressableDevice(PJRT_Client_LookupAddressableDevice_Args)
                => client::lookup_addressable,
            PJRT_Client_AddressableMemories(PJRT_Client_AddressableMemories_Args) => client::addressable_memories,
            PJRT_Client_Compile(PJRT_Client_Compile_Args) => executable::compile,
            PJRT_Client_DefaultDeviceAssignment(PJRT_Client_DefaultDeviceAssignment_Args)
                => client::default_assignment,
            PJRT_Client_BufferFromHostBuffer(PJRT_Client_BufferFromHostBuffer_Args) => buffer::from_host,
            PJRT_DeviceDescription_Id(PJRT_DeviceDescription_Id_Args) => device::id,
            PJRT_DeviceDescription_ProcessIndex(PJRT_DeviceDescription_ProcessIndex_Args) => device::process_index,
            PJRT_DeviceDescription_Attributes(PJRT_DeviceDescription_Attributes_Args) => device::attributes,
            PJRT_DeviceDescription_Kind(PJRT_DeviceDescription_Kind_Args) => device::kind,
            PJRT_DeviceDescription_DebugString(PJRT_DeviceDescription_DebugString_Args) => device::debug_string,
            PJRT_DeviceDescription_ToString(PJRT_DeviceDescription_ToString_Args) => device::to_string,
            PJRT_Device_GetDescription(PJRT_Device_GetDescription_Args) => device::get_description,
            PJRT_Device_IsAddressable(PJRT_Device_IsAddressable_Args) => device::is_addressable,
            PJRT_Device_LocalHardwareId(PJRT_Device_LocalHardwareId_Args) => device::local_hardware_id,
            PJRT_Device_AddressableMemories(PJRT_Device_AddressableMemories_Args) => device::addressable_memories,
            PJRT_Device_DefaultMemory(PJRT_Device_DefaultMemory_Args) => device::default_memory,
            PJRT_Device_MemoryStats(PJRT_Device_MemoryStats_Args) => device::memory_stats,
            PJRT_Memory_Id(PJRT_Memory_Id_Args) => device::memory_id,
            PJRT_Memory_Kind(PJRT_Memory_Kind_Args) => device::memory_kind,
            PJRT_Memory_DebugString(PJRT_Memory_DebugString_Args) => device::memory_debug_string,
            PJRT_Memory_ToString(PJRT_Memory_ToString_Args) => device::memory_to_string,
            PJRT_Memory_AddressableByDevices(PJRT_Memory_AddressableByDevices_Args) => device::memory_devices,
            PJRT_Executable_Destroy(PJRT_Executable_Destroy_Args) => executable::destroy,
            PJRT_Executable_Name(PJRT_Executable_Name_Args) => executable::name,
            PJRT_Executable_NumReplicas(PJRT_Executable_NumReplicas_Args) => executable::replicas,
            PJRT_Executable_NumPartitions(PJRT_Executable_NumPartitions_Args) => executable::partitions,
            PJRT_Executable_NumOutputs(PJRT_Executable_NumOutputs_Args) => executable::output_count,
            PJRT_Executable_SizeOfGeneratedCodeInBytes(PJRT_Executable_SizeOfGeneratedCodeInBytes_Args)
                => executable::code_size,
            PJRT_Executable_GetCostAnalysis(PJRT_Executable_GetCostAnalysis_Args) => executable::cost,
            PJRT_Executable_OutputMemoryKinds(PJRT_Executable_OutputMemoryKinds_Args)
                => executable::output_memory_kinds,
            PJRT_Executable_OptimizedProgram(PJRT_Executable_OptimizedProgram_Args)
                => executable::optimized_program,
            PJRT_Executable_Serialize(PJRT_Executable_Serialize_Args) => executable::serialize,
            PJRT_LoadedExecutable_Destroy(PJRT_LoadedExecutable_Destroy_Args) => executable::loaded_destroy,
            PJRT_LoadedExecutable_GetExecutable(PJRT_LoadedExecutable_GetExecutable_Args)
                => executable::get_executable,
            PJRT_LoadedExecutable_AddressableDevices(PJRT_LoadedExecutable_AddressableDevices_Args)
                => executable::loaded_devices,
            PJRT_LoadedExecutable_Delete(PJRT_LoadedExecutable_Delete_Args) => executable::loaded_delete,
            PJRT_LoadedExecutable_IsDeleted(PJRT_LoadedExecutable_IsDeleted_Args)
                => executable::loaded_is_deleted,
            PJRT_LoadedExecutable_Execute(PJRT_LoadedExecutable_Execute_Args) => executable::execute,
            PJRT_Executable_DeserializeAndLoad(PJRT_Executable_DeserializeAndLoad_Args) => executable::deserialize,
            PJRT_LoadedExecutable_Fingerprint(PJRT_LoadedExecutable_Fingerprint_Args)
                => executable::loaded_fingerprint,
            PJRT_Buffer_Destroy(PJRT_Buffer_Destroy_Args) => buffer::destroy,
            PJRT_Buffer_ElementType(PJRT_Buffer_ElementType_Args) => buffer::element_type,
            PJRT_Buffer_Dimensions(PJRT_Buffer_Dimensions_Args) => buffer::dimensions,
            PJRT_Buffer_GetMemoryLayout(PJRT_Buffer_GetMemoryLayout_Args) => buffer::memory_layout,
            PJRT_Buffer_OnDeviceSizeInBytes(PJRT_Buffer_OnDeviceSizeInBytes_Args) => buffer::device_size,
            PJRT_Buffer_Device(PJRT_Buffer_Device_Args) => buffer::device,
            PJRT_Buffer_Memory(PJRT_Buffer_Memory_Args) => buffer::memory,
            PJRT_Buffer_Delete(PJRT_Buffer_Delete_Args) => buffer::delete,
            PJRT_Buffer_IsDeleted(PJRT_Buffer_IsDeleted_Args) => buffer::is_deleted,
            PJRT_Buffer_CopyToDevice(PJRT_Buffer_CopyToDevice_Args) => buffer::copy_to_device,
            PJRT_Buffer_ToHostBuffer(PJRT_Buffer_ToHostBuffer_Args) => buffer::to_host,
            PJRT_Buffer_IsOnCpu(PJRT_Buffer_IsOnCpu_Args) => buffer::is_on_cpu,
            PJRT_Buffer_ReadyEvent(PJRT_Buffer_ReadyEvent_Args) => buffer::ready_event,
            PJRT_Buffer_IncreaseExternalReferenceCount(PJRT_Buffer_IncreaseExternalReferenceCount_Args)
                => buffer::increase_references,
            PJRT_Buffer_DecreaseExternalReferenceCount(PJRT_Buffer_DecreaseExternalReferenceCount_Args)
                => buffer::decrease_references,
            PJRT_Buffer_OpaqueDeviceMemoryDataPointer(PJRT_Buffer_OpaqueDeviceMemoryDataPointer_Args)
                => buffer::opaque_pointer,
            PJRT_Executable_OutputElementTypes(PJRT_Executable_OutputElementTypes_Args)
                => executable::output_types,
            PJRT_Executable_OutputDimensions(PJRT_Executable_OutputDimensions_Args) => executable::output_dims,
            PJRT_Buffer_CopyToMemory(PJRT_Buffer_CopyToMemory_Args) => buffer::copy_to_memory,
            PJRT_Client_CreateViewOfDeviceBuffer(PJRT_Client_CreateViewOfDeviceBuffer_Args) => buffer::view,
            PJRT_Executable_Fingerprint(PJRT_Executable_Fingerprint_Args) => executable::fingerprint,
            PJRT_Executable_GetCompiledMemoryStats(PJRT_Executable_GetCompiledMemoryStats_Args)
                => executable::memory_stats,
            PJRT_Buffer_CopyRawToHost(PJRT_Buffer_CopyRawToHost_Args) => buffer::raw_to_host,
            PJRT_AsyncHostToDeviceTransferManager_Destroy(PJRT_AsyncHostToDeviceTransferManager_Destroy_Args)
                => manager::destroy,
            PJRT_AsyncHostToDeviceTransferManager_TransferData(
                PJRT_AsyncHostToDeviceTransferManager_TransferData_Args
            ) => manager::transfer,
            PJRT_Client_CreateBuffersForAsyncHostToDevice(PJRT_Client_CreateBuffersForAsyncHostToDevice_Args)
                => manager::create,
            PJRT_AsyncHostToDeviceTransferManager_RetrieveBuffer(
                PJRT_AsyncHostToDeviceTransferManager_RetrieveBuffer_Args
            ) => manager::retrieve,
            PJRT_AsyncHostToDeviceTransferManager_Device(PJRT_AsyncHostToDeviceTransferManager_Device_Args)
                => manager::device,
            PJRT_AsyncHostToDeviceTransferManager_BufferCount(
                PJRT_AsyncHostToDeviceTransferManager_BufferCount_Args
            ) => manager::count,
            PJRT_AsyncHostToDeviceTransferManager_BufferSize(
                PJRT_AsyncHostToDeviceTransferManager_BufferSize_Args
            ) => manager::size,
            PJRT_AsyncHostToDeviceTransferManager_SetBufferError(
                PJRT_AsyncHostToDeviceTransferManager_SetBufferError_Args
            ) => manager::set_error,
            PJRT_Client_DmaMap(PJRT_Client_DmaMap_Args) => dma::map,
            PJRT_Client_DmaUnmap(PJRT_Client_DmaUnmap_Args) => dma::unmap,
            PJRT_Client_CreateUninitializedBuffer(PJRT_Client_CreateUninitializedBuffer_Args)
                => buffer::uninitialized,
        }
        Table { api, _extension: extension }
    }
}
