//! A reader of FlatBuffers that checks every offset before it follows it.
//!
//! The format is that of the FlatBuffers internals page: a table begins with the distance back to its vtable,
//! which has two bytes of its own size, two of the table's, then two for every field; a vector or string is
//! its length, then its elements. All offsets and numbers are little-endian.

use std::cell::Cell;

/// How much may still be read of a buffer. Offsets can lead to the same place many times over, so that what is read
/// of a small buffer could be more than any memory.
pub struct Budget(Cell<usize>);

impl Budget {
    /// Enough for any real buffer of this size.
    pub fn of(buffer: &[u8]) -> Budget {
        const TIMES: usize = 64;
        const LEAST: usize = 1 << 20;
        Budget(Cell::new(buffer.len().saturating_mul(TIMES).saturating_add(LEAST)))
    }

    /// Takes away what is about to be kept, in bytes.
    pub fn charge(&self, bytes: usize) -> Result<(), Problem> {
        let left = self.0.get().checked_sub(bytes);
        self.0
            .set(left.ok_or("its parts refer to each other so often that they would be larger than memory")?);
        Ok(())
    }
}

/// A table within a buffer.
#[derive(Clone, Copy)]
pub struct Table<'a> {
    buffer: &'a [u8],
    budget: &'a Budget,
    position: usize,
    vtable: usize,
    /// Bytes of the vtable.
    vtable_size: usize,
    /// Bytes of the table itself.
    table_size: usize,
}

/// What is wrong with a buffer.
pub type Problem = String;

fn bytes<const N: usize>(buffer: &[u8], position: usize) -> Result<[u8; N], Problem> {
    let end = position.checked_add(N).filter(|end| *end <= buffer.len());
    let end =
        end.ok_or_else(|| format!("an offset leads to byte {position}, past the end at {}", buffer.len()))?;
    buffer[position..end].try_into().map_err(|_| "a number cannot be read".to_owned())
}

fn u32_at(buffer: &[u8], position: usize) -> Result<usize, Problem> {
    bytes(buffer, position).map(|bytes| u32::from_le_bytes(bytes) as usize)
}

/// Follows the offset that is stored at a position.
fn follow(buffer: &[u8], position: usize) -> Result<usize, Problem> {
    let target = position.checked_add(u32_at(buffer, position)?).filter(|target| *target < buffer.len());
    target.ok_or_else(|| format!("the offset at byte {position} leads past the end"))
}

