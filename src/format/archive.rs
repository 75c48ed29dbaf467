//! Zip archives: where the content of their members is in the file.

use std::borrow::Cow;
use std::io::Read;
use std::ops::Range;

use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::problem::Problem;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::store::{Cursor, SharedBlob};

/// A zip archive whose directory has been read.
pub(super) struct Archive {
    blob: SharedBlob,
    zip: ZipArchive<Cursor>,
}

/// One member of an archive.
pub(super) struct Member {
    pub name: String,
    pub is_directory: bool,
    pub compression: Compression,
    /// Its bytes as they are stored, from the beginning of the file.
    pub stored: Range<usize>,
    /// The bytes of its content.
    pub bytes: usize,
    /// The checksum of its content.
    pub crc32: u32,
}

/// How a member is stored.
pub(super) enum Compression {
    Stored,
    Deflated,
}

impl Archive {
    /// Reads the directory of an archive.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn open(blob: SharedBlob) -> Result<Archive> {
        match ZipArchive::new(Cursor::new(SharedBlob::clone(&blob))) {
            Ok(zip) => Ok(Archive { blob, zip }),
            Err(error) => Err(problem_of(error)
                .at("its directory cannot be read, as of one that is cut off")
                .into_error(blob.origin(), "zip archive")),
        }
    }

    pub fn origin(&self) -> &str {
        self.blob.origin()
    }

    /// The file.
    pub fn blob(&self) -> &SharedBlob {
        &self.blob
    }

    pub fn len(&self) -> usize {
        self.zip.len()
    }

    /// The names of the members.
    pub fn names(&self) -> impl Iterator<Item = Cow<'_, str>> {
        // One that cannot be read is reported when its member is.
        self.zip.file_names().filter_map(Result::ok)
    }

    pub fn malformed(&self, format: &'static str, problem: String) -> Error {
        Error::Malformed { origin: self.origin().to_owned(), format, problem }
    }

    /// The member at this position.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn member(&mut self, index: usize) -> Result<Member> {
        self.read_member(index).map_err(|problem| {
            let problem = problem.at(format!("member {index} cannot be read"));
            problem.into_error(self.origin(), "zip archive")
        })
    }

    fn read_member(&mut self, index: usize) -> Result<Member, Problem> {
        let file_bytes = self.blob.size();
        let file = self.zip.by_index_raw(index).map_err(problem_of)?;
        let compression = match file.compression() {
            CompressionMethod::Stored => Compression::Stored,
            CompressionMethod::Deflated => Compression::Deflated,
            other => {
                return Err(format!(
                    "it is compressed with {other}, which is not read; store it, or deflate it"
                )
                .into());
            }
        };
        if file.encrypted() {
            return Err("it is encrypted".into());
        }
        let size = |bytes: u64| usize::try_from(bytes).map_err(|_| "it is larger than the memory".to_owned());
        let start = size(file.data_start().ok_or("it has no content")?)?;
        let stored = start..start.saturating_add(size(file.compressed_size())?);
        if stored.end > file_bytes {
            return Err(format!("it ends at byte {}, but the file has {file_bytes}", stored.end).into());
        }
        let bytes = size(file.size())?;
        if matches!(compression, Compression::Stored) && stored.len() != bytes {
            return Err(format!("it is stored in {} bytes, and has {bytes}", stored.len()).into());
        }
        let name = file.name().map_err(problem_of)?.into_owned();
        Ok(Member { name, is_directory: file.is_dir(), compression, stored, bytes, crc32: file.crc32() })
    }

    /// All of a small member, held against its checksum.
    ///
    /// # Errors
    /// That it is damaged, or expands to too much.
    pub fn expand(&mut self, index: usize, member: &Member, limits: Limits) -> Result<Vec<u8>, Problem> {
        limits.check_expansion(member.stored.len() as u64, member.bytes as u64)?;
        let mut content = Vec::new();
        // Its checksum is looked at once its end is met.
        let mut stream = self.content(index)?.take(member.bytes as u64 + 1);
        stream.read_to_end(&mut content).map_err(|error| Problem::of_stream(error, "it is damaged"))?;
        Ok(content)
    }

    /// The content of a member.
    pub fn content(&mut self, index: usize) -> Result<impl Read, Problem> {
        self.zip.by_index(index).map_err(|error| problem_of(error).at("it cannot be read"))
    }
}

fn problem_of(error: ZipError) -> Problem {
    match error {
        ZipError::Io(error) => Problem::of_stream(error, "it is damaged"),
        error => Problem::Content(error.to_string()),
    }
}
