//! Bundles, compiled: a call runs in the smallest bucket that it fits into.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::artifact::Program;
use super::bind::{Sizes, Slot};
use super::bundle::{Bundle, at_sizes};
use super::compile::compile_static;
use super::compiled::{Compiled, cut_back};
use super::exported::Exported;
use super::signature::Signature;
use crate::device_array::Array;
use crate::error::{Error, Result};
use crate::pjrt::{Client, CompileOptions};

/// The buckets of a bundle, each compiled when it is first needed.
#[derive(Debug)]
pub struct Buckets {
    bundle: Arc<Bundle>,
    origin: String,
    client: Client,
    options: CompileOptions,
    compiled: Vec<OnceLock<Compiled>>,
    /// Held while one is compiled, so that calls from several threads do not compile it twice.
    compiling: Mutex<()>,
}

impl Buckets {
    pub fn new(client: &Client, program: &Program, bundle: Arc<Bundle>, options: &CompileOptions) -> Buckets {
        let compiled = bundle.buckets.iter().map(|_| OnceLock::new()).collect();
        Buckets {
            bundle,
            origin: program.origin().to_owned(),
            client: client.clone(),
            options: options.clone(),
            compiled,
            compiling: Mutex::new(()),
        }
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The function with names for the dimensions that differ.
    pub fn signature(&self) -> Arc<Exported> {
        self.bundle.signature.clone()
    }

    /// A bucket's executable, compiled now if it was not yet.
    pub fn compiled(&self, index: usize) -> Result<&Compiled> {
        if let Some(compiled) = self.compiled[index].get() {
            return Ok(compiled);
        }
        let _guard = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = self.compiled[index].get() {
            return Ok(compiled);
        }
        let exported = &self.bundle.buckets[index].exported;
        let compiled = compile_static(&self.client, exported, &self.origin, &self.options)?;
        Ok(self.compiled[index].get_or_init(|| compiled))
    }

    pub fn compile_all(&self) -> Result<()> {
        (0..self.compiled.len()).try_for_each(|index| self.compiled(index).map(|_| ()))
    }

    /// Runs the function in the smallest bucket for these sizes. Does not wait for it to end, unless outputs have
    /// to be cut back.
    pub fn run(
        &self,
        slots: &[Slot<'_>],
        sizes: &Sizes<'_>,
        signature: Option<&Signature>,
    ) -> Result<Vec<Array>> {
        let refuse = |problems: Vec<String>| Error::Arguments {
            program: self.bundle.signature.function_name.clone(),
            problems,
        };
        let wanted = self.bundle.in_order(sizes).map_err(refuse)?;
        let index = self.bundle.smallest_for(&wanted).map_err(|problem| refuse(vec![problem]))?;
        let outputs = self.compiled(index)?.run(slots, signature)?;
        let at_wanted = |aval| at_sizes(aval, &self.bundle.dims, &wanted).ok()?.to_spec();
        cut_back(outputs, self.bundle.signature.out_avals.iter().map(at_wanted))
    }
}
