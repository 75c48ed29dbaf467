//! A writer that goes on after a failure as if there were none, and keeps the failure: for a user that does worse than fail when it
//! is told of one.

use std::io::{self, ErrorKind, Seek, SeekFrom, Write};

/// Passes on what is written, until that fails.
pub struct FirstFailure<W> {
    inner: W,
    failure: Option<io::Error>,
    /// Where it would be, once it has failed; and how long what was written would be.
    position: u64,
    end: u64,
}

impl<W: Write + Seek> FirstFailure<W> {
    pub fn new(inner: W) -> FirstFailure<W> {
        FirstFailure { inner, failure: None, position: 0, end: 0 }
    }

    /// What failed first, if something did.
    ///
    /// # Errors
    /// That.
    pub fn finish(self) -> io::Result<()> {
        self.failure.map_or(Ok(()), Err)
    }

    /// Does it, unless something failed; what fails now is kept. `None` if nothing was done.
    fn attempt<T>(&mut self, run: impl FnOnce(&mut W) -> io::Result<T>) -> io::Result<Option<T>> {
        if self.failure.is_some() {
            return Ok(None);
        }
        match run(&mut self.inner) {
            Ok(done) => Ok(Some(done)),
            // It is to be tried again.
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) => {
                self.failure = Some(error);
                Ok(None)
            }
        }
    }
}

impl<W: Write + Seek> Write for FirstFailure<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.attempt(|inner| inner.write(bytes))?.unwrap_or(bytes.len());
        self.position += written as u64;
        self.end = self.end.max(self.position);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.attempt(Write::flush).map(|_| ())
    }
}

impl<W: Write + Seek> Seek for FirstFailure<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = self.attempt(|inner| inner.seek(to))?;
        self.position = match (position, to) {
            (Some(position), _) => position,
            (None, SeekFrom::Start(position)) => position,
            (None, SeekFrom::Current(by)) => self.position.saturating_add_signed(by),
            (None, SeekFrom::End(by)) => self.end.saturating_add_signed(by),
        };
        Ok(self.position)
    }
}
