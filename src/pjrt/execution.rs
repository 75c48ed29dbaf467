//! Executions: executables run on buffers.

use std::collections::HashSet;
use std::sync::Arc;

use super::buffer::{Buffer, DonationClaim};
use super::event::Event;
use super::ffi;
use super::loaded_executable::LoadedExecutable;
use crate::array::ArraySpec;
use crate::error::{Error, Result};

/// An argument of an execution.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input<'a> {
    /// Only read: the buffer is as good as before.
    Borrow(&'a Buffer),
    /// Given away: where the program says so, an output takes its memory, and using the buffer (or a clone
    /// of it) afterwards is an error. One whose memory is shared with others (small tensors of one load, views) is only
    /// read.
    Donate(Buffer),
}

impl Input<'_> {
    /// The buffer.
    pub fn buffer(&self) -> &Buffer {
        match self {
            Input::Borrow(buffer) => buffer,
            Input::Donate(buffer) => buffer,
        }
    }

    /// Whether the buffer is as good as before when the call has ended.
    fn is_kept(&self) -> bool {
        match self {
            Input::Borrow(_) => true,
            Input::Donate(buffer) => buffer.is_view(),
        }
    }
}

/// A started execution.
#[derive(Debug)]
pub struct Execution {
    /// The outputs, one list a device. Their content is there when they are ready.
    pub outputs: Vec<Vec<Buffer>>,
    /// The end of the execution, one event a device.
    pub done: Vec<Event>,
}

