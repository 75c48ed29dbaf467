//! Small files that describe something huge. Each is refused, and within a bound of memory that is a small multiple of the
//! file: `docs/reliability.md` names it, and here the system enforces it.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use common::{binary, raw_file, stderr};

/// What reading a file may take at most beside the file's own map, in bytes: 512 MiB, and eight times the file.
fn most_memory(file: &Path) -> u64 {
    (512 << 20) + 8 * std::fs::metadata(file).unwrap().len()
}

/// What `inspect` says of a file that it refuses, in a process that gets no more memory than the bound.
fn refused(path: &Path) -> String {
    let kilobytes = (most_memory(path) + std::fs::metadata(path).unwrap().len()) / 1024;
    let output = Command::new("sh")
        .args(["-c", "ulimit -v $1; exec \"$2\" inspect \"$3\"", "sh", &kilobytes.to_string()])
        .arg(binary())
        .arg(path)
        .output()
        .unwrap();
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{}: {:?} {error}", path.display(), output.status);
    assert!(error.len() < 2000, "{}: an error of {} bytes", path.display(), error.len());
    error
}

#[test]
fn every_bomb_is_refused_within_the_bound() {
    let directory = tempfile::tempdir().unwrap();
    let refused_as = |name: &str, bytes: &[u8], why: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = refused(&path);
        assert!(error.contains(why), "{name}: {error}");
        std::fs::remove_file(path).unwrap();
    };

    // Thirty million times nothing, in a list; as many empty dictionaries.
    for filler in [0xc0, 0x80] {
        let mut nils = vec![0x81, 0xa1, b'a', 0xdd];
        nils.extend(30_000_000u32.to_be_bytes());
        nils.resize(nils.len() + 30_000_000, filler);
        refused_as("nils.msgpack", &nils, "more than 1048576 nodes");
    }

    // Forty million dimensions.
    let dims = "1,".repeat(40_000_000);
    let header = format!("{{\"w\":{{\"dtype\":\"U8\",\"shape\":[{dims}1],\"data_offsets\":[0,1]}}}}");
    refused_as("dims.safetensors", &raw_file(&header, &[0]), "more than 64 dimensions");

    // A record of a list of twenty million times nothing.
    let nulls = "null,".repeat(19_000_000);
    let header = format!(
        "{{\"__metadata__\":{{\"safejax.format\":\"1\",\"safejax.tree\":\"{{\\\"$list\\\":[{nulls}null]}}\"}}}}"
    );
    let path = directory.path().join("record.safetensors");
    std::fs::write(&path, raw_file(&header, &[])).unwrap();
    let output = common::safejax().arg("verify").arg(&path).output().unwrap();
    assert!(stderr(&output).contains("structure record is too large"), "{}", stderr(&output));
    std::fs::remove_file(path).unwrap();

    // A gigabyte of zeros, deflated.
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().large_file(true);
    archive.start_file("w.npy", options.compression_method(zip::CompressionMethod::Deflated)).unwrap();
    let count = 1 << 30;
    let mut head = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({count},), }}").into_bytes();
    head.resize(117, b' ');
    head.push(b'\n');
    archive.write_all(b"\x93NUMPY\x01\x00\x76\x00").unwrap();
    archive.write_all(&head).unwrap();
    let zeros = vec![0; 1 << 20];
    (0..count >> 20).for_each(|_| archive.write_all(&zeros).unwrap());
    refused_as("zeros.npz", &archive.finish().unwrap().into_inner(), "made to fill the memory");

    // A pickle of a gigabyte of nothing, compressed.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(b"\x80\x04]").unwrap();
    (0..1 << 10).for_each(|_| packed.write_all(&zeros).unwrap());
    refused_as("zeros.pkl", &packed.finish().unwrap(), "made to fill the memory");
}

#[test]
fn pickles_that_repeat_themselves_are_refused_within_the_bound() {
    let directory = tempfile::tempdir().unwrap();
    let refused_as = |bytes: &[u8], why: &str| {
        let path = directory.path().join("bomb.pkl");
        std::fs::write(&path, bytes).unwrap();
        let error = refused(&path);
        assert!(error.contains(why), "{error}");
    };
    let text = |bytes: usize| {
        let mut text = vec![b'X'];
        text.extend((bytes as u32).to_le_bytes());
        text.resize(text.len() + bytes, b'x');
        text
    };
    let many = |part: &[u8], count: usize| part.repeat(count);
    // A string of a megabyte, twenty thousand times in a list.
    let repeated =
        [b"\x80\x04".to_vec(), text(1 << 20), b"q\x000](".to_vec(), many(b"h\x00", 20_000), b"e.".to_vec()];
    refused_as(&repeated.concat(), "repeats its own parts too often");
    // The same as bytes, encoded anew each time.
    let head = [b"\x80\x04c_codecs\nencode\nq\x010X\x06\x00\x00\x00latin1q\x020".to_vec(), text(1 << 20)];
    let encoded =
        [head.concat(), b"q\x000](".to_vec(), many(b"h\x01h\x00h\x02\x86R", 20_000), b"e.".to_vec()];
    refused_as(&encoded.concat(), "copies its own parts too often");
    // Twenty million memories, marks, and values.
    for (part, why) in [(&b"\x94"[..], "remembers more values"), (b"(", "more values"), (b"]", "more values")]
    {
        refused_as(&[b"\x80\x04]".to_vec(), many(part, 20_000_000), b".".to_vec()].concat(), why);
    }
    // A long key above many leaves, whose names repeat it.
    let leaves: Vec<u8> = (0..20_000u32)
        .flat_map(|leaf| [&b"X\x04\x00\x00\x00"[..], format!("{leaf:04x}").as_bytes(), b"K\x01"].concat())
        .collect();
    let deep = [b"\x80\x04}".to_vec(), text(1 << 20), b"}(".to_vec(), leaves, b"us.".to_vec()];
    refused_as(&deep.concat(), "names of its leaves");
}

/// A checkpoint of PyTorch: tensors of a storage of four bytes, by name, each a million times as often as it is there.
fn broadcast(names: &[String]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for name in names {
        let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
        pickle.extend(text(name));
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend([text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu")].concat());
        // Its storage of one element, the offset, and a shape and strides of two dimensions.
        pickle.extend(b"K\x01tQK\x00J\x00\x00\x10\x00J\x00\x01\x00\x00\x86K\x00K\x00\x86\x89}tR");
    }
    pickle.extend(b"u.");
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in [("a/data.pkl", &pickle[..]), ("a/data/0", &[0; 4]), ("a/version", b"3\n")] {
        archive.start_file(name, options).unwrap();
        archive.write_all(content).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

#[test]
fn tensors_that_repeat_what_is_stored_are_refused_before_they_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broadcast.pt");
    for count in [1, 100] {
        let names: Vec<String> = (0..count).map(|number| format!("w{number}")).collect();
        std::fs::write(&path, broadcast(&names)).unwrap();
        let error = refused(&path);
        assert!(error.contains("made to fill the memory"), "{error}");
    }
    // Who knows the file asks for it.
    let whole = common::succeeds(common::safejax().args(["inspect", "--no-limits"]).arg(&path));
    assert!(whole.contains("w99"), "{whole}");
}
