//! A checkpoint as a tree whose leaves are read one at a time.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;

use bytes::Bytes;

use crate::array::{ArraySpec, HostArray};
use crate::error::{Context, Result};
use crate::format::{Checkpoint, Format, LeftOut, PART_BYTES, Tensor, TensorReader};
use crate::plan::{Selected, Selection, select};
use crate::store::zeros;
use crate::store::{Digest, DigestCheck};
use crate::sub_byte::unpack;
use crate::tree::{Framework, KeyMap, Node, Tree, record};

/// What is taken of a checkpoint of any format, as a tree. Its leaves are read one at a time.
pub struct Source {
    checkpoint: Checkpoint,
    keys: KeyMap,
    framework: Framework,
    has_record: bool,
    /// In the order of the leaves, like the next two.
    tensors: Vec<Tensor>,
    specs: Vec<ArraySpec>,
    digests: Vec<Option<Digest>>,
    reader: TensorReader,
}

/// Opens a checkpoint of any format that is read, and takes what is selected of it. What is no array is kept in the tree
/// where it is text or bytes, and else left out with a warning, or refused if the selection is strict.
///
/// # Errors
/// As for [`Checkpoint::open`] and [`Source::new`].
pub fn open(path: impl AsRef<Path>, selection: &Selection) -> Result<Source> {
    Source::new(Checkpoint::open_within(path, selection.limits)?, selection)
}

impl Source {
    /// Takes what is selected of a checkpoint.
    ///
    /// # Errors
    /// [`crate::Error::Tree`] when the names or the structure record do not make a tree; [`crate::Error::Template`];
    /// [`crate::Error::NotFound`] for a pattern that matches nothing; [`crate::Error::Malformed`] where something is wanted
    /// that the file cannot have.
    pub fn new(checkpoint: Checkpoint, selection: &Selection) -> Result<Source> {
        let Selected { keys, framework, has_record, tensors } = select(&checkpoint, selection, &[])?;
        let mut recorded = checkpoint.digests()?;
        let digests = tensors.iter().map(|tensor| recorded.remove(&tensor.name)).collect();
        let tensors: Vec<Tensor> = tensors.into_iter().cloned().collect();
        let specs = tensors.iter().map(|tensor| tensor.spec.clone()).collect();
        // Several threads can each read one.
        let bytes = tensors.iter().filter_map(|tensor| tensor.decoded_bytes().ok());
        let total = bytes.fold(0, usize::saturating_add);
        let reader = TensorReader::new(&checkpoint)?.sharing(total);
        Ok(Source { checkpoint, keys, framework, has_record, tensors, specs, digests, reader })
    }

    /// The file, for messages.
    pub fn origin(&self) -> &str {
        self.checkpoint.origin()
    }

    /// The format that its content has.
    pub fn format(&self) -> Format {
        self.checkpoint.format()
    }

    /// All that the checkpoint holds.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The tree and the names of its leaves.
    pub fn keys(&self) -> &KeyMap {
        &self.keys
    }

    /// The types and shapes of the leaves, in JAX's order.
    pub fn specs(&self) -> &[ArraySpec] {
        &self.specs
    }

    /// The tensors of the checkpoint that are the leaves, in JAX's order, with the names that they have there.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tree with the sums over its nodes.
    pub fn tree(&self) -> Node {
        Node::build(self.keys.def(), &mut self.specs.iter())
    }

