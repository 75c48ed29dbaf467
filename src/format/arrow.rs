//! Arrow's IPC files and streams (Feather is such a file): columns of tensors of one shape, and of numbers, each of which is an array
//! whose first dimension is that of the rows; and tensors by themselves, which have no names. Source: the specification of Arrow's
//! columnar format 1.5 (arrow.apache.org/docs/format). Held against files of pyarrow 26.

mod batch;
mod column;
mod message;
mod tensor;

use std::collections::BTreeMap;

use super::checkpoint::{Checkpoint, Format, LeftOut, RecordedStructure, Tensor};
use super::pool::Pool;
use super::problem::Problem;
use crate::error::Result;
use crate::flatbuffer::{Budget, Table};
use crate::limits::Limits;
use crate::store::{Cursor, SharedBlob};
use crate::tree::{Framework, KeyMap, TreeDef};
use batch::Rows;
use message::{Header, Message, Next};

/// What a file is, for errors.
const FORMAT: &str = "Arrow file";

/// What a file begins with, which a stream does not.
const MAGIC: &[u8] = b"ARROW1\0\0";

/// What a file ends with.
const END: &[u8] = b"ARROW1";

/// Whether a file begins like one, or like a stream or a tensor: with a message.
pub(super) fn begins(head: &[u8]) -> bool {
    head.starts_with(MAGIC) || message::begins(head)
}

/// Opens a file, a stream, or tensors one after another.
///
/// # Errors
/// [`crate::Error::Malformed`]; [`crate::Error::Io`].
pub(super) fn open(blob: SharedBlob, limits: Limits) -> Result<Checkpoint> {
    let origin = blob.origin().to_owned();
    let mut reader = Reader {
        cursor: Cursor::new(SharedBlob::clone(&blob)),
        limits,
        pool: Pool::new(&origin, vec![blob]),
        rows: None,
        tensors: Vec::new(),
        left_out: Vec::new(),
        count: 0,
    };
    let read = reader.read().and_then(|()| reader.into_checkpoint(&origin));
    read.map_err(|problem| problem.into_error(&origin, FORMAT))
}

struct Reader<'a> {
    cursor: Cursor,
    limits: Limits,
    pool: Pool<'a>,
    /// Of a table; there is none where tensors are by themselves.
    rows: Option<Rows>,
    tensors: Vec<Tensor>,
    left_out: Vec<LeftOut>,
    /// Messages, columns and their parts so far.
    count: usize,
}

impl<'a> Reader<'a> {
    fn read(&mut self) -> Result<(), Problem> {
        let mut magic = vec![0; MAGIC.len().min(self.cursor.rest())];
        std::io::Read::read_exact(&mut self.cursor, &mut magic)
            .map_err(|error| Problem::of_stream(error, "its beginning cannot be read"))?;
        let is_file = magic == MAGIC;
        if is_file {
            let blob = self.cursor.blob();
            let end = blob.read(blob.size().saturating_sub(END.len())..blob.size())?;
            if end != END {
                return Err("it does not end as it begins: it is cut off".into());
            }
        } else {
            self.cursor.go_to(0);
        }
        for number in 0.. {
            self.count(1)?;
            match message::next(&mut self.cursor)? {
                Next::Message(message) => {
                    self.take(&message)
                        .map_err(|problem| problem.at(format_args!("its message {number}")))?;
                }
                Next::Mark => break,
                Next::Nothing => {
                    self.warn_of_end();
                    break;
                }
            }
        }
        if !is_file {
            self.leave_out_rest();
        }
        Ok(())
    }

    /// Tells of rows that end with the file: nothing says that these are all. Tensors by themselves have no mark.
    fn warn_of_end(&mut self) {
        if self.rows.is_some() {
            let why = "the file has no mark of its end; rows may be missing";
            self.left_out.push(LeftOut::new("(the rest of the file)", why));
        }
    }

    /// Tells of what follows the end of a stream. Of a file, its table of contents does.
    fn leave_out_rest(&mut self) {
        let rest = self.cursor.rest();
        if rest > 0 {
            let why = format!("{rest} bytes follow the end of the stream, perhaps another one");
            self.left_out.push(LeftOut::new("(the rest of the file)", why));
        }
    }

    fn take(&mut self, message: &Message) -> Result<(), Problem> {
        let budget = Budget::of(&message.metadata);
        let Some((kind, header)) = message.header(&budget)? else { return Ok(()) };
        match kind {
            Header::Schema => {
                if self.rows.is_some() {
                    return Err("there are two descriptions of its columns".into());
                }
                let rows = Rows::of_schema(header)?;
                self.count(rows.columns())?;
                self.rows = Some(rows);
            }
            Header::RecordBatch => {
                let columns = self.rows.as_ref().map(Rows::columns);
                self.count(columns.ok_or("rows come before a description of their columns")?)?;
                let Reader { cursor, limits, pool, rows, .. } = self;
                if let Some(rows) = rows {
                    rows.add(header, message.body.clone(), (cursor.blob(), *limits), pool)?;
                }
            }
            // Of texts, mostly, by their numbers.
            Header::DictionaryBatch => {}
            Header::Tensor => {
                let name = self.tensors.len().to_string();
                self.tensors.push(tensor::read(header, name, &message.body)?);
            }
            Header::SparseTensor => {
                let why = "it is a sparse tensor, which is not read".to_owned();
                self.left_out.push(LeftOut::refused("(a sparse tensor)", &why, why.clone()));
            }
        }
        Ok(())
    }

    fn count(&mut self, more: usize) -> Result<(), Problem> {
        self.count += more;
        Ok(self.limits.check_nodes(self.count)?)
    }

    fn into_checkpoint(self, origin: &str) -> Result<Checkpoint, Problem> {
        let Reader { pool, rows, mut tensors, mut left_out, .. } = self;
        let (def, metadata) = match rows {
            Some(rows) => {
                let (found, metadata) = rows.finish(&mut left_out)?;
                let names: Vec<&str> = found.iter().map(|tensor| tensor.name.as_str()).collect();
                let (keys, order) = KeyMap::place_names_or_flat(&names).map_err(|error| error.to_string())?;
                tensors = order.iter().map(|&position| found[position].clone()).collect();
                (keys.def().clone(), metadata)
            }
            None => match &mut tensors[..] {
                [] if left_out.is_empty() => return Err("there are neither columns nor tensors in it".into()),
                [tensor] => {
                    tensor.name = String::new();
                    (TreeDef::LEAF, BTreeMap::new())
                }
                several => (TreeDef::Tuple(vec![TreeDef::LEAF; several.len()]), BTreeMap::new()),
            },
        };
        let mut checkpoint = Checkpoint::new(origin, Format::Arrow, pool.into_blobs(), tensors);
        checkpoint.structure = RecordedStructure::Tree(def, Framework::Plain);
        checkpoint.left_out = left_out;
        checkpoint.metadata = metadata;
        Ok(checkpoint)
    }
}

/// The texts of a table's metadata, in this field.
fn metadata_of(table: Table<'_>, slot: usize) -> Result<BTreeMap<String, String>, String> {
    let entry = |entry: Table<'_>| {
        let text = |slot| Ok::<_, String>(entry.string(slot)?.unwrap_or_default().to_owned());
        Ok((text(0)?, text(1)?))
    };
    table.tables(slot)?.into_iter().map(entry).collect()
}