impl LoadedExecutable {
    /// Starts the program with one list of arguments a device of [`LoadedExecutable::devices`]. Does not
    /// wait for it to end.
    ///
    /// Of an executable of a [`crate::Function`]'s, types and shapes are checked; of any other, the arguments are taken as they
    /// are.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the lists do not fit the devices, a buffer is another client's or was
    /// donated before; [`Error::Pjrt`] when the plugin refuses.
    pub fn execute(&self, arguments: &[Vec<Input<'_>>]) -> Result<Execution> {
        self.start(arguments, true)
    }

    /// Starts the program on its only device, and leaves it to the outputs to say when it has ended: what
    /// [`LoadedExecutable::execute`] does, with less to do.
    ///
    /// # Errors
    /// As for [`LoadedExecutable::execute`].
    pub(crate) fn execute_on_one(&self, arguments: Vec<Input<'_>>) -> Result<Vec<Buffer>> {
        // Without outputs, nothing but the end itself has the execution's error.
        let is_bare = self.outputs().is_empty();
        let execution = self.start(&[arguments], is_bare)?;
        if is_bare {
            execution.done.iter().try_for_each(Event::wait)?;
        }
        Ok(execution.outputs.into_iter().next().unwrap_or_default())
    }

    /// Starts the program on all of its devices, and leaves it to the outputs to say when it has ended: a list a device.
    ///
    /// # Errors
    /// As for [`LoadedExecutable::execute`].
    pub(crate) fn execute_on_all(&self, arguments: &[Vec<Input<'_>>]) -> Result<Vec<Vec<Buffer>>> {
        let is_bare = self.outputs().is_empty();
        let execution = self.start(arguments, is_bare)?;
        if is_bare {
            execution.done.iter().try_for_each(Event::wait)?;
        }
        Ok(execution.outputs)
    }

    /// Starts the program; without events, [`Execution::done`] is empty.
    fn start(&self, arguments: &[Vec<Input<'_>>], with_events: bool) -> Result<Execution> {
        self.check_arguments(arguments)?;
        let _claims = self.claim_donated(arguments)?;
        let raw = |input: &Input<'_>| input.buffer().raw();
        let lists: Vec<Vec<_>> = arguments.iter().map(|list| list.iter().map(raw).collect()).collect();
        // The plugin may use the memory of any argument whose position is not listed here.
        let is_kept = |position: &usize| arguments.iter().any(|list| list[*position].is_kept());
        let kept: Vec<i64> =
            (0..arguments[0].len()).filter(is_kept).map(|position| position as i64).collect();
        let mut options = ffi::PJRT_ExecuteOptions::new();
        options.non_donatable_input_indices = kept.as_ptr();
        options.num_non_donatable_input_indices = kept.len();
        let argument_lists: Vec<*const *mut ffi::PJRT_Buffer> =
            lists.iter().map(|list| list.as_ptr()).collect();
        let mut raw_outputs = vec![vec![std::ptr::null_mut(); self.outputs().len()]; lists.len()];
        let output_lists: Vec<*mut *mut ffi::PJRT_Buffer> =
            raw_outputs.iter_mut().map(|list| list.as_mut_ptr()).collect();
        let mut events = vec![std::ptr::null_mut(); if with_events { lists.len() } else { 0 }];
        let mut args = ffi::PJRT_LoadedExecutable_Execute_Args::new();
        args.executable = self.raw();
        args.options = &mut options;
        args.argument_lists = argument_lists.as_ptr();
        args.num_devices = lists.len();
        args.num_args = lists[0].len();
        args.output_lists = output_lists.as_ptr();
        if with_events {
            args.device_complete_events = events.as_mut_ptr();
        }
        // SAFETY: the lists hold buffers of this client that the caller keeps alive, one list for each device (checked
        // above); every list has the length that is passed with it and outlives the call; outputs and events are
        // handed over to us.
        let execution = unsafe {
            self.client()
                .api()
                .call(ffi::PJRT_LoadedExecutable_Execute, &mut args)
                .map_err(|error| error.about(self.name()))?;
            let own = |(raw, spec): (*mut ffi::PJRT_Buffer, &Arc<ArraySpec>)| {
                Buffer::from_raw(self.client(), raw, spec.clone())
            };
            let own_list = |list: Vec<_>| list.into_iter().zip(self.outputs()).map(own).collect::<Vec<_>>();
            let done = events.into_iter().map(|event| Event::from_raw(self.client(), event, "the execution"));
            Execution { outputs: raw_outputs.into_iter().map(own_list).collect(), done: done.collect() }
        };
        Ok(execution)
    }

    fn wrong_lists(&self, counts: &[usize]) -> Error {
        Error::InvalidArgument(format!(
            "`{}` runs on {} devices and takes one equally long list of arguments for each, but was given lists of \
             {counts:?}",
            self.name(),
            self.devices().len()
        ))
    }

    fn check_argument(&self, device: usize, position: usize, buffer: &Buffer) -> Result<()> {
        if buffer.client() != self.client() {
            return Err(self.refused(device, position, &"the buffer belongs to another client"));
        }
        if let Some(expected) = self.parameters().and_then(|parameters| parameters.get(position))
            && expected != buffer.spec()
        {
            let problem = format!("{expected} was expected, but {} was given", buffer.spec());
            return Err(self.refused(device, position, &problem));
        }
        buffer.check_alive().map_err(|error| self.refused(device, position, &error))
    }

    fn check_arguments(&self, arguments: &[Vec<Input<'_>>]) -> Result<()> {
        if arguments.len() != self.devices().len()
            || arguments.iter().any(|list| list.len() != arguments[0].len())
        {
            return Err(self.wrong_lists(&arguments.iter().map(Vec::len).collect::<Vec<_>>()));
        }
        // A buffer that is donated must not be in the list a second time.
        let mut donated: HashSet<*mut ffi::PJRT_Buffer> = HashSet::new();
        for (device, list) in arguments.iter().enumerate() {
            for (position, input) in list.iter().enumerate() {
                self.check_argument(device, position, input.buffer())?;
                if matches!(input, Input::Donate(_)) && !donated.insert(input.buffer().raw()) {
                    return Err(self.donated_twice(position));
                }
            }
        }
        if !donated.is_empty() {
            for (position, input) in arguments.iter().flat_map(|list| list.iter().enumerate()) {
                if matches!(input, Input::Borrow(_)) && donated.contains(&input.buffer().raw()) {
                    return Err(self.donated_twice(position));
                }
            }
        }
        Ok(())
    }

    /// Takes the buffers that are given away, until the plugin says what became of them.
    fn claim_donated<'a>(&self, arguments: &'a [Vec<Input<'_>>]) -> Result<Vec<DonationClaim<'a>>> {
        let mut claims = Vec::new();
        for (device, list) in arguments.iter().enumerate() {
            for (position, input) in list.iter().enumerate() {
                if let Input::Donate(buffer) = input
                    && !input.is_kept()
                {
                    claims.push(buffer.claim().map_err(|error| self.refused(device, position, &error))?);
                }
            }
        }
        Ok(claims)
    }

    fn refused(&self, device: usize, position: usize, why: &dyn std::fmt::Display) -> Error {
        Error::InvalidArgument(format!("argument {position} of `{}` on device {device}: {why}", self.name()))
    }

    fn donated_twice(&self, position: usize) -> Error {
        Error::InvalidArgument(format!(
            "argument {position} of `{}` is a buffer that is donated, and is an argument of this call twice; copy it \
             (copy_to), or do not donate it",
            self.name()
        ))
    }
}
