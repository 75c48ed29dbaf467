//! One executable, and how the leaves of a call become its parameters.

use super::argument::{ArrayArgument, LeafArgument};
use super::bind::{Slot, given};
use super::exported::{Aval, Exported};
use super::pad;
use super::partitioned::Partitioned;
use super::signature::{Interface, Signature};
use crate::array::{ArraySpec, HostArray};
use crate::cast::convert;
use crate::device_array::{Array, ArrayTransfer, Laid};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::pjrt::{Buffer, Device, Input, LoadedExecutable};

/// A program compiled for one set of shapes.
#[derive(Debug)]
pub struct Compiled {
    pub executable: LoadedExecutable,
    /// What the compiler says that `main` takes.
    pub interface: Option<Interface>,
    /// For each parameter of `main` after those that a call does not give: which leaf it is, and its type and shape,
    /// if they are known. `None` if what it takes is not known.
    taken: Option<Vec<(usize, Option<ArraySpec>)>>,
    /// Which of its platforms the program is on, as its first argument, on each device; empty for a program of one platform.
    platform_index: Vec<Buffer>,
    /// How its arrays lie on its devices, if these are several.
    pub partitioned: Option<Partitioned>,
}

impl Compiled {
    pub fn new(executable: LoadedExecutable, exported: Option<&Exported>) -> Result<Compiled> {
        let interface = Interface::of(executable.compiled());
        let taken = match (exported, &interface) {
            (Some(exported), _) => {
                let kept = exported.kept.iter();
                Some(kept.map(|&leaf| (leaf, exported.in_avals[leaf].to_spec())).collect())
            }
            (None, Some(interface)) => {
                Some(interface.parameters.iter().map(Aval::to_spec).enumerate().collect())
            }
            (None, None) => None,
        };
        if let Some(interface) = &interface
            && let Some(specs) = interface.parameters.iter().map(Aval::to_spec).collect::<Option<Vec<_>>>()
        {
            executable.expect_parameters(specs);
        }
        let platform_index =
            exported.map_or(Ok(Vec::new()), |exported| platform_index(exported, &executable))?;
        let is_partitioned = executable.devices().len() > 1;
        let partitioned = is_partitioned
            .then(|| {
                let not_given = usize::from(!platform_index.is_empty());
                Partitioned::new(&executable, exported, interface.as_ref(), not_given)
            })
            .transpose()?;
        Ok(Compiled { executable, interface, taken, platform_index, partitioned })
    }

    /// The device that the program runs on; `None` if there are several.
    pub fn device(&self) -> Option<&Device> {
        match self.executable.devices() {
            [device] => Some(device),
            _ => None,
        }
    }

    /// The leaves whose memory an output can take if they are donated, and the positions of those outputs.
    pub fn donations(&self) -> Vec<(usize, usize)> {
        let before = usize::from(!self.platform_index.is_empty());
        let donations = self.interface.iter().flat_map(|interface| &interface.donations);
        let leaf = |(position, output): &(usize, usize)| {
            Some((self.taken.as_ref()?.get(position.checked_sub(before)?)?.0, *output))
        };
        donations.filter_map(leaf).collect()
    }

    /// Runs the program on leaves that were checked. Does not wait for it to end. The signature, if there is one,
    /// says what the leaves are called.
    pub fn run(&self, slots: &[Slot<'_>], signature: Option<&Signature>) -> Result<Vec<Array>> {
        if let Some(partitioned) = &self.partitioned {
            return self.run_on_several(partitioned, slots, signature);
        }
        let buffers = self.run_on_one(&self.executable.devices()[0], slots, signature)?;
        Ok(buffers.into_iter().map(Array::from).collect())
    }

    fn run_on_one(
        &self,
        device: &Device,
        slots: &[Slot<'_>],
        signature: Option<&Signature>,
    ) -> Result<Vec<Buffer>> {
        let mut inputs = Vec::with_capacity(slots.len() + 1);
        inputs.extend(self.platform_index.iter().map(Input::Borrow));
        let Some(taken) = &self.taken else {
            // Everything that was given.
            for slot in slots {
                inputs.extend(given(slot).map(|leaf| prepare(leaf, leaf.spec(), device)).transpose()?);
            }
            return self.executable.execute_on_one(inputs);
        };
        for (index, spec) in taken {
            let leaf = leaf_at(slots, *index, signature)?;
            let wanted = spec.as_ref().unwrap_or(leaf.spec());
            let prepared = prepare(leaf, wanted, device);
            inputs.push(prepared.map_err(|error| error.in_argument(&place(*index, signature)))?);
        }
        self.executable.execute_on_one(inputs)
    }

    fn run_on_several(
        &self,
        partitioned: &Partitioned,
        slots: &[Slot<'_>],
        signature: Option<&Signature>,
    ) -> Result<Vec<Array>> {
        let Some(taken) = &self.taken else {
            return Err(Error::InvalidArgument(format!(
                "the plugin does not say what `{}` takes, so that only its executable() runs it on {} devices",
                self.executable.name(),
                partitioned.devices.len()
            )));
        };
        let shards = |((index, _), wanted): (&(usize, Option<ArraySpec>), &Laid)| {
            let leaf = leaf_at(slots, *index, signature)?;
            let shards = partitioned.shards(leaf, wanted);
            Ok((shards.map_err(|error| error.in_argument(&place(*index, signature)))?, leaf.is_donated))
        };
        let shards = taken.iter().zip(&partitioned.parameters).map(shards).collect::<Result<Vec<_>>>()?;
        let mut lists: Vec<Vec<Input<'_>>> = Vec::new();
        lists.resize_with(partitioned.devices.len(), Vec::new);
        lists.iter_mut().zip(&self.platform_index).for_each(|(list, index)| list.push(Input::Borrow(index)));
        shards.iter().for_each(|(shards, is_donated)| shards.append_to(&mut lists, *is_donated));
        partitioned.outputs(self.executable.execute_on_all(&lists)?)
    }
}

/// What a leaf is called.
fn place(index: usize, signature: Option<&Signature>) -> String {
    match signature {
        Some(signature) => signature.parameters[index].place.clone(),
        None => format!("argument {index}"),
    }
}

/// The leaf that was given at a position.
fn leaf_at<'a>(slots: &[Slot<'a>], index: usize, signature: Option<&Signature>) -> Result<LeafArgument<'a>> {
    let leaf = slots.get(index).and_then(given);
    leaf.ok_or_else(|| Error::InvalidArgument(format!("nothing was given for {}", place(index, signature))))
}

