//! A program on several devices: the shards of what a call gives, and of what it returns.

use std::sync::Arc;

use super::argument::{ArrayArgument, LeafArgument};
use super::bind::Resharding;
use super::exported::{Aval, Exported};
use super::sharding;
use super::signature::Interface;
use crate::array::{ArraySpec, HostArray};
use crate::cast::convert;
use crate::device_array::{Array, Laid, deal_out};
use crate::error::{Error, Result};
use crate::pjrt::{Buffer, Device, Input, LoadedExecutable};
use crate::sharding::Sharding;

/// How the arrays of a program lie on its devices.
#[derive(Debug)]
pub struct Partitioned {
    /// In the order of the program's own mesh.
    pub devices: Vec<Device>,
    /// Which parameter each leaf of a call is, by the leaf's position; none for one that is not used.
    positions: Vec<Option<usize>>,
    /// What `main` takes, after what a call does not give; empty where it is not known.
    pub parameters: Vec<Laid>,
    /// What it returns.
    pub outputs: Vec<Laid>,
}

/// The shards of a call's leaf, one for each device.
pub enum Shards<'a> {
    /// They are there.
    Given(Vec<&'a Buffer>),
    /// They were made for the call.
    Made(Vec<Buffer>),
    /// They were laid out otherwise, and some of them may be the caller's own still.
    Resharded(Array),
}

impl Partitioned {
    /// How this program's arrays lie on its devices. The compiler knows that best; the artifact says it by its own names.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the compiler and the artifact do not agree on what a device takes.
    pub fn new(
        executable: &LoadedExecutable,
        exported: Option<&Exported>,
        interface: Option<&Interface>,
        not_given: usize,
    ) -> Result<Partitioned> {
        let devices = executable.devices().to_vec();
        let count = devices.len();
        let said = |extension: Result<Option<Vec<Vec<u8>>>>, program: Option<&Vec<Option<Sharding>>>| {
            let of_extension = extension.unwrap_or_else(|error| {
                tracing::debug!(%error, "the plugin does not say how arrays are laid over devices");
                None
            });
            match of_extension {
                Some(protos) => protos.iter().map(|proto| sharding::of_op_bytes(proto).ok()).collect(),
                None => program.cloned().unwrap_or_default(),
            }
        };
        let compiled = executable.compiled();
        let of_program = interface.map(|interface| &interface.parameter_shardings);
        let parameter_shardings: Vec<Option<Sharding>> = said(compiled.parameter_shardings(), of_program);
        let of_program = interface.map(|interface| &interface.output_shardings);
        let output_shardings: Vec<Option<Sharding>> = said(compiled.output_shardings(), of_program);
        let compiled =
            |shardings: &[Option<Sharding>], position: usize| shardings.get(position).cloned().flatten();
        let on_one = |position: usize| interface?.parameters.get(position)?.to_spec();
        let parameters: Vec<Laid> = match exported {
            Some(exported) => {
                let kept = exported.kept.iter().enumerate();
                let parameter = |(position, &leaf): (usize, &usize)| {
                    let position = position + not_given;
                    let said = exported.in_shardings.get(leaf).cloned().flatten();
                    let whole = exported.in_avals[leaf].to_spec();
                    let place = format!("the argument leaf {leaf}");
                    laid(
                        &place,
                        whole,
                        on_one(position),
                        compiled(&parameter_shardings, position),
                        said,
                        count,
                    )
                };
                kept.map(parameter).collect::<Result<_>>()?
            }
            None => {
                let parameter = |(position, aval): (usize, &Aval)| {
                    let place = format!("argument {position}");
                    laid(&place, None, aval.to_spec(), compiled(&parameter_shardings, position), None, count)
                };
                let parameters = interface.map(|interface| &interface.parameters[..]).unwrap_or_default();
                parameters.iter().enumerate().map(parameter).collect::<Result<_>>()?
            }
        };
        let output = |(position, on_one): (usize, &Arc<ArraySpec>)| {
            let said = exported.and_then(|exported| exported.out_shardings.get(position).cloned().flatten());
            let whole = exported.and_then(|exported| exported.out_avals.get(position)?.to_spec());
            let place = format!("output {position}");
            laid(
                &place,
                whole,
                Some(ArraySpec::clone(on_one)),
                compiled(&output_shardings, position),
                said,
                count,
            )
        };
        let outputs = executable.outputs().iter().enumerate().map(output).collect::<Result<_>>()?;
        let positions = match exported {
            Some(exported) => {
                let mut positions = vec![None; exported.in_avals.len()];
                for (position, &leaf) in exported.kept.iter().enumerate() {
                    positions[leaf] = Some(position);
                }
                positions
            }
            None => (0..parameters.len()).map(Some).collect(),
        };
        Ok(Partitioned { devices, positions, parameters, outputs })
    }

