//! The primitives of MLIR bytecode: numbers of variable length, and sections.

use super::Result;

/// What fills the bytes before data that is aligned.
const PADDING: u8 = 0xcb;

/// Bytes that are read from front to back. No count that is read is larger than what follows.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    data: &'a [u8],
    position: usize,
    end: usize,
}

/// A section: its number, and what is in it.
pub struct Section<'a> {
    pub id: u8,
    pub content: Input<'a>,
}

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Input<'a> {
        Input { data, position: 0, end: data.len() }
    }

    /// The bytes that follow.
    pub fn rest(&self) -> &'a [u8] {
        &self.data[self.position..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.position == self.end
    }

    /// A problem at the place that was read to.
    pub fn problem<T>(&self, problem: impl std::fmt::Display) -> Result<T> {
        Err(format!("{problem} (before byte {} of its bytecode)", self.position))
    }

    pub fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.rest().get(..count) {
            Some(taken) => {
                self.position += count;
                Ok(taken)
            }
            None => self.problem(format_args!("{count} bytes should follow, and {} do", self.rest().len())),
        }
    }

    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// A number: the trailing zeros of the first byte count the bytes that follow it.
    pub fn number(&mut self) -> Result<u64> {
        let first = self.byte()?;
        if first & 1 == 1 {
            return Ok(u64::from(first >> 1));
        }
        let more = first.trailing_zeros() as usize;
        let mut bytes = [0; 8];
        if more == 8 {
            bytes.copy_from_slice(self.take(8)?);
            return Ok(u64::from_le_bytes(bytes));
        }
        bytes[0] = first;
        bytes[1..=more].copy_from_slice(self.take(more)?);
        Ok(u64::from_le_bytes(bytes) >> (more + 1))
    }

    /// A number with a sign, in zigzag.
    pub fn signed(&mut self) -> Result<i64> {
        let number = self.number()?;
        Ok((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// A number, and a flag in its lowest bit.
    pub fn flagged(&mut self) -> Result<(u64, bool)> {
        let number = self.number()?;
        Ok((number >> 1, number & 1 == 1))
    }

    /// A number of things that follow, each of a byte at least.
    pub fn count(&mut self) -> Result<usize> {
        let number = self.number()?;
        self.check_count(number)
    }

    /// A number as a count of things that follow.
    pub fn check_count(&self, number: u64) -> Result<usize> {
        match usize::try_from(number) {
            Ok(count) if count <= self.rest().len() => Ok(count),
            _ => self.problem(format_args!("{number} things should follow in {} bytes", self.rest().len())),
        }
    }

    /// A position in a table of this length.
    pub fn index(&mut self, table: &str, length: usize) -> Result<u32> {
        let number = self.number()?;
        self.check_index(number, table, length)
    }

    /// A number as a position in a table of this length.
    pub fn check_index(&self, number: u64, table: &str, length: usize) -> Result<u32> {
        match u32::try_from(number) {
            Ok(index) if (index as usize) < length => Ok(index),
            _ => self.problem(format_args!("it refers to {table} {number} of {length}")),
        }
    }

    /// The bytes up to a NUL, which is passed over.
    pub fn text(&mut self) -> Result<&'a [u8]> {
        match self.rest().iter().position(|&byte| byte == 0) {
            Some(length) => {
                let text = self.take(length)?;
                self.position += 1;
                Ok(text)
            }
            None => self.problem("a text does not end"),
        }
    }

    pub fn section(&mut self) -> Result<Section<'a>> {
        let (head, length) = (self.byte()?, self.number()?);
        if head & 0x80 != 0 {
            let alignment = self.number()?;
            if !alignment.is_power_of_two() || alignment > 1 << 16 {
                return self.problem(format_args!("a section is aligned to {alignment}"));
            }
            while !(self.position as u64).is_multiple_of(alignment) {
                if self.byte()? != PADDING {
                    return self.problem("a section is filled with something else than 0xCB");
                }
            }
        }
        let length = self.check_count(length)?;
        let content = Input { end: self.position + length, ..self.clone() };
        self.position += length;
        Ok(Section { id: head & 0x7f, content })
    }
}

/// Bytes that are written from front to back.
#[derive(Debug, Default)]
pub struct Output(pub Vec<u8>);

impl Output {
    pub fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub fn number(&mut self, number: u64) {
        // 7 bits of it in the first byte, and 7 more with each that follows.
        let bits = 64 - number.leading_zeros() as usize;
        let bytes = bits.div_ceil(7).max(1);
        if bytes > 8 {
            self.byte(0);
            self.bytes(&number.to_le_bytes());
        } else {
            let encoded = (number << bytes) | (1 << (bytes - 1));
            self.bytes(&encoded.to_le_bytes()[..bytes]);
        }
    }

    pub fn signed(&mut self, number: i64) {
        self.number((number << 1) as u64 ^ (number >> 63) as u64);
    }

    pub fn flagged(&mut self, number: u64, flag: bool) {
        self.number(number << 1 | u64::from(flag));
    }

    pub fn section(&mut self, id: u8, content: &[u8]) {
        self.byte(id);
        self.number(content.len() as u64);
        self.bytes(content);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_number_is_read_as_it_was_written(bits in 0u32..64, low in any::<u64>()) {
            let number = 1u64 << bits | low & ((1u64 << bits) - 1);
            let mut output = Output::default();
            output.number(number);
            output.signed(number as i64);
            output.number(0);
            let mut input = Input::new(&output.0);
            prop_assert_eq!(input.number(), Ok(number));
            prop_assert_eq!(input.signed(), Ok(number as i64));
            prop_assert_eq!(input.number(), Ok(0));
            prop_assert!(input.is_empty());
        }
    }

    #[test]
    fn numbers_have_the_bytes_that_mlir_gives_them() {
        let written = |number: u64| {
            let mut output = Output::default();
            output.number(number);
            output.0
        };
        assert_eq!(written(6), [0x0d]);
        assert_eq!(written(127), [0xff]);
        assert_eq!(written(128), [0x02, 0x02]);
        assert_eq!(written(u64::MAX), [0, 255, 255, 255, 255, 255, 255, 255, 255]);
        assert_eq!(written(1 << 56).len(), 9);
        assert_eq!(written((1 << 56) - 1).len(), 8);
    }

    #[test]
    fn what_is_cut_off_or_claims_too_much_is_an_error() {
        for bytes in [&[][..], &[0x02], &[0, 1, 2, 3]] {
            assert!(Input::new(bytes).number().is_err());
        }
        assert!(Input::new(&[0x0d, 0, 0]).count().unwrap_err().contains("6 things should follow in 2 bytes"));
        assert!(Input::new(&[0x0d]).index("string", 6).unwrap_err().contains("string 6 of 6"));
        assert!(Input::new(b"abc").text().is_err());
        assert!(Input::new(&[0x81, 0x01, 0x07]).section().is_err());
    }
}