    /// The user's strings, where the format has any.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        record::strip(self.checkpoint.metadata())
    }

    /// The framework whose names these are.
    pub fn framework(&self) -> Framework {
        self.framework
    }

    /// Whether the tree came from a structure record.
    pub fn has_record(&self) -> bool {
        self.has_record
    }

    /// What of the file is no array and has no place in the tree.
    pub fn left_out(&self) -> &[LeftOut] {
        self.checkpoint.left_out()
    }

    /// Whether any part of the leaf at this position can be read by itself.
    pub(super) fn has_parts(&self, index: usize) -> bool {
        self.tensors[index].has_parts()
    }

    /// Reads a part of the leaf at this position, which has parts, from `start` of its bytes on. What the file holds of it
    /// goes through the check, if there is one.
    pub(super) fn read_part(
        &self,
        index: usize,
        start: usize,
        bytes: &mut [u8],
        check: Option<&mut DigestCheck<'_>>,
    ) -> Result<()> {
        self.reader.read_part(&self.tensors[index], start, bytes, check)
    }

    /// What the file records of the leaf at this position, if it does.
    pub fn recorded_digest(&self, index: usize) -> Option<&Digest> {
        self.digests[index].as_ref()
    }

    /// The bytes of the leaf at this position: row-major, little-endian, sub-byte elements packed.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Malformed`] when the data does not hold what the file says.
    pub fn read(&self, index: usize) -> Result<Bytes> {
        self.reader.read(&self.tensors[index])
    }

    /// As [`Source::read`]; holds the bytes against what the file records of them.
    ///
    /// # Errors
    /// As for [`Source::read`]; [`crate::Error::Malformed`] when they are not what was recorded.
    pub fn read_checked(&self, index: usize) -> Result<Bytes> {
        let Some(digest) = &self.digests[index] else { return self.read(index) };
        let mut check = digest.begin();
        let bytes = self.reader.read_with(&self.tensors[index], Some(&mut check))?;
        check.finish()?;
        Ok(bytes)
    }

    /// Logs a warning if a file was written to since it was opened.
    pub fn warn_if_changed(&self) {
        self.checkpoint.warn_if_changed();
    }

    /// All arrays, on the host: sub-byte elements take a byte each there.
    ///
    /// # Errors
    /// As for [`Source::read_checked`], naming the leaf.
    pub fn to_host(&self) -> Result<Tree<HostArray>> {
        let leaves = self.keys.leaves().iter().zip(&self.specs).enumerate();
        let array = |(index, (leaf, spec)): (usize, (&crate::tree::Leaf, &ArraySpec))| {
            let bytes = self.read_checked(index).for_tensor(&leaf.name)?;
            let bytes = match spec.dtype.is_sub_byte() {
                true => unpack(&bytes, spec.dtype, spec.host_bytes()?).into(),
                false => bytes,
            };
            HostArray::from_bytes(spec.clone(), bytes).for_tensor(&leaf.name)
        };
        let arrays = leaves.map(array).collect::<Result<Vec<_>>>()?;
        self.warn_if_changed();
        Tree::unflatten(self.keys.def().clone(), arrays)
    }

    /// Reads a leaf, into this memory if it has parts. After each part, `progress` is told its bytes, and may end the work.
    ///
    /// # Errors
    /// As for [`Source::read`]; [`crate::Error::InvalidArgument`] when the memory is not to be had; those of `progress`.
    pub fn read_lent<'a>(
        &self,
        index: usize,
        memory: &'a mut Vec<u8>,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<LeafBytes<'a>> {
        self.read_lent_against(None, index, memory, progress)
    }

    /// As [`Source::read_lent`]; holds the bytes against what the file records of them.
    pub(super) fn read_lent_checked<'a>(
        &self,
        index: usize,
        memory: &'a mut Vec<u8>,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<LeafBytes<'a>> {
        self.read_lent_against(self.recorded_digest(index), index, memory, progress)
    }

    fn read_lent_against<'a>(
        &self,
        digest: Option<&Digest>,
        index: usize,
        memory: &'a mut Vec<u8>,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<LeafBytes<'a>> {
        progress(0)?;
        let mut check = digest.map(Digest::begin);
        if !self.has_parts(index) {
            let bytes = self.reader.read_with(&self.tensors[index], check.as_mut())?;
            check.map_or(Ok(()), DigestCheck::finish)?;
            progress(bytes.len() as u64)?;
            return Ok(LeafBytes::Owned(bytes));
        }
        let size = self.specs[index].packed_bytes()?;
        if memory.len() < size {
            *memory = Vec::new();
            *memory = zeros(size)?;
        }
        let memory = &mut memory[..size];
        for start in (0..size).step_by(PART_BYTES) {
            let end = size.min(start + PART_BYTES);
            self.read_part(index, start, &mut memory[start..end], check.as_mut())?;
            progress((end - start) as u64)?;
        }
        check.map_or(Ok(()), DigestCheck::finish)?;
        Ok(LeafBytes::Lent(memory))
    }
}

/// The bytes of a leaf, where they are.
#[non_exhaustive]
pub enum LeafBytes<'a> {
    /// In memory of their own.
    Owned(Bytes),
    /// In memory that was lent for them. To read into the same memory again and again saves the system a good part of the
    /// work of reading: it need not make new pages each time.
    Lent(&'a [u8]),
}

impl Deref for LeafBytes<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            LeafBytes::Owned(bytes) => bytes,
            LeafBytes::Lent(bytes) => bytes,
        }
    }
}
