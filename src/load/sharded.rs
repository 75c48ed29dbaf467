//! Loads onto several devices: which part of which tensor goes where, and the arrays that the parts make.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::array::ArraySpec;
use crate::cast::convert;
use crate::device_array::{Array, Laid, deal_out};
use crate::device_mesh::DeviceMesh;
use crate::error::{Context, Error, Result};
use crate::format::{Checkpoint, Tensor, TensorReader};
use crate::pjrt::{Buffer, Client, Device, HostSemantics, Placement};
use crate::plan::{LoadPlan, Route, Selected, ShardingRules, has_parts, loaded_dtype, part_of};
use crate::sharding::{Mesh, NamedSharding, ShardLayout, Sharding};

use super::options::LoadOptions;

/// The devices that tensors are laid over, and how.
#[derive(Debug, Clone)]
pub(crate) struct Distribution {
    devices: Vec<Device>,
    how: How,
}

#[derive(Debug, Clone)]
enum How {
    /// By rules over a mesh.
    Rules(Mesh, ShardingRules),
    /// Tensor by tensor, by the names that they are loaded by.
    Each(BTreeMap<String, Sharding>),
}

/// A tensor that is loaded, or a part of one.
pub(crate) struct Part<'a> {
    /// The leaf that it is of.
    pub leaf: usize,
    pub tensor: Cow<'a, Tensor>,
    /// The device that it goes to, and those that get a copy.
    pub place: usize,
    pub copies: Vec<usize>,
}

/// How the leaves of a load lie on its devices.
pub(crate) struct Distributed {
    pub devices: Vec<Device>,
    leaves: Vec<Leaf>,
}

struct Leaf {
    name: String,
    /// As it is loaded.
    laid: Laid,
    /// The positions of the steps of the parts that devices of this process have.
    steps: Vec<usize>,
    /// Whether it has no parts in the file, so that it is read whole and dealt out.
    is_dealt: bool,
}

impl Distribution {
    pub fn by_rules(mesh: &DeviceMesh, rules: ShardingRules) -> Distribution {
        Distribution { devices: mesh.devices().to_vec(), how: How::Rules(mesh.mesh().clone(), rules) }
    }

    pub fn each(devices: Vec<Device>, shardings: BTreeMap<String, Sharding>) -> Distribution {
        Distribution { devices, how: How::Each(shardings) }
    }

    /// Where parts go: this process's devices, and the first one in the place of others', to which nothing goes.
    pub fn placements(&self, client: &Client) -> Result<Vec<Placement>> {
        if self.devices.iter().any(|device| device.client() != client) {
            return Err(Error::InvalidArgument("the mesh is of another client than the load".into()));
        }
        let own = self.devices.iter().find(|device| device.is_addressable()).ok_or_else(|| {
            Error::InvalidArgument("none of the devices of the mesh is of this process".into())
        })?;
        let place = |device: &Device| Placement::from(if device.is_addressable() { device } else { own });
        Ok(self.devices.iter().map(place).collect())
    }

    fn sharding(&self, name: &str) -> Result<Sharding> {
        match &self.how {
            How::Rules(mesh, rules) => {
                NamedSharding::new(mesh.clone(), rules.spec(name)?).map(Sharding::Named)
            }
            How::Each(shardings) => Ok(shardings.get(name).cloned().unwrap_or(Sharding::Replicated)),
        }
    }

    /// Divides what is loaded: each part that a device of this process has is loaded once, onto the device with the fewest bytes
    /// so far of those that want it.
    ///
    /// # Errors
    /// An error naming the tensor that cannot be divided so.
    pub fn divide<'a>(
        &self,
        selected: &Selected<'a>,
        options: &LoadOptions,
    ) -> Result<(Vec<Part<'a>>, Distributed)> {
        self.check_rules(selected)?;
        let mut divided =
            Divided { devices: &self.devices, bytes: vec![0; self.devices.len()], parts: Vec::new() };
        let tensors = selected.keys.leaves().iter().zip(&selected.tensors);
        let leaf = |(index, (leaf, tensor)): (usize, (&crate::tree::Leaf, &&'a Tensor))| {
            let sharding = self.sharding(&leaf.name)?;
            let dtype = loaded_dtype(&tensor.name, tensor.spec.dtype, &options.dtypes)?;
            let spec = ArraySpec::new(dtype, tensor.spec.shape.clone());
            let laid = Laid::new(spec, sharding, self.devices.len());
            laid.and_then(|laid| divided.add(index, &leaf.name, tensor, laid)).for_tensor(&leaf.name)
        };
        let leaves = tensors.enumerate().map(leaf).collect::<Result<_>>()?;
        Ok((divided.parts, Distributed { devices: self.devices.clone(), leaves }))
    }

    /// Refuses a rule that matches nothing: it is not what was meant.
    fn check_rules(&self, selected: &Selected<'_>) -> Result<()> {
        let How::Rules(_, rules) = &self.how else { return Ok(()) };
        let names: Vec<&str> = selected.keys.leaves().iter().map(|leaf| leaf.name.as_str()).collect();
        rules.rules.iter().try_for_each(|(pattern, _)| crate::plan::check_pattern(pattern, &names))
    }
}

/// Parts as they are found.
struct Divided<'a, 'd> {
    devices: &'d [Device],
    /// Bytes that each device has been given.
    bytes: Vec<u64>,
    parts: Vec<Part<'a>>,
}

