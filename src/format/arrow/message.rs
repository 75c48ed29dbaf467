//! Messages: a FlatBuffer that says what follows, and the body that follows.

use std::ops::Range;

use crate::flatbuffer::{Budget, Table};
use crate::format::problem::Problem;
use crate::store::Cursor;

/// What a message begins with since Arrow 0.15; before, its length.
const CONTINUATION: u32 = u32::MAX;

/// The longest description of what follows, in bytes: it grows with the number of columns.
const MAX_METADATA_BYTES: usize = 64 << 20;

/// A message.
pub struct Message {
    /// The FlatBuffer.
    pub metadata: Vec<u8>,
    /// Where the body is in the file.
    pub body: Range<usize>,
}

/// What a message is about.
pub enum Header {
    Schema,
    DictionaryBatch,
    RecordBatch,
    Tensor,
    SparseTensor,
}

/// Whether bytes begin like a message.
pub fn begins(head: &[u8]) -> bool {
    let number =
        |at: usize| head.get(at..at + 4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]]));
    // Its length, and the offset of the FlatBuffer's root, which is small.
    number(0) == Some(CONTINUATION)
        && number(4).is_some_and(|length| length > 0 && length as usize <= MAX_METADATA_BYTES)
        && number(8).is_some_and(|root| root < 64)
}

/// What follows a message.
pub enum Next {
    Message(Message),
    /// The mark of the end.
    Mark,
    /// The end of the file.
    Nothing,
}

/// What comes next.
///
/// # Errors
/// What is wrong with it.
pub fn next(cursor: &mut Cursor) -> Result<Next, Problem> {
    if cursor.rest() == 0 {
        return Ok(Next::Nothing);
    }
    let first = u32::from_le_bytes(cursor.array()?);
    let length = if first == CONTINUATION { u32::from_le_bytes(cursor.array()?) } else { first };
    let length = length as usize;
    if length == 0 {
        return Ok(Next::Mark);
    }
    if length > MAX_METADATA_BYTES {
        return Err(format!(
            "a message is described in {length} bytes, and {MAX_METADATA_BYTES} are the most"
        )
        .into());
    }
    let metadata = cursor.read_vec(length)?;
    let budget = Budget::of(&metadata);
    let bytes = Table::root(&metadata, &budget)?.i64(BODY_LENGTH)?.unwrap_or(0);
    let bytes = usize::try_from(bytes).map_err(|_| format!("a message has a body of {bytes} bytes"))?;
    let body = cursor.skip(bytes)?;
    Ok(Next::Message(Message { metadata, body }))
}

/// The fields of a message (`Message.fbs`).
const KIND: usize = 1;
const HEADER: usize = 2;
const BODY_LENGTH: usize = 3;

impl Message {
    /// What it is about; `None` for something that later versions have.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn header<'a>(&'a self, budget: &'a Budget) -> Result<Option<(Header, Table<'a>)>, Problem> {
        let message = Table::root(&self.metadata, budget)?;
        let kind = match message.u8(KIND)?.unwrap_or(0) {
            1 => Header::Schema,
            2 => Header::DictionaryBatch,
            3 => Header::RecordBatch,
            4 => Header::Tensor,
            5 => Header::SparseTensor,
            _ => return Ok(None),
        };
        let header = message.table(HEADER)?.ok_or("it says nothing of what it is about")?;
        Ok(Some((kind, header)))
    }
}