    /// What the program takes of the leaf at this position among a call's; `None` where it does not use it.
    pub fn wanted(&self, index: usize) -> Option<&Laid> {
        self.parameters.get((*self.positions.get(index)?)?)
    }

    /// Why the leaf at a position among a call's is not laid out as the program takes it, if it is not and nobody may move it.
    pub fn mismatch(&self, index: usize, leaf: &LeafArgument<'_>, resharding: Resharding) -> Option<String> {
        let wanted = self.wanted(index)?;
        let found = match leaf.array {
            // Whatever is on the host goes where it is wanted.
            ArrayArgument::Host(_) => return None,
            ArrayArgument::Device(buffer) => Array::from(buffer),
            ArrayArgument::Sharded(array) => array.clone(),
        };
        if found.client() != self.devices[0].client() {
            return Some("it belongs to another client than the function".into());
        }
        let is_right = found.buffers_of(&wanted.layout, &self.devices).is_some();
        if is_right || resharding == Resharding::Allow || *found.spec() != wanted.spec {
            return None;
        }
        let on: Vec<Device> =
            found.addressable_shards().filter_map(|shard| shard.buffer.device().ok()).collect();
        let sharding = found.sharding().map_or(String::new(), |sharding| format!("{sharding} "));
        Some(format!(
            "it is {sharding}on {}, and the function takes it {} on {}; load or deal it out so, or allow it to be moved at each \
             call (Function::with_resharding, --reshard)",
            names(&on),
            wanted.sharding,
            names(&self.devices)
        ))
    }

    /// The shards of a leaf, which was checked ([`Partitioned::mismatch`]), for a parameter.
    ///
    /// # Errors
    /// When what is elsewhere cannot be moved.
    pub fn shards<'a>(&self, leaf: LeafArgument<'a>, wanted: &Laid) -> Result<Shards<'a>> {
        if leaf.spec().shape != wanted.spec.shape {
            let problem = format!("{} was expected, but {} was given", wanted.spec, leaf.spec());
            return Err(Error::InvalidArgument(problem));
        }
        let dealt = |array: &HostArray| {
            let shards = deal_out(&convert(array, wanted.spec.dtype)?, &wanted.layout, &self.devices)?;
            Ok(Shards::Made(shards.into_iter().map(|(_, buffer)| buffer).collect()))
        };
        let move_to = |array: &Array| array.laid_out(wanted.clone(), &self.devices).map(Shards::Resharded);
        match leaf.array {
            ArrayArgument::Host(array) => dealt(array),
            ArrayArgument::Sharded(array) if *array.spec() == wanted.spec => array
                .buffers_of(&wanted.layout, &self.devices)
                .map_or_else(|| move_to(array), |buffers| Ok(Shards::Given(buffers))),
            ArrayArgument::Device(buffer) if *buffer.spec() == wanted.spec => move_to(&Array::from(buffer)),
            // Its type is converted on the host.
            ArrayArgument::Sharded(array) => dealt(&array.to_host()?),
            ArrayArgument::Device(buffer) => dealt(&buffer.to_host()?),
        }
    }

    /// The leaf at a position among the signature's, as an array that calls can use again and again.
    ///
    /// # Errors
    /// As for [`Partitioned::shards`].
    pub fn fix(&self, index: usize, leaf: LeafArgument<'_>) -> Result<Array> {
        let Some(wanted) = self.wanted(index) else {
            // The program does not use it.
            return match leaf.array {
                ArrayArgument::Host(array) => Array::deal(array, Sharding::Replicated, &self.devices),
                ArrayArgument::Device(buffer) => Ok(Array::from(buffer)),
                ArrayArgument::Sharded(array) => Ok(array.clone()),
            };
        };
        let buffers = match self.shards(leaf, wanted)? {
            Shards::Given(buffers) => buffers.into_iter().cloned().enumerate().collect(),
            Shards::Made(buffers) => buffers.into_iter().enumerate().collect(),
            Shards::Resharded(array) => return Ok(array),
        };
        Array::from_parts(wanted.clone(), buffers)
    }

    /// The outputs of which each device has returned its shards.
    pub fn outputs(&self, by_device: Vec<Vec<Buffer>>) -> Result<Vec<Array>> {
        let mut lists: Vec<_> = by_device.into_iter().map(Vec::into_iter).collect();
        let output = |laid: &Laid| {
            let shards = lists.iter_mut().map(Iterator::next).collect::<Option<Vec<_>>>().unwrap_or_default();
            Array::from_parts(laid.clone(), shards.into_iter().enumerate().collect())
        };
        self.outputs.iter().map(output).collect()
    }
}

