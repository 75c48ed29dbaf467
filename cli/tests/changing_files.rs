//! Files of every format that are replaced, cut or written to while they are read, and how much of them is read.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::error::Error as _;
use std::path::{Path, PathBuf};

use common::{Log, client, data, digits, safejax, succeeds};
use safejax::load::{Delivery, Selection, Sharing};
use safejax::store::Io;
use safejax::{Blame, Checkpoint, LoadOptions, Params};

/// A checkpoint of every format and encoding, in a directory of its own; each with the file of it that is changed.
fn checkpoints(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let params = digits("params.safetensors");
    let convert = |name: &str, options: &[&str]| {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        succeeds(safejax().arg("convert").arg(&params).arg(&path).args(options));
        path
    };
    let mut files: Vec<PathBuf> =
        ["params.safetensors", "params.npz", "params.msgpack"].map(|name| convert(name, &[])).into();
    for name in [
        "orders/stored.npz",
        "orders/deflated.npz",
        "orders/big_fortran.npy",
        "pickles/haiku.pkl",
        "pytorch/state_dict.pt",
        "pytorch/views.pt",
        "pytorch/deflated.pt",
    ] {
        let path = directory.join(name.replace('/', "-"));
        std::fs::copy(data(name), &path).unwrap();
        files.push(path);
    }
    convert("shards/params.safetensors", &["--max-shard-size", "64kB"]);
    let shards = directory.join("shards");
    let mut last: Vec<PathBuf> =
        std::fs::read_dir(&shards).unwrap().map(|entry| entry.unwrap().path()).collect();
    last.retain(|path| path.extension().is_some_and(|ending| ending == "safetensors"));
    last.sort();
    let shard = last.pop().unwrap();
    files.into_iter().map(|path| (path.clone(), path)).chain([(shards, shard)]).collect()
}

/// Ways of loading by which a file is read, not used in place.
fn copying() -> [LoadOptions; 3] {
    let options = LoadOptions::default;
    [
        options().sharing(Sharing::Never),
        options().sharing(Sharing::Never).io(Io::Positional).threads(2),
        options().delivery(Delivery::Stream),
    ]
}

#[test]
fn a_file_that_is_replaced_while_it_is_read_is_read_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    for (path, file) in checkpoints(directory.path()) {
        let content = std::fs::read(&file).unwrap();
        let expected = Params::load(client(), &path).unwrap().to_host().unwrap();
        for options in copying().into_iter().chain([LoadOptions::default()]) {
            let checkpoint = Checkpoint::open(&path).unwrap();
            let source = safejax::convert::Source::new(checkpoint.clone(), &Selection::default()).unwrap();
            let other = directory.path().join("other");
            std::fs::write(&other, vec![0xff; content.len() / 2]).unwrap();
            std::fs::rename(&other, &file).unwrap();
            let (params, _) = Params::load_checkpoint(client(), &checkpoint, &options).unwrap();
            assert_eq!(params.to_host().unwrap(), expected, "{} {options:?}", path.display());
            let host = source.to_host().unwrap();
            assert_eq!(host.leaves().len(), expected.leaves().len());
            std::fs::remove_file(&file).unwrap();
            std::fs::write(&file, &content).unwrap();
        }
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_read_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    for (path, file) in checkpoints(directory.path()) {
        let content = std::fs::read(&file).unwrap();
        // In the first array: whatever is read then, some of it is missing.
        let checkpoint = Checkpoint::open(&path).unwrap();
        let position = checkpoint.files().position(|name| Path::new(name) == file).unwrap();
        let extents = checkpoint.tensors().iter().flat_map(|tensor| tensor.extents().to_vec());
        let in_file = extents.filter(|extent| extent.file == position && !extent.range.is_empty());
        let cut = in_file.map(|extent| extent.range.start + 1).min().unwrap();
        for options in copying() {
            let checkpoint = Checkpoint::open(&path).unwrap();
            let source = safejax::convert::Source::new(checkpoint.clone(), &Selection::default()).unwrap();
            std::fs::File::options().write(true).open(&file).unwrap().set_len(cut as u64).unwrap();
            let error = Params::load_checkpoint(client(), &checkpoint, &options).unwrap_err();
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(inner) = cause {
                text = format!("{text}: {inner}");
                cause = inner.source();
            }
            assert!(text.contains(file.file_name().unwrap().to_str().unwrap()), "{text}");
            assert!(matches!(error.blame(), Blame::File | Blame::System), "{text}");
            assert!(source.to_host().is_err());
            std::fs::remove_file(&file).unwrap();
            std::fs::write(&file, &content).unwrap();
        }
    }
}

#[test]
fn a_file_that_is_written_to_while_it_is_read_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    for (path, file) in checkpoints(directory.path()) {
        let checkpoint = Checkpoint::open(&path).unwrap();
        // The clock of a file system counts milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let content = std::fs::read(&file).unwrap();
        let mut open = std::fs::File::options().write(true).open(&file).unwrap();
        std::io::Write::write_all(&mut open, &content).unwrap();
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || {
            Params::load_checkpoint(client(), &checkpoint, &copying()[0]).unwrap();
        });
        let text = log.text();
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(text.contains(name) && text.contains("was written to while it was read"), "{text}");
    }
}

/// Bytes that this process has read by calls of the system.
#[cfg(target_os = "linux")]
fn bytes_read() -> u64 {
    let counts = std::fs::read_to_string("/proc/self/io").unwrap();
    counts.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// Alone in a process: other tests read, too.
#[cfg(target_os = "linux")]
#[test]
fn a_selection_reads_its_bytes_and_no_others() {
    const CHILD: &str = "SAFEJAX_TEST_BYTES_READ";
    if std::env::var_os(CHILD).is_none() {
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_selection_reads_its_bytes_and_no_others"]).env(CHILD, "1");
        succeeds(&mut command);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    client();
    for (path, _) in checkpoints(directory.path()) {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let stored = |tensor: &safejax::format::Tensor| -> u64 {
            tensor.extents().iter().map(|extent| extent.range.len() as u64).sum()
        };
        let some = checkpoint.tensors().iter().filter(|tensor| !tensor.spec.shape.contains(&0));
        let smallest = some.min_by_key(|tensor| stored(tensor)).unwrap();
        let all: u64 = checkpoint.tensors().iter().map(stored).sum();
        for options in copying() {
            // To ask how many threads are worth it reads files of the system's.
            let options = options.io(Io::Positional).threads(1).include(smallest.name.clone());
            // So that what is loaded on the first use is there.
            for is_warm in [false, true] {
                let before = bytes_read();
                let (params, _) = Params::load_checkpoint(client(), &checkpoint, &options).unwrap();
                params.wait().unwrap();
                let read = bytes_read() - before;
                let counted = bytes_read() - before - read;
                // The counting itself reads the counters.
                let read = read.saturating_sub(counted);
                assert_eq!(params.len(), 1);
                if is_warm {
                    let what = format!("{}: {read} bytes of {} of {all}", path.display(), stored(smallest));
                    assert!(read >= stored(smallest) && read <= stored(smallest) + 64, "{what}");
                }
            }
        }
    }
}
