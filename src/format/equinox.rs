//! Equinox's files: what `equinox.tree_serialise_leaves` writes, NumPy's arrays one after another, without names. Many begin with
//! a line of JSON, which the user wrote there: the model's hyperparameters. Held against files of equinox 0.13.
//!
//! The leaves are those of the whole model that are arrays or numbers, in JAX's order. So they are a tuple here, which lays itself
//! over what an exported function takes, or over a template.

use std::path::Path;

use super::checkpoint::{Checkpoint, Extent, Extents, Format, LeftOut, RecordedStructure, Tensor};
use super::npy;
use super::problem::Problem;
use crate::error::Result;
use crate::limits::Limits;
use crate::store::{Blob, SharedBlob};
use crate::tree::{Framework, TreeDef};

/// What a file is, for errors.
const FORMAT: &str = "file of Equinox";

/// The name in the metadata of the line of JSON.
const FIRST_LINE: &str = "equinox.first_line";

/// The longest first line that is read, in bytes.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Whether a file has several arrays of NumPy's one after another, or one after a line of JSON, or is called like Equinox's.
///
/// # Errors
/// When it cannot be read.
pub(super) fn is_equinox(path: &Path, blob: &dyn Blob, head: &[u8]) -> Result<bool> {
    if head.first() == Some(&b'{') {
        return Ok(arrays_start(blob)?.is_some_and(|start| start > 0));
    }
    if !head.starts_with(npy::MAGIC) {
        return Ok(false);
    }
    if path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("eqx")) {
        return Ok(true);
    }
    let after = match array(blob, 0) {
        Ok(Some(Found { end, .. })) => end,
        Ok(None) | Err(Problem::Content(_)) => return Ok(false),
        Err(Problem::Unreadable(error)) => return Err(error),
    };
    Ok(blob.read(after..blob.size().min(after + npy::MAGIC.len()))? == npy::MAGIC)
}

/// Where the arrays begin: at once, or after a line of JSON; `None` where no array does.
fn arrays_start(blob: &dyn Blob) -> Result<Option<usize>> {
    let head = blob.head(MAX_LINE_BYTES)?;
    if head.starts_with(npy::MAGIC) {
        return Ok(Some(0));
    }
    let end = head.iter().position(|&byte| byte == b'\n').map(|end| end + 1);
    let end = end.filter(|_| head.first() == Some(&b'{'));
    let Some(end) = end else { return Ok(None) };
    let start = blob.read(end..blob.size().min(end + npy::MAGIC.len()))?;
    Ok((start == npy::MAGIC).then_some(end))
}

/// Opens a file as a tuple of its arrays.
///
/// # Errors
/// [`crate::Error::Malformed`]; [`crate::Error::Io`].
pub(super) fn open(blob: SharedBlob, limits: Limits) -> Result<Checkpoint> {
    let origin = blob.origin().to_owned();
    let (tensors, def, left_out) =
        read(&*blob, limits).map_err(|problem| problem.into_error(&origin, FORMAT))?;
    let start = arrays_start(&*blob)?.unwrap_or_default();
    let mut checkpoint = Checkpoint::new(&origin, Format::Equinox, vec![SharedBlob::clone(&blob)], tensors);
    checkpoint.structure = RecordedStructure::Tree(def, Framework::Equinox);
    checkpoint.left_out = left_out;
    if start > 0 {
        let line = blob.read(0..start)?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        checkpoint.metadata.insert(FIRST_LINE.to_owned(), line);
    }
    Ok(checkpoint)
}

type Opened = (Vec<Tensor>, TreeDef, Vec<LeftOut>);

fn read(blob: &dyn Blob, limits: Limits) -> Result<Opened, Problem> {
    let mut start = arrays_start(blob)?.ok_or("no array of NumPy's is where the first should be")?;
    let (mut tensors, mut nodes, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    while start < blob.size() {
        limits.check_nodes(nodes.len() + 1)?;
        let number = nodes.len();
        let place = || format!("its leaf {number}, at byte {start}");
        let found = array(blob, start).map_err(|problem| problem.at(place()))?;
        let Found { header, end } = found.ok_or_else(|| {
            format!("{}: it begins like no array of NumPy's, and nothing else can follow", place())
        })?;
        match header {
            Ok(npy::Announced { spec, data_start, encoding }) => {
                let extents = Extents::One(Extent { file: 0, range: start + data_start..end });
                tensors.push(Tensor { name: number.to_string(), spec, extents, encoding, checksum: None });
                nodes.push(TreeDef::LEAF);
            }
            Err(why) => {
                let refusal = format!("its leaf {number}: {why}");
                left_out.push(LeftOut::refused(number.to_string(), why, refusal));
                nodes.push(TreeDef::None);
            }
        }
        start = end;
    }
    Ok((tensors, TreeDef::Tuple(nodes), left_out))
}

/// An array within a file.
struct Found {
    /// Its header; why it is not read where its type is not known.
    header: Result<npy::Announced, String>,
    /// Where it ends, in bytes from the beginning of the file.
    end: usize,
}

/// The array that begins there; `None` where none does.
fn array(blob: &dyn Blob, start: usize) -> Result<Option<Found>, Problem> {
    let rest = blob.size() - start;
    let preamble = blob.read(start..start + rest.min(npy::PREAMBLE_BYTES))?;
    if !preamble.starts_with(npy::MAGIC) {
        return Ok(None);
    }
    let bytes = npy::header_bytes(&preamble)?;
    let head = blob.read(start..start + rest.min(bytes))?;
    let (header, size) = match npy::read_header(&head, None) {
        Ok(header) => {
            let size = header.spec.host_bytes()?;
            (Ok(header), size)
        }
        // What has a known number of bytes can be passed over.
        Err(npy::HeaderProblem::NoNumbers(why)) => {
            let size = npy::untyped_bytes(&head).ok_or_else(|| why.clone())?;
            (Err(why), size)
        }
        Err(npy::HeaderProblem::Damaged(problem)) => return Err(problem.into()),
    };
    let end = start.checked_add(bytes).and_then(|data| data.checked_add(size));
    match end.filter(|end| *end <= blob.size()) {
        Some(end) => Ok(Some(Found { header, end })),
        None => {
            Err(format!("it takes {size} bytes, but {} follow its header: it is cut off", rest - bytes)
                .into())
        }
    }
}
