//! Functions with symbolic dimensions that are compiled for few sizes: arguments are padded up to these.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::exported::Exported;
use super::recent::Recent;
use super::symbolic::{MAX_SIZE, Shapes, lock};
use crate::array::ArraySpec;
use crate::error::{Error, Result};

/// How many sizes are remembered with what they are padded to: a few numbers each.
const REMEMBERED: usize = 4096;

/// The sizes that dimension variables are padded to, and what it makes of the sizes of calls.
#[derive(Debug)]
pub struct Padding {
    /// In ascending order, none of them empty.
    sizes: BTreeMap<String, Vec<usize>>,
    placed: Mutex<Recent<Arc<Placed>>>,
}

/// What becomes of a call.
#[derive(Debug)]
pub struct Placed {
    /// The sizes of the arguments that the function runs with.
    pub padded: Shapes,
    /// The outputs without padding, where their sizes are known.
    pub outputs: Vec<Option<ArraySpec>>,
}

impl Padding {
    /// `None` where nothing is to be padded.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a variable that there is not, and one without sizes or with a size of 0.
    pub fn new(sizes: &BTreeMap<String, Vec<usize>>, exported: &Exported) -> Result<Option<Padding>> {
        let known = exported.dimension_variables();
        let mut sizes = sizes.clone();
        for (name, sizes) in &mut sizes {
            if !known.contains(name) {
                return Err(Error::InvalidArgument(format!(
                    "`{name}` is to be padded, and `{}` has no such dimension variable; it has {}",
                    exported.function_name,
                    known.join(", ")
                )));
            }
            sizes.sort_unstable();
            sizes.dedup();
            let is_size = |size: &usize| (1..=MAX_SIZE).contains(size);
            if sizes.is_empty() || !sizes.iter().all(is_size) {
                return Err(Error::InvalidArgument(format!(
                    "the sizes that `{name}` is padded to must be there, and from 1 to {MAX_SIZE}: {sizes:?}"
                )));
            }
        }
        let placed = Mutex::new(Recent::new(REMEMBERED));
        Ok((!sizes.is_empty()).then_some(Padding { sizes, placed }))
    }

    /// The size that a variable of this size is padded to.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where it is larger than all.
    pub fn padded(&self, name: &str, size: usize) -> Result<usize> {
        let Some(sizes) = self.sizes.get(name) else { return Ok(size) };
        sizes.iter().copied().find(|&padded| padded >= size).ok_or_else(|| {
            let largest = sizes.last().copied().unwrap_or(0);
            Error::InvalidArgument(format!(
                "`{name}` is {size}, and the largest size that it is padded to is {largest}"
            ))
        })
    }

    /// What becomes of a call with these sizes, found once and then remembered.
    ///
    /// # Errors
    /// Those of `find`.
    pub fn place(&self, shapes: &Shapes, find: impl FnOnce() -> Result<Placed>) -> Result<Arc<Placed>> {
        if let Some(placed) = lock(&self.placed).get(shapes) {
            return Ok(placed);
        }
        let placed = Arc::new(find()?);
        lock(&self.placed).insert(shapes, Arc::clone(&placed));
        Ok(placed)
    }

    /// Every combination of the sizes of these variables; `None` if one of them has any size.
    pub fn combinations(&self, variables: &[String]) -> Option<Vec<Vec<usize>>> {
        variables.iter().try_fold(vec![Vec::new()], |before, variable| {
            let sizes = self.sizes.get(variable)?;
            let with = |sizes_before: &Vec<usize>, size| [&sizes_before[..], &[size]].concat();
            Some(before.iter().flat_map(|before| sizes.iter().map(move |&size| with(before, size))).collect())
        })
    }
}
