//! Protocol buffers as they are in a file: fields are read one at a time, and what they hold is passed over until it is asked for,
//! so that the weights of a model are not read to find them.

use std::ops::Range;

use super::super::problem::Problem;
use crate::store::Cursor;

/// A field of a message.
pub struct Field {
    pub number: u32,
    pub value: Value,
}

/// What a field holds.
#[derive(Clone)]
pub enum Value {
    /// A number, of whatever form.
    Number(u64),
    /// Text, bytes, a message or packed numbers: where they are.
    Bytes(Range<usize>),
    /// Four or eight bytes: where they are.
    Fixed(Range<usize>),
}

/// The longest text that is read, in bytes.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Reads the field at the beginning of this range of a message, and goes to its end.
///
/// # Errors
/// That it is no field, or reaches over the range.
pub fn field(cursor: &mut Cursor, range: Range<usize>) -> Result<Field, Problem> {
    cursor.go_to(range.start);
    let key = varint(cursor)?;
    let number = u32::try_from(key >> 3).ok().filter(|number| *number > 0);
    let number =
        number.ok_or_else(|| format!("there is no field at byte {}; is it a model?", range.start))?;
    let value = match key & 7 {
        0 => Value::Number(varint(cursor)?),
        1 => Value::Fixed(cursor.skip(8)?),
        2 => {
            let length = varint(cursor)?;
            let length = usize::try_from(length).map_err(|_| format!("a field has {length} bytes"))?;
            Value::Bytes(cursor.skip(length)?)
        }
        5 => Value::Fixed(cursor.skip(4)?),
        kind => {
            return Err(format!("a field at byte {} is of kind {kind}; is it a model?", range.start).into());
        }
    };
    if cursor.position() > range.end {
        let (start, end) = (range.start, range.end);
        return Err(
            format!("the field at byte {start} reaches over byte {end}, where its message ends").into()
        );
    }
    Ok(Field { number, value })
}

/// A number at the cursor, seven bits a byte, the lowest first.
pub fn varint(cursor: &mut Cursor) -> Result<u64, Problem> {
    const MOST_BYTES: u32 = 10;
    let mut number = 0;
    for place in 0..MOST_BYTES {
        let [byte] = cursor.array()?;
        number |= u64::from(byte & 0x7f).checked_shl(7 * place).unwrap_or_default();
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err("a number has more than ten bytes".into())
}

/// The text that is there, as bytes.
pub fn text(cursor: &mut Cursor, range: Range<usize>) -> Result<Vec<u8>, Problem> {
    if range.len() > MAX_TEXT_BYTES {
        return Err(format!("a text has {} bytes, and {MAX_TEXT_BYTES} are the most", range.len()).into());
    }
    let after = cursor.position();
    cursor.go_to(range.start);
    let bytes = cursor.read_vec(range.len())?;
    cursor.go_to(after);
    Ok(bytes)
}

/// The numbers that a field holds: one, or many that are packed.
pub fn numbers(cursor: &mut Cursor, value: &Value) -> Result<Vec<u64>, Problem> {
    let range = match value {
        Value::Number(number) => return Ok(vec![*number]),
        Value::Bytes(range) => range.clone(),
        Value::Fixed(_) => return Err("a field of whole numbers has others; is it a model?".into()),
    };
    let after = cursor.position();
    cursor.go_to(range.start);
    let mut numbers = Vec::new();
    while cursor.position() < range.end {
        numbers.push(varint(cursor)?);
    }
    if cursor.position() > range.end {
        return Err(format!("its last number reaches over byte {}, where its field ends", range.end).into());
    }
    cursor.go_to(after);
    Ok(numbers)
}
