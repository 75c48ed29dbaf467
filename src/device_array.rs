//! Arrays on devices: one buffer, or the shards of a larger array on several.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::array::{ArraySpec, HostArray};
use crate::device_mesh::check_devices;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::pjrt::{Buffer, Client, Device, HostTransfer, Placement};
use crate::sharding::{Runs, ShardLayout, Sharding};

/// An array on a device, of whatever client. Cheap to clone.
pub trait DeviceArray: Clone {
    /// Its type and shape.
    fn spec(&self) -> &ArraySpec;
}

/// An array on one device or, in shards, on several. Cheap to clone: clones share their buffers.
#[derive(Clone)]
pub struct Array(Kind);

#[derive(Clone)]
enum Kind {
    /// All of it, on one device.
    One(Buffer),
    Sharded(Arc<Shards>),
}

/// How an array lies on devices. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Laid {
    /// The whole.
    pub spec: ArraySpec,
    pub sharding: Arc<Sharding>,
    /// What the sharding makes of the whole's shape.
    pub layout: Arc<ShardLayout>,
}

impl Laid {
    /// An array over so many devices.
    ///
    /// # Errors
    /// As for [`Sharding::layout`].
    pub fn new(spec: ArraySpec, sharding: Sharding, devices: usize) -> Result<Laid> {
        let layout = sharding.layout(&spec.shape, devices)?;
        Ok(Laid { spec, sharding: Arc::new(sharding), layout: Arc::new(layout) })
    }

    /// What each device has.
    pub fn shard_spec(&self) -> ArraySpec {
        ArraySpec::new(self.spec.dtype, self.layout.shard_shape())
    }
}

/// What several devices have of an array.
struct Shards {
    laid: Laid,
    client: Client,
    /// Those of this process's devices, each with its device's place in the sharding's order.
    buffers: Vec<(usize, Buffer)>,
}

/// A shard of an array: what one device has of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Shard<'a> {
    /// The place of its device in the order of the sharding's devices.
    pub place: usize,
    /// Which part of the array it is: a range in each dimension.
    pub slice: Vec<Range<usize>>,
    /// The device's memory with it.
    pub buffer: &'a Buffer,
}

impl Array {
    /// An array of these shards, in the order of the sharding's devices.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the sharding cannot be of such an array, or a shard is of another type, shape or client than
    /// it should be, or on a device that has one already.
    pub fn from_shards(spec: ArraySpec, sharding: Sharding, shards: Vec<Buffer>) -> Result<Array> {
        let laid = Laid::new(spec, sharding, shards.len())?;
        Array::from_parts(laid, shards.into_iter().enumerate().collect())
    }

    /// An array of the shards of this process.
    pub(crate) fn from_parts(laid: Laid, buffers: Vec<(usize, Buffer)>) -> Result<Array> {
        let (spec, wanted) = (&laid.spec, laid.shard_spec());
        let Some((_, first)) = buffers.first() else {
            return Err(Error::InvalidArgument(format!("{spec} has no shard on a device of this process")));
        };
        if let Some((place, wrong)) = buffers.iter().find(|(_, buffer)| *buffer.spec() != wanted) {
            return Err(Error::InvalidArgument(format!(
                "shard {place} of {spec}, which is {}, is to be {wanted}, and {} was given",
                laid.sharding,
                wrong.spec()
            )));
        }
        check_devices(&buffers.iter().map(|(_, buffer)| buffer.device()).collect::<Result<Vec<_>>>()?)?;
        // One device's whole is that, however it is said.
        if laid.layout.device_count() == 1 {
            return Ok(Array::from(first));
        }
        let client = first.client().clone();
        Ok(Array(Kind::Sharded(Arc::new(Shards { laid, client, buffers }))))
    }

