//! Meshes of a client's devices.

use std::fmt;

use crate::error::{Error, Result};
use crate::pjrt::{Client, Device};
use crate::sharding::Mesh;

/// Devices of one client, arranged along the named axes of a [`Mesh`]: JAX's `Mesh`. Cheap to clone.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceMesh {
    mesh: Mesh,
    devices: Vec<Device>,
}

impl DeviceMesh {
    /// The first of the client's devices, of every process, in the order of their numbers: along the last axis first.
    ///
    /// ```no_run
    /// use safejax::{Client, DeviceMesh};
    /// let client = Client::cpu_with_devices(8)?;
    /// let mesh = DeviceMesh::new(&client, "data=2,model=4".parse()?)?;
    /// # Ok::<(), safejax::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the client has fewer.
    pub fn new(client: &Client, mesh: Mesh) -> Result<DeviceMesh> {
        let (wanted, mut devices) = (mesh.device_count(), client.devices());
        if devices.len() < wanted {
            return Err(Error::InvalidArgument(format!(
                "the mesh {mesh} is of {wanted} devices, and the client has {}{}",
                devices.len(),
                if client.platform_name() == "cpu" { " (option cpu_device_count)" } else { "" }
            )));
        }
        devices.truncate(wanted);
        DeviceMesh::over(devices, mesh)
    }

    /// These devices, the first at the beginning of every axis, the second one further along the last axis.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when they are not as many as the mesh has, of several clients, or one is there twice.
    pub fn over(devices: Vec<Device>, mesh: Mesh) -> Result<DeviceMesh> {
        if devices.len() != mesh.device_count() {
            return Err(Error::InvalidArgument(format!(
                "the mesh {mesh} is of {} devices, and {} were given",
                mesh.device_count(),
                devices.len()
            )));
        }
        check_devices(&devices)?;
        Ok(DeviceMesh { mesh, devices })
    }

    /// The axes.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// The devices in the mesh's order.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }
}

/// Refuses devices of several clients, and a device that is there twice.
pub(crate) fn check_devices(devices: &[Device]) -> Result<()> {
    for (index, device) in devices.iter().enumerate() {
        if device.client() != devices[0].client() {
            return Err(Error::InvalidArgument(format!(
                "{} and {device} are of different clients",
                devices[0]
            )));
        }
        if devices[..index].contains(device) {
            return Err(Error::InvalidArgument(format!("{device} is there twice")));
        }
    }
    Ok(())
}

impl fmt::Display for DeviceMesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<String> = self.devices.iter().map(|device| device.id().to_string()).collect();
        write!(f, "{} on devices {}", self.mesh, ids.join(", "))
    }
}