/// An array that the compiler and the artifact each say something of: its type and shape, on one device and as a whole, and its
/// sharding.
fn laid(
    place: &str,
    whole: Option<ArraySpec>,
    on_one: Option<ArraySpec>,
    compiled: Option<Sharding>,
    said: Option<Sharding>,
    devices: usize,
) -> Result<Laid> {
    let spec = match (whole, &on_one) {
        (Some(whole), _) => whole,
        (None, Some(on_one)) => whole_of(on_one, compiled.as_ref()),
        (None, None) => {
            return Err(Error::InvalidArgument(format!("the type and shape of {place} are not known")));
        }
    };
    let by = |sharding: Sharding| {
        Laid::new(spec.clone(), sharding, devices).map_err(|error| error.in_argument(place))
    };
    let laid = match (said.map(by).transpose()?, compiled.map(by).transpose()?) {
        (Some(said), Some(compiled)) if said.layout == compiled.layout => said,
        (_, Some(compiled)) => compiled,
        (Some(said), None) => said,
        (None, None) => by(Sharding::Replicated)?,
    };
    let shard = laid.shard_spec();
    if let Some(on_one) = on_one.filter(|on_one| *on_one != shard) {
        return Err(Error::InvalidArgument(format!(
            "{place} is {spec}, {}: {shard} on each device, and the compiler made it {on_one}",
            laid.sharding
        )));
    }
    Ok(laid)
}

/// The whole of what one device has.
fn whole_of(on_one: &ArraySpec, sharding: Option<&Sharding>) -> ArraySpec {
    let tiles = match sharding {
        Some(Sharding::Tiled(tiles)) => &tiles.tiles[..],
        _ => &[],
    };
    let parts = tiles.iter().copied().chain(std::iter::repeat(1));
    ArraySpec::new(
        on_one.dtype,
        on_one.shape.iter().zip(parts).map(|(size, parts)| size * parts).collect::<Vec<_>>(),
    )
}

/// The devices, for a message.
fn names(devices: &[Device]) -> String {
    let names: Vec<String> = devices.iter().map(Device::to_string).collect();
    names.join(", ")
}

impl<'a> Shards<'a> {
    /// Adds each device's shard to its list of arguments.
    pub fn append_to<'b>(&'b self, lists: &mut [Vec<Input<'b>>], is_donated: bool)
    where
        'a: 'b,
    {
        match self {
            Shards::Given(buffers) if is_donated => {
                add(lists, buffers.iter().map(|buffer| Input::Donate((*buffer).clone())))
            }
            Shards::Given(buffers) => add(lists, buffers.iter().copied().map(Input::Borrow)),
            Shards::Made(buffers) => add(lists, buffers.iter().map(|buffer| Input::Donate(buffer.clone()))),
            Shards::Resharded(array) => {
                add(lists, array.addressable_shards().map(|shard| Input::Borrow(shard.buffer)))
            }
        }
    }
}

fn add<'b>(lists: &mut [Vec<Input<'b>>], inputs: impl Iterator<Item = Input<'b>>) {
    lists.iter_mut().zip(inputs).for_each(|(list, input)| list.push(input));
}