/// The leaf as a buffer of this type and shape on the device. What has to be made for that belongs to the call
/// alone, so that the call may use it up.
pub fn prepare<'a>(leaf: LeafArgument<'a>, wanted: &ArraySpec, device: &Device) -> Result<Input<'a>> {
    match leaf.array {
        ArrayArgument::Device(buffer) if buffer.spec() == wanted => {
            Ok(if leaf.is_donated { Input::Donate(buffer.clone()) } else { Input::Borrow(buffer) })
        }
        ArrayArgument::Device(buffer) => upload(&fit(&buffer.to_host()?, wanted)?, device).map(Input::Donate),
        // A function of one device takes what is on several if each has all of it, or by way of the host.
        ArrayArgument::Sharded(array) => upload(&fit(&array.to_host()?, wanted)?, device).map(Input::Donate),
        ArrayArgument::Host(array) if array.spec() == wanted => upload(array, device).map(Input::Donate),
        ArrayArgument::Host(array) => upload(&fit(array, wanted)?, device).map(Input::Donate),
    }
}

/// The array, converted and padded.
fn fit(array: &HostArray, wanted: &ArraySpec) -> Result<HostArray> {
    pad::pad(&convert(array, wanted.dtype)?, &wanted.shape)
}

/// The outputs of a padded call at the sizes that they have without padding, where these are known. What has to be cut comes
/// to the host, all at once, and goes back.
pub fn cut_back(
    outputs: Vec<Array>,
    specs: impl IntoIterator<Item = Option<ArraySpec>>,
) -> Result<Vec<Array>> {
    let start = |(array, spec): (Array, Option<ArraySpec>)| match spec.filter(|spec| spec != array.spec()) {
        Some(spec) => array.start_to_host().map(|transfer| (array, Some((spec, transfer)))),
        None => Ok((array, None)),
    };
    let started = outputs.into_iter().zip(specs).map(start).collect::<Result<Vec<_>>>()?;
    let finish = |(array, cut): (Array, Option<(ArraySpec, ArrayTransfer)>)| match cut {
        Some((spec, transfer)) => {
            upload(&pad::cut(&transfer.wait()?, &spec.shape)?, &array.device()?).map(Array::from)
        }
        None => Ok(array),
    };
    started.into_iter().map(finish).collect()
}

/// Starts copying an array to a device.
pub fn upload(array: &HostArray, device: &Device) -> Result<Buffer> {
    device.client().put_on(array, device)
}

/// The position of a platform among those that the program was lowered for; `None` for a program of one platform.
pub fn platform_position(exported: &Exported, platform: &str) -> Option<usize> {
    if exported.platforms.len() < 2 {
        return None;
    }
    // One that it was not lowered for is only let through where that check was left out, and takes the first.
    Some(exported.platforms.iter().position(|known| known == platform).unwrap_or(0))
}

/// That position, on each device.
fn platform_index(exported: &Exported, executable: &LoadedExecutable) -> Result<Vec<Buffer>> {
    let Some(position) = platform_position(exported, executable.client().platform_name()) else {
        return Ok(Vec::new());
    };
    let index =
        HostArray::from_bytes(ArraySpec::new(DType::I32, []), (position as i32).to_le_bytes().to_vec())?;
    executable.devices().iter().map(|device| upload(&index, device)).collect()
}

/// Refuses a platform that the function was not lowered for, as JAX does.
pub fn check_platform(exported: &Exported, platform: &str) -> Result<()> {
    let is_known = exported.platforms.iter().any(|known| known == platform);
    if is_known || !exported.has_check(Exported::PLATFORM_CHECK) || exported.platforms.is_empty() {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "`{}` was exported for {}, and this device is {platform}; export it with platforms=['{platform}', …]; to \
         compile it all the same: Program::for_any_platform, or `safejax compile --any-platform`",
        exported.function_name,
        exported.platforms.join(", ")
    )))
}