impl<'a> Table<'a> {
    /// The root table of a buffer.
    pub fn root(buffer: &'a [u8], budget: &'a Budget) -> Result<Table<'a>, Problem> {
        Table::at(buffer, budget, follow(buffer, 0)?)
    }

    /// What may still be read.
    pub fn budget(&self) -> &'a Budget {
        self.budget
    }

    fn at(buffer: &'a [u8], budget: &'a Budget, position: usize) -> Result<Table<'a>, Problem> {
        budget.charge(size_of::<Table<'_>>())?;
        let back = i32::from_le_bytes(bytes(buffer, position)?);
        let vtable = i64::try_from(position)
            .ok()
            .and_then(|position| usize::try_from(position - i64::from(back)).ok());
        let vtable =
            vtable.ok_or_else(|| format!("the table at byte {position} has its vtable before the start"))?;
        let vtable_size = usize::from(u16::from_le_bytes(bytes(buffer, vtable)?));
        let table_size = usize::from(u16::from_le_bytes(bytes(buffer, vtable.saturating_add(2))?));
        let fits = |start: usize, size: usize| start.checked_add(size).is_some_and(|end| end <= buffer.len());
        if vtable_size < 4 || !fits(vtable, vtable_size) || table_size < 4 || !fits(position, table_size) {
            return Err(format!("the table at byte {position} does not fit into the buffer"));
        }
        Ok(Table { buffer, budget, position, vtable, vtable_size, table_size })
    }

    /// Where a field is stored; `None` if it is absent.
    fn field(&self, slot: usize, size: usize) -> Result<Option<usize>, Problem> {
        let entry = 4 + 2 * slot;
        if entry + 2 > self.vtable_size {
            return Ok(None);
        }
        let offset = usize::from(u16::from_le_bytes(bytes(self.buffer, self.vtable + entry)?));
        match offset {
            0 => Ok(None),
            offset if offset + size <= self.table_size => Ok(Some(self.position + offset)),
            _ => Err(format!("field {slot} of the table at byte {} lies outside of it", self.position)),
        }
    }

    pub fn u8(&self, slot: usize) -> Result<Option<u8>, Problem> {
        let field = self.field(slot, 1)?;
        field.map(|position| bytes::<1>(self.buffer, position).map(|[byte]| byte)).transpose()
    }

    pub fn u16(&self, slot: usize) -> Result<Option<u16>, Problem> {
        self.field(slot, 2)?.map(|position| bytes(self.buffer, position).map(u16::from_le_bytes)).transpose()
    }

    pub fn u32(&self, slot: usize) -> Result<Option<u32>, Problem> {
        self.field(slot, 4)?.map(|position| bytes(self.buffer, position).map(u32::from_le_bytes)).transpose()
    }

    pub fn i64(&self, slot: usize) -> Result<Option<i64>, Problem> {
        self.field(slot, 8)?.map(|position| bytes(self.buffer, position).map(i64::from_le_bytes)).transpose()
    }

    /// The bytes of a struct, which is in the table itself.
    pub fn inline<const N: usize>(&self, slot: usize) -> Result<Option<[u8; N]>, Problem> {
        self.field(slot, N)?.map(|position| bytes(self.buffer, position)).transpose()
    }

    /// The bytes of each struct of a vector.
    pub fn structs<const N: usize>(
        &self,
        slot: usize,
    ) -> Result<Option<impl Iterator<Item = [u8; N]> + use<'a, N>>, Problem> {
        let vector = self.vector(slot, N)?;
        Ok(vector.map(|(_, bytes)| bytes.chunks_exact(N).map(|each| each.try_into().unwrap_or([0; N]))))
    }

    pub fn table(&self, slot: usize) -> Result<Option<Table<'a>>, Problem> {
        let Some(field) = self.field(slot, 4)? else { return Ok(None) };
        Table::at(self.buffer, self.budget, follow(self.buffer, field)?).map(Some)
    }

    /// The elements of a vector as bytes, each of this size, and where they begin.
    fn vector(&self, slot: usize, element: usize) -> Result<Option<(usize, &'a [u8])>, Problem> {
        let Some(field) = self.field(slot, 4)? else { return Ok(None) };
        let start = follow(self.buffer, field)?;
        let count = u32_at(self.buffer, start)?;
        let first = start + 4;
        let end = count.checked_mul(element).and_then(|size| first.checked_add(size));
        let end = end.filter(|end| *end <= self.buffer.len());
        let end =
            end.ok_or_else(|| format!("the vector at byte {start} of {count} elements leads past the end"))?;
        self.budget.charge(end - first)?;
        Ok(Some((first, &self.buffer[first..end])))
    }

    pub fn bytes(&self, slot: usize) -> Result<Option<&'a [u8]>, Problem> {
        Ok(self.vector(slot, 1)?.map(|(_, bytes)| bytes))
    }

    pub fn string(&self, slot: usize) -> Result<Option<&'a str>, Problem> {
        self.bytes(slot)?.map(text).transpose()
    }

    pub fn u16s(&self, slot: usize) -> Result<Option<Vec<u16>>, Problem> {
        let vector = self.vector(slot, 2)?;
        Ok(vector.map(|(_, bytes)| {
            bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
        }))
    }

    pub fn u32s(&self, slot: usize) -> Result<Option<Vec<u32>>, Problem> {
        let vector = self.vector(slot, 4)?;
        let number = |four: &[u8]| u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        Ok(vector.map(|(_, bytes)| bytes.chunks_exact(4).map(number).collect()))
    }

    /// The targets of a vector of offsets.
    fn targets(&self, slot: usize) -> Result<Vec<usize>, Problem> {
        let Some((first, bytes)) = self.vector(slot, 4)? else { return Ok(Vec::new()) };
        (0..bytes.len() / 4).map(|index| follow(self.buffer, first + 4 * index)).collect()
    }

    pub fn tables(&self, slot: usize) -> Result<Vec<Table<'a>>, Problem> {
        self.targets(slot)?.into_iter().map(|target| Table::at(self.buffer, self.budget, target)).collect()
    }

    pub fn strings(&self, slot: usize) -> Result<Vec<&'a str>, Problem> {
        let string = |start: usize| {
            let end =
                u32_at(self.buffer, start)?.checked_add(start + 4).filter(|end| *end <= self.buffer.len());
            let end = end.ok_or_else(|| format!("the string at byte {start} leads past the end"))?;
            self.budget.charge(size_of::<String>() + end - start)?;
            text(&self.buffer[start + 4..end])
        };
        self.targets(slot)?.into_iter().map(string).collect()
    }
}

fn text(bytes: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(bytes).map_err(|_| "a string is not UTF-8".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A buffer whose root has, in field 0, `count` strings that are all the same bytes, `length` of them.
    fn repeated(count: u32, length: u32) -> Vec<u8> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let mut buffer = words(&[12]);
        // The vtable: its size, the table's, where field 0 is; then padding, and the table at byte 12.
        buffer.extend([6u16, 8, 4, 0].iter().flat_map(|half| half.to_le_bytes()));
        buffer.extend(words(&[8, 4, count]));
        let string = 24 + 4 * count;
        (0..count).for_each(|index| buffer.extend((string - (24 + 4 * index)).to_le_bytes()));
        buffer.extend(length.to_le_bytes());
        buffer.resize(buffer.len() + length as usize, b'x');
        buffer
    }

    #[test]
    fn strings_are_read_but_not_if_they_would_be_larger_than_memory() {
        let few = repeated(3, 5);
        let budget = Budget::of(&few);
        assert_eq!(Table::root(&few, &budget).unwrap().strings(0).unwrap(), ["xxxxx"; 3]);
        let many = repeated(100_000, 500_000);
        let budget = Budget::of(&many);
        let problem = Table::root(&many, &budget).unwrap().strings(0).unwrap_err();
        assert!(problem.contains("larger than memory"), "{problem}");
    }
}
