//! The handles that were handed out. None is an address: what is used after it is gone is noticed, whatever it is used for,
//! and no number is used twice.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustc_hash::FxHashMap;

use crate::c_api as c;
use crate::calls::{lock, plugin};
use crate::failure::{Failure, Result};

/// What a handle stands for.
pub trait Object: Any + Send + Sync {
    /// The C API's type.
    type Raw;
    /// Its name in messages.
    const NAME: &'static str;
}

impl Object for Failure {
    type Raw = c::PJRT_Error;
    const NAME: &'static str = "error";
}

#[derive(Default)]
pub struct Objects {
    given: AtomicUsize,
    alive: Mutex<FxHashMap<usize, Entry>>,
}

/// The name of an object's kind, and the object.
type Entry = (&'static str, Arc<dyn Any + Send + Sync>);

/// What the first handle's number is: no address of the process, so that nobody gets by with reading there.
const FIRST: usize = 0x5AFE_0000_0000_0000;

impl Objects {
    /// A handle for the caller.
    pub fn give<T: Object>(&self, object: impl Into<Arc<T>>) -> *mut T::Raw {
        let handle = FIRST + 16 * (1 + self.given.fetch_add(1, Ordering::SeqCst));
        lock(&self.alive).insert(handle, (T::NAME, object.into()));
        std::ptr::without_provenance_mut(handle)
    }

    /// What a handle stands for.
    pub fn get<T: Object>(&self, handle: *const T::Raw) -> Result<Arc<T>> {
        let found = lock(&self.alive).get(&handle.addr()).map(|(_, object)| Arc::clone(object));
        found.and_then(|object| object.downcast().ok()).ok_or_else(|| unknown::<T>(handle.addr()))
    }

    /// Takes a handle back.
    pub fn take<T: Object>(&self, handle: *const T::Raw) -> Result<Arc<T>> {
        let object = self.get::<T>(handle)?;
        lock(&self.alive).remove(&handle.addr());
        Ok(object)
    }

    /// How many there are, by kind.
    pub fn alive(&self) -> BTreeMap<String, usize> {
        let mut count = BTreeMap::new();
        for (name, _) in lock(&self.alive).values() {
            *count.entry((*name).to_owned()).or_default() += 1;
        }
        count
    }
}

fn unknown<T: Object>(handle: usize) -> Failure {
    let what = match handle {
        0 => format!("the {} is null", T::NAME),
        _ => format!("{handle:#x} is no {} that is alive", T::NAME),
    };
    plugin().violation(&what);
    Failure::invalid(what)
}