    /// Deals an array out to devices: to each its slice of it. The transfers may still be under way on return.
    ///
    /// # Errors
    /// As for [`Array::from_shards`] and [`Client::buffer_from_host`].
    pub fn deal(array: &HostArray, sharding: Sharding, devices: &[Device]) -> Result<Array> {
        check_devices(devices)?;
        let laid = Laid::new(array.spec().clone(), sharding, devices.len())?;
        let shards = deal_out(array, &laid.layout, devices)?;
        Array::from_parts(laid, shards)
    }

    /// The type and shape of the whole.
    pub fn spec(&self) -> &ArraySpec {
        match &self.0 {
            Kind::One(buffer) => buffer.spec(),
            Kind::Sharded(shards) => &shards.laid.spec,
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.spec().dtype
    }

    /// The dimensions of the whole, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.spec().shape
    }

    /// The client that the array belongs to.
    pub fn client(&self) -> &Client {
        match &self.0 {
            Kind::One(buffer) => buffer.client(),
            Kind::Sharded(shards) => &shards.client,
        }
    }

    /// How it is laid over several devices; `None` on one.
    pub fn sharding(&self) -> Option<&Sharding> {
        match &self.0 {
            Kind::One(_) => None,
            Kind::Sharded(shards) => Some(&shards.laid.sharding),
        }
    }

    /// Which slice each device has.
    pub fn layout(&self) -> ShardLayout {
        match &self.0 {
            Kind::One(buffer) => ShardLayout::replicated(buffer.shape(), 1),
            Kind::Sharded(shards) => (*shards.laid.layout).clone(),
        }
    }

