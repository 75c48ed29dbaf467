//! The directories that Python packages are installed in, found by their layout: no Python is started.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// The site-packages and dist-packages directories of this user's Pythons that exist, in the order in
/// which a Python would prefer them: `PYTHONPATH`, the active environment, the Python on the path, the
/// user's own, the system's.
pub fn site_directories() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let mut directories: Vec<PathBuf> = Vec::new();
    if let Some(path) = variable("PYTHONPATH") {
        directories.extend(std::env::split_paths(&path));
    }
    for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(prefix) = variable(name) {
            directories.extend(of_prefix(Path::new(&prefix)));
        }
    }
    for prefix in interpreter_prefixes() {
        directories.extend(of_prefix(&prefix));
    }
    if let Some(home) = variable("HOME") {
        directories.extend(of_prefix(&Path::new(&home).join(".local")));
    }
    for prefix in ["/usr/local", "/usr"] {
        directories.extend(of_prefix(Path::new(prefix)));
    }
    let mut seen = HashSet::new();
    // One directory can have several names, such as /lib and /usr/lib.
    directories.retain(|directory| {
        directory.is_dir() && directory.canonicalize().is_ok_and(|real| seen.insert(real))
    });
    directories
}

/// The prefixes of the Pythons on `PATH`, symbolic links followed; behind pyenv's shims, its versions.
fn interpreter_prefixes() -> Vec<PathBuf> {
    let mut prefixes = Vec::new();
    for directory in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
        let Some(interpreter) =
            ["python3", "python"].iter().map(|name| directory.join(name)).find(|p| p.is_file())
        else {
            continue;
        };
        if directory.ends_with("shims") {
            prefixes.extend(children(&directory.with_file_name("versions"), ""));
            continue;
        }
        // A virtual environment's own prefix comes before that of the Python that it was made from.
        for path in [Some(interpreter.clone()), interpreter.canonicalize().ok()].into_iter().flatten() {
            if let Some(prefix) = path.parent().and_then(Path::parent) {
                prefixes.push(prefix.to_owned());
            }
        }
    }
    prefixes
}

/// `lib/python3.X/site-packages`, `dist-packages` and the like of one prefix, the newest Python first.
fn of_prefix(prefix: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for lib in ["lib", "lib64"] {
        for python in children(&prefix.join(lib), "python3") {
            found.push(python.join("site-packages"));
            found.push(python.join("dist-packages"));
        }
    }
    found
}

/// The directories in `directory` whose names begin with `prefix`, the highest version first.
fn children(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = directory.read_dir() else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    let version = |path: &PathBuf| -> Vec<u64> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    paths.sort_by_key(|path| std::cmp::Reverse(version(path)));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_python_comes_first() {
        let prefix = tempfile::tempdir().unwrap();
        for version in ["python3.9", "python3.12", "python3"] {
            std::fs::create_dir_all(prefix.path().join("lib").join(version).join("site-packages")).unwrap();
        }
        let found = of_prefix(prefix.path());
        let names: Vec<_> = found.iter().map(|p| p.strip_prefix(prefix.path()).unwrap().to_owned()).collect();
        assert_eq!(names[0], Path::new("lib/python3.12/site-packages"));
        assert_eq!(names[2], Path::new("lib/python3.9/site-packages"));
    }
}
