//! ONNX models: their weights, by name. Those are initializers and constants, of the model's graph and of the graphs within its
//! nodes; large ones can be in files beside the model. Nothing of the program is read. Held against models of `onnx` 1.23, and of
//! other exporters in Python packages.

mod tensor;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
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

/// How deep graphs are read that are within nodes of graphs.
const MAX_GRAPHS: usize = 32;

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
    /// Fields that were met.
    count: usize,
}

/// A node, as far as its constants and graphs need it.
#[derive(Default)]
struct Node {
    output: Option<String>,
    name: String,
    kind: String,
    tensors: Vec<TensorProto>,
    /// Where the graphs are that it has, by the names of the attributes.
    graphs: Vec<(String, std::ops::Range<usize>)>,
}

impl Model<'_> {
    /// Reads `ModelProto`: 2 `producer_name`, 3 `producer_version`, 7 `graph`, 14 `metadata_props`, 25 `functions`.
    fn read(&mut self) -> Result<(), Problem> {
        let end = self.cursor.rest();
        self.message(0..end, |model, field| match field {
            Field { number: 2, value: Value::Bytes(range) } => model.keep("producer_name", range),
            Field { number: 3, value: Value::Bytes(range) } => model.keep("producer_version", range),
            Field { number: 7, value: Value::Bytes(range) } => {
                model.has_graph = true;
                model.graph(range, "", 0)
            }
            Field { number: 14, value: Value::Bytes(range) } => model.property(range),
            Field { number: 25, value: Value::Bytes(range) } => model.graph_of_function(range),
            _ => Ok(()),
        })?;
        if self.has_graph { Ok(()) } else { Err("it has no graph; is it one?".into()) }
    }

    /// Reads a message's fields. What comes after is read from where it was.
    fn message(
        &mut self,
        range: std::ops::Range<usize>,
        mut take: impl FnMut(&mut Self, Field) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        let mut at = range.start;
        while at < range.end {
            self.count += 1;
            self.limits.check_nodes(self.count)?;
            let field = wire::field(&mut self.cursor, at..range.end)?;
            at = self.cursor.position();
            take(self, field)?;
        }
        Ok(())
    }

    fn text(&mut self, range: std::ops::Range<usize>) -> Result<String, Problem> {
        wire::text(&mut self.cursor, range)
    }

    fn keep(&mut self, key: &str, range: std::ops::Range<usize>) -> Result<(), Problem> {
        let text = self.text(range)?;
        self.metadata.insert(key.to_owned(), text);
        Ok(())
    }

    /// `StringStringEntryProto`: 1 `key`, 2 `value`.
    fn property(&mut self, range: std::ops::Range<usize>) -> Result<(), Problem> {
        let (key, value) = self.entry(range)?;
        self.metadata.insert(key, value);
        Ok(())
    }

    fn entry(&mut self, range: std::ops::Range<usize>) -> Result<(String, String), Problem> {
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

    /// `GraphProto`: 1 `node`, 5 `initializer`, 15 `sparse_initializer`. Names within it get the prefix.
    fn graph(&mut self, range: std::ops::Range<usize>, prefix: &str, depth: usize) -> Result<(), Problem> {
        if depth > MAX_GRAPHS {
            return Err(format!("its graphs are nested deeper than {MAX_GRAPHS} levels").into());
        }
        let mut nodes = 0;
        self.message(range, |model, field| match field {
            Field { number: 1, value: Value::Bytes(range) } => {
                nodes += 1;
                model.node(range, prefix, nodes - 1, depth)
            }
            Field { number: 5, value: Value::Bytes(range) } => {
                let tensor = model.tensor(range)?;
                let name = tensor.name.clone();
                model.add(tensor, format!("{prefix}{name}"))
            }
            Field { number: 15, .. } => {
                let why = "it is sparse, which is not read";
                model.left_out.push(LeftOut::new(format!("{prefix}(a sparse initializer)"), why));
                Ok(())
            }
            _ => Ok(()),
        })
    }

    /// `FunctionProto`: 1 `name`, 7 `node`.
    fn graph_of_function(&mut self, range: std::ops::Range<usize>) -> Result<(), Problem> {
        let (mut name, mut nodes) = (String::new(), Vec::new());
        self.message(range, |model, field| {
            match field {
                Field { number: 1, value: Value::Bytes(range) } => name = model.text(range)?,
                Field { number: 7, value: Value::Bytes(range) } => nodes.push(range),
                _ => {}
            }
            Ok(())
        })?;
        let prefix = format!("{name}.");
        nodes.into_iter().enumerate().try_for_each(|(position, range)| self.node(range, &prefix, position, 0))
    }

    /// `NodeProto`: 2 `output`, 3 `name`, 4 `op_type`, 5 `attribute`.
    fn node(
        &mut self,
        range: std::ops::Range<usize>,
        prefix: &str,
        position: usize,
        depth: usize,
    ) -> Result<(), Problem> {
        let mut node = Node::default();
        self.message(range, |model, field| {
            match field {
                Field { number: 2, value: Value::Bytes(range) } if node.output.is_none() => {
                    node.output = Some(model.text(range)?);
                }
                Field { number: 3, value: Value::Bytes(range) } => node.name = model.text(range)?,
                Field { number: 4, value: Value::Bytes(range) } => node.kind = model.text(range)?,
                Field { number: 5, value: Value::Bytes(range) } => model.attribute(range, &mut node)?,
                _ => {}
            }
            Ok(())
        })?;
        let name = if node.name.is_empty() { format!("{}_{position}", node.kind) } else { node.name };
        let output = node.output.unwrap_or_else(|| name.clone());
        let is_one = node.tensors.len() == 1;
        for (index, tensor) in node.tensors.into_iter().enumerate() {
            let name = if is_one { format!("{prefix}{output}") } else { format!("{prefix}{output}.{index}") };
            self.add(tensor, name)?;
        }
        for (attribute, range) in node.graphs {
            self.graph(range, &format!("{prefix}{name}.{attribute}."), depth + 1)?;
        }
        Ok(())
    }

    /// `AttributeProto`: 1 `name`, 5 `t`, 6 `g`, 10 `tensors`, 11 `graphs`.
    fn attribute(&mut self, range: std::ops::Range<usize>, node: &mut Node) -> Result<(), Problem> {
        let (mut name, mut graphs) = (String::new(), Vec::new());
        self.message(range, |model, field| {
            match field {
                Field { number: 1, value: Value::Bytes(range) } => name = model.text(range)?,
                Field { number: 5 | 10, value: Value::Bytes(range) } => {
                    node.tensors.push(model.tensor(range)?)
                }
                Field { number: 6 | 11, value: Value::Bytes(range) } => graphs.push(range),
                _ => {}
            }
            Ok(())
        })?;
        let is_one = graphs.len() == 1;
        let named = graphs
            .into_iter()
            .enumerate()
            .map(|(index, range)| (if is_one { name.clone() } else { format!("{name}.{index}") }, range));
        node.graphs.extend(named);
        Ok(())
    }

    /// Takes a tensor under a name, which those of other graphs can have too.
    fn add(&mut self, tensor: TensorProto, name: String) -> Result<(), Problem> {
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
