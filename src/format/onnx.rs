//! ONNX models: their weights, by name. Those are initializers and constants, of the model's graph and of the graphs within its
//! nodes; large ones can be in files beside the model. Nothing of the program is read. Held against models of `onnx` 1.23, and of
//! other exporters in Python packages.

mod graph;
mod tensor;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use super::checkpoint::{Checkpoint, Format, LeftOut};
use super::folder::Folder;
use super::pool::Pool;
use super::problem::Problem;
use crate::error::Result;
use crate::limits::Limits;
use crate::store::{Cursor, SharedBlob};
use tensor::{Found, TensorProto};
use wire::{Field, Value};

/// What a file is, for errors.
const FORMAT: &str = "ONNX model";

/// What the names of models end with: nothing else tells one.
pub(super) const ENDING: &str = "onnx";

/// Opens a model; the files beside it are in the directory of this path.
///
/// # Errors
/// [`crate::Error::Malformed`]; [`crate::Error::Io`].
pub(super) fn open(path: &Path, blob: SharedBlob, limits: Limits) -> Result<Checkpoint> {
    let origin = blob.origin().to_owned();
    let directory = path.parent().unwrap_or(Path::new(""));
    let mut model = Model {
        cursor: Cursor::new(SharedBlob::clone(&blob)),
        limits,
        pool: Pool::new(&origin, vec![blob]),
        external: Folder::new(directory, limits),
        found: Vec::new(),
        names: BTreeSet::new(),
        left_out: Vec::new(),
        metadata: BTreeMap::new(),
        has_graph: false,
        count: 0,
    };
    model.read().map_err(|problem| problem.into_error(&origin, FORMAT))?;
    let Model { pool, external, found, left_out, metadata, .. } = model;
    let mut blobs = pool.into_blobs();
    let first = blobs.len();
    blobs.extend(external.into_blobs());
    let tensors = found.into_iter().map(|found| found.into_tensor(first)).collect();
    let mut checkpoint = Checkpoint::new(&origin, Format::Onnx, blobs, tensors);
    checkpoint.left_out = left_out;
    checkpoint.metadata = metadata;
    Ok(checkpoint)
}

/// A model while it is read.
struct Model<'a> {
    cursor: Cursor,
    limits: Limits,
    /// The model's file, and what is not in it as it is.
    pool: Pool<'a>,
    /// The files beside it.
    external: Folder,
    found: Vec<Found>,
    names: BTreeSet<String>,
    left_out: Vec<LeftOut>,
    metadata: BTreeMap<String, String>,
    has_graph: bool,
    /// Tensors, graphs and such, each of which takes memory.
    count: usize,
}

impl Model<'_> {
    /// Reads `ModelProto`: 2 `producer_name`, 3 `producer_version`, 7 `graph`, 14 `metadata_props`, 20 `training_info`, 25
    /// `functions`.
    fn read(&mut self) -> Result<(), Problem> {
        let end = self.cursor.rest();
        let mut trainings = 0;
        self.message(0..end, |model, field| match field {
            Field { number: 2, value: Value::Bytes(range) } => model.keep("producer_name", range),
            Field { number: 3, value: Value::Bytes(range) } => model.keep("producer_version", range),
            Field { number: 7, value: Value::Bytes(range) } => {
                model.has_graph = true;
                model.graph(range, "", 0)
            }
            Field { number: 14, value: Value::Bytes(range) } => model.property(range),
            Field { number: 20, value: Value::Bytes(range) } => {
                trainings += 1;
                model.training(range, trainings - 1)
            }
            Field { number: 25, value: Value::Bytes(range) } => model.function(range),
            _ => Ok(()),
        })?;
        if self.has_graph { Ok(()) } else { Err("it has no graph; is it one?".into()) }
    }

    /// Reads a message's fields. What comes after is read from where it was.
    fn message(
        &mut self,
        range: Range<usize>,
        mut take: impl FnMut(&mut Self, Field) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let mut at = range.start;
        while at < range.end {
            let field = wire::field(&mut self.cursor, at..range.end)?;
            at = self.cursor.position();
            take(self, field)?;
        }
        Ok(())
    }

    /// Counts something that takes memory.
    fn count(&mut self) -> Result<(), Problem> {
        self.count += 1;
        Ok(self.limits.check_nodes(self.count)?)
    }

    /// A name.
    fn name(&mut self, range: Range<usize>) -> Result<String, Problem> {
        let at = range.start;
        let name = String::from_utf8(wire::text(&mut self.cursor, range)?);
        Ok(name.map_err(|_| format!("the name at byte {at} is not UTF-8"))?)
    }

    /// A text on which nothing depends.
    fn text(&mut self, range: Range<usize>) -> Result<String, Problem> {
        Ok(String::from_utf8_lossy(&wire::text(&mut self.cursor, range)?).into_owned())
    }

    fn keep(&mut self, key: &str, range: Range<usize>) -> Result<(), Problem> {
        let text = self.text(range)?;
        self.metadata.insert(key.to_owned(), text);
        Ok(())
    }

    /// `StringStringEntryProto`: 1 `key`, 2 `value`.
    fn property(&mut self, range: Range<usize>) -> Result<(), Problem> {
        let (key, value) = self.entry(range)?;
        self.metadata.insert(key, value);
        Ok(())
    }

    fn entry(&mut self, range: Range<usize>) -> Result<(String, String), Problem> {
        let mut entry = (String::new(), String::new());
        self.message(range, |model, field| {
            match field {
                Field { number: 1, value: Value::Bytes(range) } => entry.0 = model.text(range)?,
                Field { number: 2, value: Value::Bytes(range) } => entry.1 = model.text(range)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(entry)
    }

    /// Takes a tensor under a name, which those of other graphs can have too.
    fn add(&mut self, tensor: TensorProto, name: String) -> Result<(), Problem> {
        self.count()?;
        if !self.names.insert(name.clone()) {
            return Err(format!("it has two tensors of the name `{name}`").into());
        }
        if tensor.is_text() {
            self.left_out.push(LeftOut::new(name, "its elements are texts"));
            return Ok(());
        }
        match tensor.find(name.clone(), &mut self.cursor, &mut self.pool, &mut self.external) {
            Ok(found) => self.found.push(found),
            Err(Problem::Content(problem)) => self.left_out.push(LeftOut::unreadable(name, problem)),
            Err(unreadable) => return Err(unreadable),
        }
        Ok(())
    }
}
