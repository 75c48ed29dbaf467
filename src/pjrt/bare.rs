//! What the C API itself costs, for benches to compare with.

use std::time::{Duration, Instant};

use super::buffer::Buffer;
use super::event::Event;
use super::execution::Input;
use super::ffi;
use super::loaded_executable::LoadedExecutable;
use crate::error::Result;

impl LoadedExecutable {
    /// How long each of `rounds` executions takes, until its outputs are there and freed again, with no check, no
    /// allocation and no handle of ours.
    #[doc(hidden)]
    pub fn time_bare_executions(&self, arguments: &[&Buffer], rounds: usize) -> Result<Vec<Duration>> {
        // Checks the arguments once.
        self.execute_on_one(arguments.iter().copied().map(Input::Borrow).collect())?;
        let list: Vec<_> = arguments.iter().map(|buffer| buffer.raw()).collect();
        let kept: Vec<i64> = (0..list.len() as i64).collect();
        let mut options = ffi::PJRT_ExecuteOptions::new();
        options.non_donatable_input_indices = kept.as_ptr();
        options.num_non_donatable_input_indices = kept.len();
        let mut outputs = vec![std::ptr::null_mut(); self.outputs().len()];
        let (argument_lists, output_lists) = ([list.as_ptr()], [outputs.as_mut_ptr()]);
        let mut args = ffi::PJRT_LoadedExecutable_Execute_Args::new();
        args.executable = self.raw();
        args.options = &mut options;
        args.argument_lists = argument_lists.as_ptr();
        args.num_devices = 1;
        args.num_args = list.len();
        args.output_lists = output_lists.as_ptr();
        let mut round = || {
            let started = Instant::now();
            // SAFETY: the executable and its arguments are alive, and have passed the checks of the execution above;
            // the lists outlive the call; each output is ours, and destroyed once, after it is there.
            unsafe {
                self.client().api().call(ffi::PJRT_LoadedExecutable_Execute, &mut args)?;
                for &output in &outputs {
                    let mut ready = ffi::PJRT_Buffer_ReadyEvent_Args::new();
                    ready.buffer = output;
                    self.client().api().call(ffi::PJRT_Buffer_ReadyEvent, &mut ready)?;
                    Event::from_raw(self.client(), ready.event, "the execution").wait()?;
                    let mut destroy = ffi::PJRT_Buffer_Destroy_Args::new();
                    destroy.buffer = output;
                    self.client().api().call(ffi::PJRT_Buffer_Destroy, &mut destroy)?;
                }
            }
            Ok(started.elapsed())
        };
        (0..rounds).map(|_| round()).collect()
    }
}
