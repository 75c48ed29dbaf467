//! Topologies: which devices there are and how they hang together, whether they are here or not.

use std::fmt;
use std::sync::Arc;

use super::api::{Api, slice, string};
use super::client::Client;
use super::compile_options::CompileOptions;
use super::device::DeviceDescription;
use super::executable::{Executable, ProgramFormat};
use super::ffi;
use super::named_value::NamedValue;
use super::plugin::Plugin;
use crate::error::{Error, Result};

/// Devices that a program can be compiled for, and how they hang together. They need not be here. Cheap to clone.
#[derive(Clone)]
pub struct Topology {
    inner: Arc<TopologyInner>,
}

struct TopologyInner {
    raw: *mut ffi::PJRT_TopologyDescription,
    plugin: Plugin,
    platform_name: String,
    platform_version: String,
    devices: Vec<DeviceDescription>,
    attributes: Vec<(String, NamedValue)>,
    /// The client that owns it, if one does.
    client: Option<Client>,
}

// SAFETY: a topology is constant once it was made, and the C API allows it to be used from any thread.
unsafe impl Send for TopologyInner {}
// SAFETY: as above.
unsafe impl Sync for TopologyInner {}

impl Plugin {
    /// The topology of this name, such as `v5e:2x2` of the TPU plugin, with options that the platform understands.
    /// Needs no device. [`crate::Target`] knows names and options for devices by what they are called.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or [`Error::Pjrt`] from plugins that cannot, and for names that the plugin does not know.
    pub fn topology(&self, name: &str, options: &[(String, NamedValue)]) -> Result<Topology> {
        if let Some((name, _)) = options.iter().find(|(name, _)| name.contains('\0')) {
            return Err(Error::InvalidArgument(format!("the topology option {name:?} holds a zero byte")));
        }
        let raw_options: Vec<_> = options.iter().map(|(name, value)| value.to_raw(name)).collect();
        let mut args = ffi::PJRT_TopologyDescription_Create_Args::new();
        args.topology_name = name.as_ptr().cast();
        args.topology_name_size = name.len();
        args.create_options = raw_options.as_ptr();
        args.num_options = raw_options.len();
        // SAFETY: name and options outlive the call, which copies them; the topology is ours.
        unsafe {
            self.api().call(ffi::PJRT_TopologyDescription_Create, &mut args)?;
            Topology::from_raw(self, args.topology, None)
        }
    }

    /// The topology that [`Topology::serialize`] wrote.
    ///
    /// # Errors
    /// [`Error::Unsupported`] or [`Error::Pjrt`] from plugins that cannot, and for other bytes.
    pub fn deserialize_topology(&self, serialized: &[u8]) -> Result<Topology> {
        let mut args = ffi::PJRT_TopologyDescription_Deserialize_Args::new();
        args.serialized_topology = serialized.as_ptr().cast();
        args.serialized_topology_size = serialized.len();
        // SAFETY: the bytes outlive the call; the topology is ours.
        unsafe {
            self.api().call(ffi::PJRT_TopologyDescription_Deserialize, &mut args)?;
            Topology::from_raw(self, args.topology, None)
        }
    }
}

impl Client {
    /// The topology of the client's own devices.
    ///
    /// # Errors
    /// When the plugin has none.
    pub fn topology(&self) -> Result<Topology> {
        let mut args = ffi::PJRT_Client_TopologyDescription_Args::new();
        args.client = self.raw();
        // SAFETY: the client is alive, and owns the topology, which keeps it alive.
        unsafe {
            self.api().call(ffi::PJRT_Client_TopologyDescription, &mut args)?;
            Topology::from_raw(self.plugin(), args.topology, Some(self.clone()))
        }
    }
}

impl Topology {
    /// Reads what is constant about a topology.
    ///
    /// # Safety
    /// `raw` is a topology of `plugin`: of this client's, or else one that nobody else will destroy.
    unsafe fn from_raw(
        plugin: &Plugin,
        raw: *mut ffi::PJRT_TopologyDescription,
        client: Option<Client>,
    ) -> Result<Topology> {
        let api = plugin.api();
        // From here on it is destroyed if reading it fails.
        let mut inner = TopologyInner {
            raw,
            plugin: plugin.clone(),
            platform_name: String::new(),
            platform_version: String::new(),
            devices: Vec::new(),
            attributes: Vec::new(),
            client,
        };
        let mut name = ffi::PJRT_TopologyDescription_PlatformName_Args::new();
        let mut version = ffi::PJRT_TopologyDescription_PlatformVersion_Args::new();
        let mut devices = ffi::PJRT_TopologyDescription_GetDeviceDescriptions_Args::new();
        let mut attributes = ffi::PJRT_TopologyDescription_Attributes_Args::new();
        (name.topology, version.topology, devices.topology, attributes.topology) = (raw, raw, raw, raw);
        // SAFETY: the topology is alive; what it returns lives as long as it and is copied.
        unsafe {
            api.call(ffi::PJRT_TopologyDescription_PlatformName, &mut name)?;
            inner.platform_name = string(name.platform_name, name.platform_name_size);
            api.call(ffi::PJRT_TopologyDescription_PlatformVersion, &mut version)?;
            inner.platform_version = string(version.platform_version, version.platform_version_size);
            api.call(ffi::PJRT_TopologyDescription_GetDeviceDescriptions, &mut devices)?;
            for &device in slice(devices.descriptions, devices.num_descriptions) {
                inner.devices.push(DeviceDescription::read(api, device)?);
            }
            // Not every plugin says more.
            if api.call(ffi::PJRT_TopologyDescription_Attributes, &mut attributes).is_ok() {
                inner.attributes = NamedValue::read_all(attributes.attributes, attributes.num_attributes);
            }
        }
        Ok(Topology { inner: Arc::new(inner) })
    }