    /// The shards on devices of this process, in the order of the sharding's devices.
    pub fn addressable_shards(&self) -> impl Iterator<Item = Shard<'_>> {
        let whole = |buffer: &Buffer| buffer.shape().iter().map(|&size| 0..size).collect();
        let (one, several) = match &self.0 {
            Kind::One(buffer) => (Some(Shard { place: 0, slice: whole(buffer), buffer }), None),
            Kind::Sharded(shards) => (None, Some(shards)),
        };
        let several = several.into_iter().flat_map(|shards| {
            shards.buffers.iter().map(|(place, buffer)| Shard {
                place: *place,
                slice: shards.laid.layout.slice(*place),
                buffer,
            })
        });
        one.into_iter().chain(several)
    }

    /// Whether each of the devices has all of it. So it is on one device.
    pub fn is_fully_replicated(&self) -> bool {
        match &self.0 {
            Kind::One(_) => true,
            Kind::Sharded(shards) => shards.laid.layout.is_fully_replicated(),
        }
    }

    /// The buffer of an array on one device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when there are several.
    pub fn buffer(&self) -> Result<&Buffer> {
        match &self.0 {
            Kind::One(buffer) => Ok(buffer),
            Kind::Sharded(shards) => Err(Error::InvalidArgument(format!(
                "{} is in {} shards, {}, and not in one buffer; addressable_shards() has them",
                shards.laid.spec,
                shards.laid.layout.device_count(),
                shards.laid.sharding
            ))),
        }
    }

    /// The device of an array on one.
    ///
    /// # Errors
    /// As for [`Array::buffer`]; when the plugin cannot say.
    pub fn device(&self) -> Result<Device> {
        self.buffer()?.device()
    }

    fn buffers(&self) -> impl Iterator<Item = &Buffer> {
        let (one, several) = match &self.0 {
            Kind::One(buffer) => (Some(buffer), &[][..]),
            Kind::Sharded(shards) => (None, &shards.buffers[..]),
        };
        one.into_iter().chain(several.iter().map(|(_, buffer)| buffer))
    }

    /// Whether this and `other` are clones of one array.
    pub fn is_same(&self, other: &Array) -> bool {
        match (&self.0, &other.0) {
            (Kind::One(one), Kind::One(other)) => one.is_same(other),
            (Kind::Sharded(one), Kind::Sharded(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Blocks until the content is there, on every device of this process.
    ///
    /// # Errors
    /// As for [`Buffer::wait`].
    pub fn wait(&self) -> Result<()> {
        self.buffers().try_for_each(Buffer::wait)
    }

    /// As [`Array::wait`], for so long at most.
    ///
    /// # Errors
    /// As for [`Buffer::wait_for`].
    pub fn wait_for(&self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        self.buffers().try_for_each(|buffer| {
            let rest = limit.saturating_sub(started.elapsed());
            buffer.wait_for(rest).map_err(|error| error.after(limit))
        })
    }

    /// Whether a part of it was deleted, or donated to a call and used up.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn is_deleted(&self) -> Result<bool> {
        self.buffers().try_fold(false, |is_deleted, buffer| Ok(is_deleted || buffer.is_deleted()?))
    }

    /// Frees the device memory now. As [`Buffer::delete`].
    ///
    /// # Errors
    /// When the plugin cannot.
    pub fn delete(&self) -> Result<()> {
        self.buffers().try_for_each(Buffer::delete)
    }

    /// Starts copying the elements of the whole to the host, row-major, each from one device that has it. Does not block.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when no device of this process has a part of it; as for [`Buffer::start_to_host`].
    pub fn start_to_host(&self) -> Result<ArrayTransfer> {
        let shards = match &self.0 {
            Kind::One(buffer) => {
                return Ok(ArrayTransfer {
                    spec: buffer.spec().clone(),
                    parts: Parts::One(buffer.start_to_host()?),
                });
            }
            Kind::Sharded(shards) => shards,
        };
        let part = |part: usize| {
            let has_it = |(place, _): &&(usize, Buffer)| shards.laid.layout.part(*place) == part;
            let (_, buffer) = shards.buffers.iter().find(has_it).ok_or_else(|| {
                Error::InvalidArgument(format!(
                    "the part {:?} of {} is on devices of other processes only",
                    shards.laid.layout.slice_of_part(part),
                    shards.laid.spec
                ))
            })?;
            Ok((shards.laid.layout.slice_of_part(part), buffer.start_to_host()?))
        };
        let parts = (0..shards.laid.layout.part_count()).map(part).collect::<Result<_>>()?;
        Ok(ArrayTransfer { spec: shards.laid.spec.clone(), parts: Parts::Several(parts) })
    }

    /// Copies the elements of the whole to the host, row-major, and blocks until they are there.
    ///
    /// # Errors
    /// As for [`Array::start_to_host`]; the error of the work that fills it, or of the copy.
    pub fn to_host(&self) -> Result<HostArray> {
        self.start_to_host()?.wait()
    }

    /// Copies the elements of the whole to the host as a vector, and blocks until they are there.
    ///
    /// # Errors
    /// [`Error::DTypeMismatch`] when the array is not of type `T`; else as for [`Array::to_host`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        match &self.0 {
            Kind::One(buffer) => buffer.to_vec(),
            Kind::Sharded(_) => {
                crate::array::check_element::<T>(self.dtype())?;
                self.to_host()?.to_vec()
            }
        }
    }

    /// The one element of an array that has one, copied to the host; blocks until it is there.
    ///
    /// # Errors
    /// As for [`Buffer::item`].
    pub fn item<T: Element>(&self) -> Result<T> {
        match self.buffers().next() {
            // An array of one element is the same on every device.
            Some(buffer) if buffer.spec() == self.spec() => buffer.item(),
            _ => self.to_host()?.item(),
        }
    }

    /// Starts copying the whole to one device or memory of the same client. Does not block, but where it is in several parts:
    /// these come to the host first.
    ///
    /// # Errors
    /// As for [`Buffer::copy_to`] and [`Array::to_host`].
    pub fn copy_to(&self, to: impl Into<Placement>) -> Result<Array> {
        let to = to.into();
        match self.buffers().next() {
            Some(buffer) if self.is_fully_replicated() => buffer.copy_to(&to).map(Array::from),
            _ => self.client().put_on(&self.to_host()?, &to).map(Array::from),
        }
    }

    /// The same array laid over these devices otherwise. What a device has already stays; what another device has goes from
    /// device to device; what is in several shards comes together on the host.
    ///
    /// # Errors
    /// As for [`Array::from_shards`] and [`Array::copy_to`].
    pub fn reshard(&self, sharding: Sharding, devices: &[Device]) -> Result<Array> {
        check_devices(devices)?;
        self.laid_out(Laid::new(self.spec().clone(), sharding, devices.len())?, devices)
    }

    pub(crate) fn laid_out(&self, laid: Laid, devices: &[Device]) -> Result<Array> {
        let own: Vec<Shard<'_>> = self.addressable_shards().collect();
        let on = own.iter().map(|shard| shard.buffer.device()).collect::<Result<Vec<_>>>()?;
        // Comes to the host once, if at all.
        let mut whole: Option<HostArray> = None;
        let mut made: Vec<(usize, usize, Buffer)> = Vec::new();
        for (place, device) in devices.iter().enumerate().filter(|(_, device)| device.is_addressable()) {
            let (part, slice) = (laid.layout.part(place), laid.layout.slice(place));
            let same = || own.iter().zip(&on).filter(|(shard, _)| shard.slice == slice);
            let buffer = if let Some((shard, _)) = same().find(|(_, on)| *on == device) {
                shard.buffer.clone()
            } else if let Some((shard, _)) = same().next() {
                shard.buffer.copy_to(device)?
            } else if let Some((_, _, buffer)) = made.iter().find(|(_, of, _)| *of == part) {
                buffer.copy_to(device)?
            } else {
                let whole = match &mut whole {
                    Some(whole) => whole,
                    empty => empty.insert(self.to_host()?),
                };
                self.client().put_on(&slice_of(whole, &slice)?, device)?
            };
            made.push((place, part, buffer));
        }
        let buffers = made.into_iter().map(|(place, _, buffer)| (place, buffer)).collect();
        Array::from_parts(laid, buffers)
    }

    /// The buffers of an array that is laid out like this over these devices, in their order; `None` for any other.
    pub(crate) fn buffers_of(&self, layout: &ShardLayout, devices: &[Device]) -> Option<Vec<&Buffer>> {
        let shards = match &self.0 {
            Kind::One(_) => return None,
            Kind::Sharded(shards) => shards,
        };
        let is_there = |(place, buffer): &(usize, Buffer)| {
            devices.get(*place).is_some_and(|device| buffer.is_on(device))
        };
        let is_same = *shards.laid.layout == *layout
            && shards.buffers.len() == devices.len()
            && shards.buffers.iter().all(is_there);
        is_same.then(|| shards.buffers.iter().map(|(_, buffer)| buffer).collect())
    }

    /// A buffer that has all of the array, if a device has.
    pub(crate) fn one_with_all(&self) -> Option<&Buffer> {
        self.buffers().next().filter(|buffer| buffer.spec() == self.spec())
    }

    /// The only buffer, if the array is on one device.
    pub(crate) fn as_one(&self) -> Option<&Buffer> {
        match &self.0 {
            Kind::One(buffer) => Some(buffer),
            Kind::Sharded(_) => None,
        }
    }

    /// Refuses an array of which a part was deleted or used up by a call.
    pub(crate) fn check_alive(&self) -> Result<()> {
        self.buffers().try_for_each(Buffer::check_alive)
    }
}

