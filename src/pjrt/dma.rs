//! Host memory that is registered with the device for direct access.

use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use super::client::Client;
use super::event::outside_callback;
use super::ffi;
use super::host_memory::HostMemory;
use crate::error::Result;

/// Host memory that the device reads and writes directly, without a staging copy of the driver's.
pub struct DmaRegion {
    /// Taken when it is dropped.
    memory: Option<HostMemory>,
    client: Client,
}

impl DmaRegion {
    /// Registers this memory with the client's devices.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] or `UNIMPLEMENTED` on platforms that need no registration, such as the CPU.
    pub fn new(client: &Client, mut memory: HostMemory) -> Result<DmaRegion> {
        let mut args = ffi::PJRT_Client_DmaMap_Args::new();
        args.client = client.raw();
        args.data = memory.as_mut_ptr().cast();
        args.size = memory.len();
        // SAFETY: the memory is valid for its length, does not move, and is unregistered before it is freed.
        unsafe { client.api().call(ffi::PJRT_Client_DmaMap, &mut args) }?;
        Ok(DmaRegion { memory: Some(memory), client: client.clone() })
    }
}

impl Deref for DmaRegion {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.memory.as_deref().unwrap_or_default()
    }
}

impl DerefMut for DmaRegion {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().unwrap_or_default()
    }
}

impl AsRef<[u8]> for DmaRegion {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for DmaRegion {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        // Freed by hand: memory that is still registered is never freed, be it that there is no thread for what follows.
        let mut memory = ManuallyDrop::new(memory);
        let client = self.client.clone();
        outside_callback(move || {
            let mut args = ffi::PJRT_Client_DmaUnmap_Args::new();
            args.client = client.raw();
            args.data = memory.as_mut_ptr().cast();
            // SAFETY: the region was mapped by `new`, and is freed only after this.
            match unsafe { client.api().call(ffi::PJRT_Client_DmaUnmap, &mut args) } {
                Ok(()) => drop(ManuallyDrop::into_inner(memory)),
                Err(error) => {
                    tracing::warn!(%error, "host memory stays, since the plugin does not unregister it");
                }
            }
        });
    }
}

/// The smallest page of any system.
const PAGE_BYTES: usize = 4096;

/// Host memory on the way to or from a device: registered with it where it does that.
pub(crate) enum StagingMemory {
    /// The driver copies it once more.
    Plain(HostMemory),
    /// The device reads and writes it.
    Registered(DmaRegion),
}

impl StagingMemory {
    /// So many bytes, registered with the client's devices if one is given that does that.
    ///
    /// # Errors
    /// [`crate::Error::HostMemory`].
    pub fn allocate(bytes: usize, client: Option<&Client>) -> Result<StagingMemory> {
        let mut memory = HostMemory::allocate(bytes)?;
        let Some(client) = client else { return Ok(StagingMemory::Plain(memory)) };
        // The driver would have the system zero the pages one thread at a time.
        memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 0);
        match DmaRegion::new(client, memory) {
            Ok(region) => Ok(StagingMemory::Registered(region)),
            Err(error) => {
                tracing::debug!(%error, "staging memory is not registered with the device");
                HostMemory::allocate(bytes).map(StagingMemory::Plain)
            }
        }
    }

    /// Whether the device reads and writes it directly.
    pub fn is_registered(&self) -> bool {
        matches!(self, StagingMemory::Registered(_))
    }
}

impl Deref for StagingMemory {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            StagingMemory::Plain(memory) => memory,
            StagingMemory::Registered(region) => region,
        }
    }
}

impl DerefMut for StagingMemory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            StagingMemory::Plain(memory) => memory,
            StagingMemory::Registered(region) => region,
        }
    }
}