    fn api(&self) -> Api {
        self.inner.plugin.api()
    }

    /// The plugin that compiles for it.
    pub fn plugin(&self) -> &Plugin {
        &self.inner.plugin
    }

    /// The platform, such as `cuda` or `tpu`.
    pub fn platform_name(&self) -> &str {
        &self.inner.platform_name
    }

    /// The platform's version, as the plugin words it.
    pub fn platform_version(&self) -> &str {
        &self.inner.platform_version
    }

    /// The devices, in the plugin's order.
    pub fn devices(&self) -> &[DeviceDescription] {
        &self.inner.devices
    }

    /// The number of processes that the devices are attached to.
    pub fn process_count(&self) -> usize {
        let mut processes: Vec<i32> = self.devices().iter().map(DeviceDescription::process_index).collect();
        processes.sort_unstable();
        processes.dedup();
        processes.len()
    }

    /// What else the plugin says of it, such as a GPU's `target_config`.
    pub fn attributes(&self) -> &[(String, NamedValue)] {
        &self.inner.attributes
    }

    /// The topology as bytes for [`Plugin::deserialize_topology`].
    ///
    /// # Errors
    /// When the plugin cannot serialise it.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let mut args = ffi::PJRT_TopologyDescription_Serialize_Args::new();
        args.topology = self.inner.raw;
        // SAFETY: the topology is alive; the bytes are copied before their owner is freed, once.
        unsafe {
            self.api().call(ffi::PJRT_TopologyDescription_Serialize, &mut args)?;
            let bytes = slice(args.serialized_bytes.cast::<u8>(), args.serialized_bytes_size).to_vec();
            if let Some(delete) = args.serialized_topology_deleter {
                delete(args.serialized_topology);
            }
            Ok(bytes)
        }
    }

    /// Compiles a program for these devices, and loads it nowhere. Blocks while it compiles.
    ///
    /// Only for programs that one trusts: see [`Client::compile_program`].
    ///
    /// # Errors
    /// [`Error::Unsupported`] from plugins that cannot; [`Error::InvalidArgument`] where there are too few devices;
    /// [`Error::Pjrt`] with the compiler's words.
    pub fn compile_program(
        &self,
        code: &[u8],
        format: ProgramFormat,
        options: &CompileOptions,
    ) -> Result<Executable> {
        let options = self.with_assignment(options)?.to_bytes()?;
        let program = format.program(code);
        let mut args = ffi::PJRT_Compile_Args::new();
        args.topology = self.inner.raw;
        args.program = &program;
        args.compile_options = options.as_ptr().cast();
        args.compile_options_size = options.len();
        args.client = self.inner.client.as_ref().map_or(std::ptr::null_mut(), Client::raw);
        // SAFETY: the topology is alive, and its client if it has one; program and options outlive the call; the executable
        // is ours.
        unsafe {
            self.api().call(ffi::PJRT_Compile, &mut args)?;
            Executable::from_raw(self.api(), self.inner.client.clone(), args.executable, None)
        }
    }

    /// The options with devices where they name none: compilers that have no client need them.
    fn with_assignment(&self, options: &CompileOptions) -> Result<CompileOptions> {
        let known: Vec<i32> = self.devices().iter().map(DeviceDescription::id).collect();
        options.check_devices(&known, "the topology", "in the topology")?;
        let mut options = options.clone();
        options.device_assignment.get_or_insert_with(|| {
            let rows = known.chunks(options.partitions).take(options.replicas);
            rows.map(<[i32]>::to_vec).collect()
        });
        Ok(options)
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topology({}, {} devices)", self.platform_name(), self.devices().len())
    }
}

impl Drop for TopologyInner {
    fn drop(&mut self) {
        if self.client.is_some() {
            return;
        }
        let mut args = ffi::PJRT_TopologyDescription_Destroy_Args::new();
        args.topology = self.raw;
        // SAFETY: no client owns it, and this is the last handle.
        unsafe { self.plugin.api().call_in_drop(ffi::PJRT_TopologyDescription_Destroy, &mut args) };
    }
}