/// The slices of an array on those devices that are of this process.
pub(crate) fn deal_out(
    array: &HostArray,
    layout: &ShardLayout,
    devices: &[Device],
) -> Result<Vec<(usize, Buffer)>> {
    let addressable = devices.iter().enumerate().filter(|(_, device)| device.is_addressable());
    // Each slice is cut out once, however many devices have it.
    let mut cut: Vec<Option<HostArray>> = vec![None; layout.part_count()];
    addressable
        .map(|(place, device)| {
            let part = layout.part(place);
            let slice = match &mut cut[part] {
                Some(slice) => slice,
                empty => empty.insert(slice_of(array, &layout.slice_of_part(part))?),
            };
            Ok((place, device.client().put_on(slice, device)?))
        })
        .collect()
}

/// Where a slice's bytes lie among those of an array on the host.
fn runs_of(spec: &ArraySpec, slice: &[Range<usize>]) -> Runs {
    Runs::new(&spec.shape, slice, spec.dtype.host_bytes(1).unwrap_or(1))
}

/// A slice of an array; the array's own bytes where they lie side by side.
fn slice_of(array: &HostArray, slice: &[Range<usize>]) -> Result<HostArray> {
    let spec = array.spec();
    let shape: Vec<usize> = slice.iter().map(Range::len).collect();
    let sliced = ArraySpec::new(spec.dtype, shape);
    let runs = runs_of(spec, slice);
    if runs.count() == 1 {
        return HostArray::from_bytes(sliced, array.bytes().slice(runs.get(0)));
    }
    let mut bytes = vec![0; sliced.host_bytes()?];
    runs.gather(array.bytes(), &mut bytes);
    HostArray::from_bytes(sliced, bytes)
}

