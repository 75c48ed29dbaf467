//! The writer: what `flax.serialization.from_bytes` reads.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use rmp::encode;

use super::super::leaves::Leaves;
use super::{CHUNKED, EXT_COMPLEX, EXT_NDARRAY};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::store::{WriteOptions, write_atomically};
use crate::tree::{LeafKind, TreeDef};

/// The largest array that is written whole, in bytes; larger ones are in chunks (`MAX_CHUNK_SIZE` in Flax).
const MAX_CHUNK_BYTES: usize = 1 << 30;

type Sink<'a, 'f> = &'a mut BufWriter<&'f File>;

/// Writes the tree as Flax's state dictionaries are: lists and tuples as maps of positions, named tuples as
/// maps of fields.
pub(crate) fn write(tree: &mut dyn Leaves, target: &Path, options: WriteOptions) -> Result<()> {
    if let Some(note) = lost(tree.keys().def()) {
        tree.note(note);
    }
    let mut failed = None;
    write_atomically(target, options, |file| {
        let mut leaves = 0..tree.specs().len();
        let def = tree.keys().def().clone();
        node(&def, tree, &mut leaves, file, &mut failed)
    })
    .map_err(|error| failed.take().unwrap_or(error))
}

/// What Flax needs its own tree for to bring back.
fn lost(def: &TreeDef) -> Option<String> {
    fn is_lost(def: &TreeDef) -> bool {
        !matches!(
            def,
            TreeDef::Leaf(_) | TreeDef::None | TreeDef::Str(_) | TreeDef::Bytes(_) | TreeDef::Dict(_)
        ) || def.children().iter().any(|(_, child)| is_lost(child))
    }
    is_lost(def).then(|| {
        "lists, tuples and other nodes are maps in msgpack; flax.serialization.from_bytes needs a target tree to \
         bring them back"
            .to_owned()
    })
}

fn node(
    def: &TreeDef,
    tree: &mut dyn Leaves,
    leaves: &mut std::ops::Range<usize>,
    file: Sink<'_, '_>,
    failed: &mut Option<Error>,
) -> io::Result<()> {
    match def {
        TreeDef::None => encode::write_nil(file),
        TreeDef::Str(text) => string(text, file),
        TreeDef::Bytes(bytes) => {
            encode::write_bin_len(file, length(bytes.len())?).map_err(io::Error::from)?;
            file.write_all(bytes)
        }
        TreeDef::Leaf(kind) => {
            let index = leaves.next().unwrap_or_default();
            let spec = tree.specs()[index].clone();
            let mut written = Ok(());
            let read = tree.with_bytes(index, &mut |bytes| {
                written = leaf(*kind, &spec, bytes, file);
                Ok(())
            });
            if let Err(error) = read {
                *failed = Some(error);
                return Err(io::Error::other("a tensor could not be read"));
            }
            written
        }
        def => {
            let children = def.children();
            encode::write_map_len(file, length(children.len())?).map_err(io::Error::from)?;
            for (key, child) in children {
                string(&key.to_name(), file)?;
                node(child, tree, leaves, file, failed)?;
            }
            Ok(())
        }
    }
}

fn leaf(kind: LeafKind, spec: &ArraySpec, bytes: &[u8], file: Sink<'_, '_>) -> io::Result<()> {
    let is_scalar = |dtype| spec.dtype == dtype && spec.shape.is_empty();
    match (kind, bytes) {
        (LeafKind::Bool, [byte]) if is_scalar(DType::Bool) => encode::write_bool(file, *byte != 0),
        (LeafKind::Int, bytes) if is_scalar(DType::I64) => {
            let value: i64 = bytemuck::pod_read_unaligned(bytes);
            encode::write_sint(file, value).map(drop).map_err(io::Error::from)
        }
        (LeafKind::Float, bytes) if is_scalar(DType::F64) => {
            encode::write_f64(file, bytemuck::pod_read_unaligned(bytes)).map_err(io::Error::from)
        }
        (LeafKind::Complex, bytes) if is_scalar(DType::C64) => {
            let [real, imaginary]: [f32; 2] = bytemuck::pod_read_unaligned(bytes);
            let mut inner = Vec::new();
            encode::write_array_len(&mut inner, 2).map_err(io::Error::from)?;
            encode::write_f64(&mut inner, f64::from(real)).map_err(io::Error::from)?;
            encode::write_f64(&mut inner, f64::from(imaginary)).map_err(io::Error::from)?;
            encode::write_ext_meta(file, length(inner.len())?, EXT_COMPLEX).map_err(io::Error::from)?;
            file.write_all(&inner)
        }
        _ if bytes.len() > MAX_CHUNK_BYTES => chunked(spec, bytes, file),
        _ => array(spec, bytes, file),
    }
}

fn array(spec: &ArraySpec, bytes: &[u8], file: Sink<'_, '_>) -> io::Result<()> {
    let mut head = Vec::new();
    encode::write_array_len(&mut head, 3).map_err(io::Error::from)?;
    encode::write_array_len(&mut head, length(spec.shape.len())?).map_err(io::Error::from)?;
    for &dim in &spec.shape {
        encode::write_uint(&mut head, dim as u64).map_err(io::Error::from)?;
    }
    encode::write_str(&mut head, spec.dtype.name()).map_err(io::Error::from)?;
    encode::write_bin_len(&mut head, length(bytes.len())?).map_err(io::Error::from)?;
    encode::write_ext_meta(file, length(head.len() + bytes.len())?, EXT_NDARRAY).map_err(io::Error::from)?;
    file.write_all(&head)?;
    file.write_all(bytes)
}

fn chunked(spec: &ArraySpec, bytes: &[u8], file: Sink<'_, '_>) -> io::Result<()> {
    let width = spec.dtype.bits().div_ceil(8);
    encode::write_map_len(file, 3).map_err(io::Error::from)?;
    string(CHUNKED, file)?;
    encode::write_bool(file, true)?;
    string("shape", file)?;
    encode::write_map_len(file, length(spec.shape.len())?).map_err(io::Error::from)?;
    for (position, &dim) in spec.shape.iter().enumerate() {
        string(&position.to_string(), file)?;
        encode::write_uint(file, dim as u64).map_err(io::Error::from)?;
    }
    string("chunks", file)?;
    let chunks = bytes.chunks(MAX_CHUNK_BYTES / width * width);
    encode::write_map_len(file, length(chunks.len())?).map_err(io::Error::from)?;
    for (position, chunk) in chunks.enumerate() {
        string(&position.to_string(), file)?;
        array(&ArraySpec::new(spec.dtype, [chunk.len() / width]), chunk, file)?;
    }
    Ok(())
}

fn string(text: &str, file: Sink<'_, '_>) -> io::Result<()> {
    length(text.len())?;
    encode::write_str(file, text).map_err(io::Error::from)
}

/// A length as msgpack holds it.
fn length(length: usize) -> io::Result<u32> {
    u32::try_from(length).map_err(|_| io::Error::other("it is larger than msgpack can hold"))
}
