//! Files and directories that are no checkpoint that is read: what they are, and what to do. People give them to us
//! because a download went wrong, or because the checkpoint is of another library.

use std::path::Path;

/// What a file is by what it begins with, and what to do, as a sentence without its end.
pub fn file(data: &[u8]) -> Option<String> {
    let text = |start: &[u8]| data.starts_with(start);
    let html = || {
        let start = data.get(..data.len().min(256)).unwrap_or_default().to_ascii_lowercase();
        let start = start.trim_ascii_start();
        start.starts_with(b"<!doctype html") || start.starts_with(b"<html")
    };
    let found = if text(b"version https://git-lfs.github.com/spec/") {
        "it is a Git LFS pointer and not the file itself; get the file with `git lfs pull`"
    } else if html() {
        "it is a page of a website and not the file itself; the download needs a login, or another address"
    } else if text(b"{\"error\"") || text(b"<?xml") {
        "it is the answer of a server and not the file itself; read it to see why, and download the file again"
    } else if text(&[0x1f, 0x8b]) {
        "it is compressed with gzip; unpack it with `gunzip`"
    } else if text(&[0x28, 0xb5, 0x2f, 0xfd]) {
        "it is compressed with Zstandard; unpack it with `unzstd`"
    } else if text(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        "it is compressed with xz; unpack it with `unxz`"
    } else if text(b"BZh") {
        "it is compressed with bzip2; unpack it with `bunzip2`"
    } else if text(&[0x5d, 0, 0]) {
        "it is compressed with LZMA; unpack it with `unlzma`"
    } else if text(b"PK\x03\x04") {
        "it is a zip archive, as NumPy's (.npz) and PyTorch's (.pt) are, which hold arrays"
    } else if text(b"\x93NUMPY") {
        "it is an array of NumPy's (.npy)"
    } else if text(b"PAR1") {
        "it is a Parquet file, whose columns are encoded; write it as Feather (`pyarrow.feather.write_feather`), or its arrays \
         as .npz"
    } else if text(b"FEA1") {
        "it is a Feather file of version 1; write it again with a newer pyarrow (`pyarrow.feather.write_feather`)"
    } else if data.len() > 2 && data[0] == 0x80 && (2..=5).contains(&data[1]) {
        "it is a pickle"
    } else {
        return None;
    };
    Some(found.to_owned())
}

/// What a file is by its name, where its content says nothing.
pub fn file_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let found = if name.ends_with(".index") || name.contains(".data-0000") {
        "it is part of a checkpoint of TensorFlow, whose table of tensors, the file that ends with .index, is missing beside \
         it or damaged"
    } else if name.ends_with(".tflite") || name.ends_with(".mlmodel") {
        "it is a model for another runtime, not a checkpoint"
    } else {
        return None;
    };
    Some(found.to_owned())
}

/// What the names of checkpoints end with, most of the time.
const ENDINGS: [&str; 8] = [".safetensors", ".msgpack", ".npz", ".pt", ".pth", ".bin", ".pkl", ".joblib"];

/// What a directory is, and what to do.
pub fn directory(path: &Path) -> String {
    let mut files: Vec<String> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| ENDINGS.iter().any(|ending| name.ends_with(ending)))
        .collect();
    files.sort();
    match &files[..] {
        [] => "it is a directory, and has no checkpoint that is read".into(),
        [file] => format!("it is a directory; give the file in it, {file}"),
        [first, ..] => {
            format!("it is a directory; give one of the {} files in it, such as {first}", files.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_download_by_mistake_is_named() {
        let is = |data: &[u8], what: &str| {
            let found = file(data).unwrap_or_default();
            assert!(found.contains(what), "{what}: {found}");
        };
        is(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull");
        is(b"\n<!DOCTYPE HTML><html>", "a page of a website");
        is(b"{\"error\":\"Repository not found\"}", "answer of a server");
        is(&[0x1f, 0x8b, 8], "gunzip");
        is(&[0x28, 0xb5, 0x2f, 0xfd], "unzstd");
        assert_eq!(file(b"\x10\0\0\0\0\0\0\0{}"), None);
        assert_eq!(file(b""), None);
    }
}
