//! Executables kept on the disk, so that a program is compiled once and not by every process.
//!
//! An entry is a file named by the sha256 of its key, which says in words all that the executable depends on. It
//! begins with [`MAGIC`] and the sha256 of the rest: the length of the key (8 bytes, little-endian), the key, and the
//! executable as the plugin serialised it. An entry that is damaged or another's is passed over and written again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::error::Result;
use crate::pjrt::{Client, CompileOptions, LoadedExecutable, ProgramFormat};
use crate::plugins::home_dir;
use crate::store::{WriteOptions, sha256, write_atomically};

/// The environment variable that names the cache's directory, or switches it off with `off`.
pub const CACHE_VARIABLE: &str = "SAFEJAX_CACHE";

/// The first bytes of an entry: its format, and the version of that.
const MAGIC: &[u8; 8] = b"SAFEJAX1";

/// Hexadecimal digits of a sha256.
const DIGEST_BYTES: usize = 64;

/// What compiles faster is not kept, if [`WORTH_KEEPING_VARIABLE`] says nothing else: reading it back would save nothing
/// that one could notice.
const WORTH_KEEPING: Duration = Duration::from_millis(50);

/// The variable with the seconds that a compilation must take for its result to be kept.
const WORTH_KEEPING_VARIABLE: &str = "SAFEJAX_CACHE_MIN_SECONDS";

fn worth_keeping() -> Duration {
    let seconds = std::env::var(WORTH_KEEPING_VARIABLE).ok().and_then(|text| text.parse().ok());
    seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).unwrap_or(WORTH_KEEPING)
}

/// All entries together; beyond that, those that were used the longest time ago go.
const MAX_TOTAL_BYTES: u64 = 4 << 30;

/// The directory of compiled programs: `$SAFEJAX_CACHE`, or `executables` in [`home_dir`]; `None` if that is switched
/// off, or there is no place for it.
pub fn cache_dir() -> Option<PathBuf> {
    match std::env::var_os(CACHE_VARIABLE) {
        Some(value) if value == "off" => None,
        Some(value) if !value.is_empty() => Some(value.into()),
        _ => home_dir().ok().map(|home| home.join("executables")),
    }
}

/// Compiles a program, or takes it from the cache.
pub fn compile(
    client: &Client,
    code: &[u8],
    format: ProgramFormat,
    options: &CompileOptions,
) -> Result<LoadedExecutable> {
    let entry =
        cache_dir().and_then(|directory| CachedProgram::new(directory, client, code, format, options));
    if let Some(executable) = entry.as_ref().and_then(|entry| entry.load(client)) {
        return Ok(executable);
    }
    let started = Instant::now();
    let executable = client.compile_program(code, format, options)?;
    if let Some(entry) = entry.filter(|_| started.elapsed() >= worth_keeping()) {
        entry.store(&executable);
    }
    Ok(executable)
}

/// A place in the cache.
struct CachedProgram {
    key: String,
    path: PathBuf,
}

impl CachedProgram {
    /// The place of a program; `None` where it cannot be kept, or not safely.
    fn new(
        directory: PathBuf,
        client: &Client,
        code: &[u8],
        format: ProgramFormat,
        options: &CompileOptions,
    ) -> Option<CachedProgram> {
        let key = format!(
            "program {} {}\noptions {}\n{}",
            format.name(),
            sha256(code),
            sha256(&options.to_bytes().ok()?),
            platform(client)?
        );
        is_safe(&directory).then(|| CachedProgram { path: directory.join(sha256(key.as_bytes())), key })
    }

    /// The executable, if it is there and whole.
    fn load(&self, client: &Client) -> Option<LoadedExecutable> {
        let content = read_own(&self.path)?;
        let serialized = executable_in(&content, &self.key).or_else(|| {
            tracing::info!(entry = %self.path.display(), "a kept executable is damaged and is made again");
            None
        })?;
        match client.load_serialized(serialized) {
            Ok(executable) => {
                // Only for the order in which entries go.
                let touched = File::options().append(true).open(&self.path);
                let _ = touched.and_then(|file| file.set_modified(SystemTime::now()));
                tracing::debug!(entry = %self.path.display(), "took an executable from the cache");
                Some(executable)
            }
            Err(error) => {
                tracing::info!(%error, entry = %self.path.display(), "a kept executable is made again");
                None
            }
        }
    }

    /// Keeps an executable. That it cannot be kept is no error.
    fn store(&self, executable: &LoadedExecutable) {
        let stored =
            executable.compiled().serialize().map_err(|error| error.to_string()).and_then(|serialized| {
                let content = entry_content(&self.key, &serialized);
                make_room(self.path.parent().unwrap_or(Path::new(".")), content.len() as u64);
                // What is lost when the machine stops is made again.
                write_atomically(&self.path, WriteOptions::private(), |file| {
                    std::io::Write::write_all(file, &content)
                })
                .map_err(|error| error.to_string())
            });
        match stored {
            Ok(()) => tracing::debug!(entry = %self.path.display(), "kept an executable"),
            Err(problem) => tracing::debug!(problem, "an executable cannot be kept"),
        }
    }
}

fn entry_content(key: &str, serialized: &[u8]) -> Vec<u8> {
    let rest = [&(key.len() as u64).to_le_bytes(), key.as_bytes(), serialized].concat();
    [MAGIC, sha256(&rest).as_bytes(), &rest].concat()
}

/// The executable in an entry of this key that is whole.
fn executable_in<'a>(content: &'a [u8], key: &str) -> Option<&'a [u8]> {
    let (digest, rest) = content.strip_prefix(MAGIC)?.split_at_checked(DIGEST_BYTES)?;
    let (length, rest_of_key) = rest.split_at_checked(size_of::<u64>())?;
    let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    let (own_key, serialized) = rest_of_key.split_at_checked(length)?;
    (own_key == key.as_bytes() && sha256(rest).as_bytes() == digest).then_some(serialized)
}