impl<'a> Divided<'a, '_> {
    fn add(&mut self, index: usize, name: &str, tensor: &'a Tensor, laid: Laid) -> Result<Leaf> {
        let layout = &laid.layout;
        let mut wanted: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, _) in self.devices.iter().enumerate().filter(|(_, device)| device.is_addressable()) {
            wanted.entry(layout.part(place)).or_default().push(place);
        }
        let slices: Vec<_> = wanted.keys().map(|&part| layout.slice_of_part(part)).collect();
        let is_dealt = !has_parts(tensor, &slices) && !layout.is_fully_replicated();
        let mut steps = Vec::new();
        for (part, mut places) in wanted.into_iter().filter(|_| !is_dealt) {
            let lightest = (0..places.len()).min_by_key(|&at| self.bytes[places[at]]).unwrap_or(0);
            let place = places.swap_remove(lightest);
            let tensor = match layout.is_fully_replicated() {
                true => Cow::Borrowed(tensor),
                false => Cow::Owned(part_of(tensor, &layout.slice_of_part(part))?),
            };
            self.bytes[place] += tensor.spec.host_bytes()? as u64;
            steps.push(self.parts.len());
            self.parts.push(Part { leaf: index, tensor, place, copies: places });
        }
        Ok(Leaf { name: name.to_owned(), laid, steps, is_dealt })
    }
}

impl Distributed {
    /// Whether any tensor is divided, so that a digest of it is of no use.
    pub fn divides(&self) -> Option<&str> {
        let divided = self.leaves.iter().find(|leaf| !leaf.laid.layout.is_fully_replicated());
        divided.map(|leaf| leaf.name.as_str())
    }

    /// The arrays that the parts make, once their other devices have copies.
    ///
    /// # Errors
    /// What a device reports, naming the tensor.
    pub fn arrays(
        self,
        client: &Client,
        checkpoint: &Checkpoint,
        plan: &LoadPlan,
        tensors: &[&Tensor],
        buffers: &[Buffer],
    ) -> Result<(Vec<Array>, Dealt)> {
        let reader = TensorReader::new(checkpoint)?;
        let mut arrays = Vec::with_capacity(self.leaves.len());
        let mut dealt = Dealt::default();
        for (leaf, tensor) in self.leaves.into_iter().zip(tensors) {
            let shards = if leaf.is_dealt {
                dealt.tensors += 1;
                dealt.bytes += tensor.decoded_bytes()? as u64;
                deal(&reader, tensor, &leaf, &self.devices)
            } else {
                copies(client, checkpoint, plan, &leaf, &self.devices, buffers)
            };
            let array = shards.and_then(|shards| Array::from_parts(leaf.laid, shards));
            arrays.push(array.for_tensor(&leaf.name)?);
        }
        Ok((arrays, dealt))
    }

    /// What each device gets of each tensor.
    pub fn placements(&self) -> Vec<LeafPlacement> {
        let leaf = |leaf: &Leaf| LeafPlacement {
            name: leaf.name.clone(),
            spec: leaf.laid.spec.clone(),
            sharding: (*leaf.laid.sharding).clone(),
            layout: (*leaf.laid.layout).clone(),
        };
        self.leaves.iter().map(leaf).collect()
    }
}

/// What was read whole and dealt out.
#[derive(Debug, Default)]
pub(crate) struct Dealt {
    pub tensors: usize,
    pub bytes: u64,
}

/// How a tensor of a load lies on its devices.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LeafPlacement {
    /// The name that it is loaded by.
    pub name: String,
    /// Its type and shape, as a whole.
    pub spec: ArraySpec,
    /// How it is sharded.
    pub sharding: Sharding,
    /// Which slice each device gets.
    pub layout: ShardLayout,
}

/// Reads a tensor whole and deals it out: one whose parts are not to be had from the file, since it is compressed or in another
/// order.
fn deal(
    reader: &TensorReader,
    tensor: &Tensor,
    leaf: &Leaf,
    devices: &[Device],
) -> Result<Vec<(usize, Buffer)>> {
    let whole = convert(&reader.read_array(tensor)?, leaf.laid.spec.dtype)?;
    deal_out(&whole, &leaf.laid.layout, devices)
}

/// The shards of a leaf on every device of this process: what was loaded, used in place by others where that can be, and copied
/// from device to device elsewhere.
fn copies(
    client: &Client,
    checkpoint: &Checkpoint,
    plan: &LoadPlan,
    leaf: &Leaf,
    devices: &[Device],
    buffers: &[Buffer],
) -> Result<Vec<(usize, Buffer)>> {
    let mut shards = Vec::new();
    for &position in &leaf.steps {
        let (step, buffer) = (&plan.steps[position], &buffers[position]);
        let bytes = match step.extents() {
            [extent] if step.route == Route::Alias => {
                checkpoint.blobs[extent.file].map().map(|map| map.slice(extent.range.clone()))
            }
            _ => None,
        };
        for &place in &step.copies {
            let copy = match &bytes {
                Some(bytes) => client.buffer_from_host(
                    &step.spec,
                    bytes.clone(),
                    &devices[place],
                    HostSemantics::Alias,
                )?,
                None => buffer.copy_to(&devices[place])?,
            };
            shards.push((place, copy));
        }
        shards.push((step.place, buffer.clone()));
    }
    shards.sort_by_key(|(place, _)| *place);
    Ok(shards)
}