/// An array on its way to the host.
#[derive(Debug)]
pub struct ArrayTransfer {
    spec: ArraySpec,
    parts: Parts,
}

#[derive(Debug)]
enum Parts {
    One(HostTransfer),
    /// Each with its slice of the whole.
    Several(Vec<(Vec<Range<usize>>, HostTransfer)>),
}

impl ArrayTransfer {
    /// Blocks until the copy has ended, and returns the whole.
    ///
    /// # Errors
    /// The error of the copy, or of the work that fills the array.
    pub fn wait(self) -> Result<HostArray> {
        let parts = match self.parts {
            Parts::One(transfer) => return HostArray::from_bytes(self.spec, transfer.wait()?),
            Parts::Several(parts) => parts,
        };
        let mut whole = vec![0; self.spec.host_bytes()?];
        for (slice, transfer) in parts {
            runs_of(&self.spec, &slice).scatter(&transfer.wait()?, &mut whole);
        }
        HostArray::from_bytes(self.spec, whole)
    }

    /// Whether the copy has ended. Does not block.
    ///
    /// # Errors
    /// When the plugin cannot say.
    pub fn is_ready(&self) -> Result<bool> {
        match &self.parts {
            Parts::One(transfer) => transfer.is_ready(),
            Parts::Several(parts) => {
                parts.iter().try_fold(true, |is_ready, (_, transfer)| Ok(is_ready && transfer.is_ready()?))
            }
        }
    }
}

/// Waits without blocking, on whatever runtime: the plugin wakes the task.
impl IntoFuture for ArrayTransfer {
    type Output = Result<HostArray>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<HostArray>> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let parts = match self.parts {
                Parts::One(transfer) => return HostArray::from_bytes(self.spec, transfer.await?),
                Parts::Several(parts) => parts,
            };
            let mut whole = vec![0; self.spec.host_bytes()?];
            for (slice, transfer) in parts {
                runs_of(&self.spec, &slice).scatter(&transfer.await?, &mut whole);
            }
            HostArray::from_bytes(self.spec, whole)
        })
    }
}

impl From<Buffer> for Array {
    fn from(buffer: Buffer) -> Array {
        Array(Kind::One(buffer))
    }
}

impl From<&Buffer> for Array {
    fn from(buffer: &Buffer) -> Array {
        Array::from(buffer.clone())
    }
}

impl DeviceArray for Array {
    fn spec(&self) -> &ArraySpec {
        Array::spec(self)
    }
}

impl DeviceArray for Buffer {
    fn spec(&self) -> &ArraySpec {
        Buffer::spec(self)
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::One(buffer) => buffer.fmt(f),
            Kind::Sharded(shards) => write!(f, "Array({}, {})", shards.laid.spec, shards.laid.sharding),
        }
    }
}
