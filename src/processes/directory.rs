//! A store in a directory that all processes share. It needs no server.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::key_value::{KeyValueStore, is_taken};
use crate::error::{Error, Result};
use crate::store::sha256;

/// A store in a directory that all processes share, on one machine or by a network's file system. A value is a file, which takes
/// its name when it is whole. Nobody removes the job's directory but you.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    job: PathBuf,
}

/// The longest name that is written out.
const MAX_NAME: usize = 120;

impl DirectoryStore {
    /// The store of the job of this name, in a directory of its own within this one. Both are made where they are not there.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty name; [`Error::Io`] when the directory cannot be made.
    pub fn new(directory: impl AsRef<Path>, job: &str) -> Result<DirectoryStore> {
        if job.is_empty() {
            return Err(Error::InvalidArgument("the job's name is empty".into()));
        }
        let job = directory.as_ref().join(file_name(job));
        std::fs::create_dir_all(&job).map_err(|error| Error::io("create the directory", &job, error))?;
        Ok(DirectoryStore { job })
    }

    fn path(&self, key: &str) -> PathBuf {
        self.job.join(file_name(key))
    }
}

/// A name that any file system has, another for each key.
fn file_name(key: &str) -> String {
    let hex = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
        _ => format!("%{byte:02x}"),
    };
    let name: String = key.bytes().map(hex).collect();
    if name.len() <= MAX_NAME { name } else { format!("%sha256-{}", sha256(key.as_bytes())) }
}

impl KeyValueStore for DirectoryStore {
    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        let path = self.path(key);
        let failed = |error| Error::io("write", &path, error);
        // As anybody's file: another user's process may be one of the job's.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        let mut builder = tempfile::Builder::new();
        let mut file = builder.prefix(".new-").permissions(mode).tempfile_in(&self.job).map_err(failed)?;
        file.write_all(value).map_err(failed)?;
        match file.persist_noclobber(&path) {
            Ok(_) => Ok(()),
            Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(is_taken(key, &self.job.display().to_string()))
            }
            Err(error) => Err(failed(error.error)),
        }
    }

    fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path(key);
        match std::fs::read(&path) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("read", &path, error)),
        }
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.path(key);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &path, error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_names_of_their_own() {
        let long = "k".repeat(300);
        let names = ["a/b", "a%2fb", "a.b", "..", "A/b", "é", &long, &long[1..]].map(file_name);
        let all: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(all.len(), names.len());
        assert!(names.iter().all(|name| name.len() <= 200 && !name.contains(['/', '.'])), "{names:?}");
    }
}