/// What an executable depends on beside the program; `None` where that cannot be told.
fn platform(client: &Client) -> Option<String> {
    let library = client.plugin().path();
    let file = fs::metadata(library).ok()?;
    let modified = file.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let kinds: Vec<String> = client.devices().iter().map(|device| device.kind().to_owned()).collect();
    let processor = if client.platform_name() == "cpu" { processor()? } else { String::new() };
    Some(format!(
        "plugin {} {} {} bytes of {} ns\nplatform {} {}\ndevices {}\nprocessor {processor}\noptions {}\n{}",
        library.display(),
        client.plugin().api_version(),
        file.len(),
        modified.as_nanos(),
        client.platform_name(),
        client.platform_version(),
        kinds.join(", "),
        client_options(client),
        flag_variables().into_iter().map(|(name, value)| format!("{name} {value}\n")).collect::<String>()
    ))
}

/// The environment variables from which plugins take flags of their compilers, with what they say.
pub fn flag_variables() -> BTreeMap<String, String> {
    const NAMES: [&str; 2] = ["XLA_FLAGS", "LIBTPU_INIT_ARGS"];
    NAMES.into_iter().map(|name| (name.to_owned(), std::env::var(name).unwrap_or_default())).collect()
}

/// Options of a client that say how much memory it takes, and nothing of the programs that it compiles.
const MEMORY_OPTIONS: [&str; 2] = ["preallocate", "memory_fraction"];

/// The options that the client was created with, in the order of their names.
fn client_options(client: &Client) -> String {
    let relevant = client.options().iter().filter(|(name, _)| !MEMORY_OPTIONS.contains(&name.as_str()));
    let mut options: Vec<String> = relevant.map(|(name, value)| format!("{name}={value}")).collect();
    options.sort();
    options.join(", ")
}

/// The processor's model and features: machine code for one may stop another.
pub fn processor() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let mut lines: Vec<&str> = info
        .lines()
        .filter(|line| {
            ["model name", "flags", "CPU part", "Features"].iter().any(|name| line.starts_with(name))
        })
        .collect();
    lines.sort_unstable();
    lines.dedup();
    Some(sha256(lines.join("\n").as_bytes()))
}

/// The content of a file that is ours and that nobody else can write to.
fn read_own(path: &Path) -> Option<Vec<u8>> {
    let mut file = File::open(path).ok()?;
    if !is_own(&file.metadata().ok()?) {
        tracing::warn!(entry = %path.display(), "a kept executable that other users can write to is not used");
        return None;
    }
    let mut content = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut content).ok().map(|_| content)
}

/// Whether a file or directory is ours, and nobody else can write to it.
fn is_own(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.permissions().mode() & WRITABLE_BY_OTHERS == 0
}

/// Whether the directory is there, or could be made, and nobody else can write to it: loading an entry runs code
/// that is in it.
fn is_safe(directory: &Path) -> bool {
    use std::os::unix::fs::DirBuilderExt;
    if !directory.exists()
        && let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
    {
        tracing::debug!(%error, directory = %directory.display(), "executables cannot be kept");
        return false;
    }
    let Ok(metadata) = fs::metadata(directory) else { return false };
    if is_own(&metadata) {
        return true;
    }
    tracing::warn!(directory = %directory.display(), "executables are not kept where other users can write");
    false
}

/// Removes the entries that were used the longest time ago until there is room for `bytes` more.
fn make_room(directory: &Path, bytes: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut files: Vec<(SystemTime, u64, PathBuf)> = entries
        .flatten()
        // The directory may be the user's own, with other things in it.
        .filter(|entry| is_entry_name(&entry.file_name().to_string_lossy()))
        .filter_map(|entry| {
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some((metadata.modified().ok()?, metadata.len(), entry.path()))
        })
        .collect();
    files.sort();
    let mut total = bytes + files.iter().map(|(_, bytes, _)| bytes).sum::<u64>();
    for (_, bytes, path) in files {
        if total <= MAX_TOTAL_BYTES {
            return;
        }
        // Another process may have removed it.
        let _ = fs::remove_file(path);
        total -= bytes;
    }
}

/// Whether a file's name is that of an entry: a sha256.
fn is_entry_name(name: &str) -> bool {
    name.len() == DIGEST_BYTES && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_only_made_by_removing_entries() {
        let directory = tempfile::tempdir().unwrap();
        let entry = directory.path().join(sha256(b"key"));
        let other = directory.path().join("thesis.txt");
        fs::write(&entry, "executable").unwrap();
        fs::write(&other, "text").unwrap();
        make_room(directory.path(), MAX_TOTAL_BYTES);
        assert!(!entry.exists() && other.exists());
    }

    #[test]
    fn an_entry_is_only_taken_whole_and_for_its_own_key() {
        let content = entry_content("key", b"executable");
        assert_eq!(executable_in(&content, "key"), Some(&b"executable"[..]));
        assert_eq!(executable_in(&content, "kez"), None);
        for position in 0..content.len() {
            let mut changed = content.clone();
            changed[position] ^= 1;
            assert_eq!(executable_in(&changed, "key"), None, "byte {position}");
            assert_eq!(executable_in(&content[..position], "key"), None, "cut at {position}");
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let cache = directory.path().join("a/b");
        assert!(is_safe(&cache));
        assert_eq!(fs::metadata(&cache).unwrap().permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(!is_safe(&cache));
        assert!(!is_safe(Path::new("/proc/no/such")));
    }
}
