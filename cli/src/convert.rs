//! `safejax convert`: a file written anew, in the same format or another.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use safejax::DType;
use safejax::convert::{self, ConvertOptions, TargetFormat};
use safejax::format::check_alignment;
use safejax::printable::{Count, File, Line, Name};
use safejax::save::Digests;
use serde_json::json;

use crate::output::{OutputArgs, wrong_usage};
use crate::select::SelectArgs;
use crate::stream;
use crate::work_bar;

#[derive(Args)]
pub struct Convert {
    /// The checkpoint to read, of any format that is read: safetensors, Orbax, Flax msgpack, npz, npy, pickles, PyTorch, Equinox, Keras
    /// and HDF5, TensorFlow, ONNX, GGUF, Arrow; of one in several files, the index, one of them or the directory
    input: PathBuf,

    /// The file to write, as its ending says: .safetensors, .msgpack, .npz, .npy, or .json for the tree alone; it may
    /// be the one that is read. With .orbax, a new directory that Orbax restores
    file: PathBuf,

    /// The format to write, whatever the file's ending: safetensors, msgpack, npz, npy, orbax or json
    #[arg(long, value_name = "FORMAT")]
    to: Option<TargetFormat>,

    /// Cast floating point tensors: f16, bf16, f32 or f64, or PATTERN=TYPE for those whose names match
    #[arg(long = "dtype", value_name = "[PATTERN=]DTYPE", value_parser = parse_cast)]
    dtypes: Vec<(String, DType)>,

    /// What tensors of a safetensors file are aligned to where they can be, in bytes: a power of two, 8 to 4096 [default: 64]
    #[arg(long, value_name = "BYTES", value_parser = parse_alignment)]
    align: Option<usize>,

    /// Record the sha256 of every tensor
    #[arg(long)]
    digests: bool,

    /// Write several safetensors files with an index, each of at most so many bytes of tensors, where one would be
    /// larger: 5GB, 500MB, 2GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_shard_size: Option<u64>,

    /// Compress the arrays of an Orbax directory with Zstandard, at this level: 1 to 22
    #[arg(long, value_name = "LEVEL", num_args = 0..=1, require_equals = true, default_missing_value = "1")]
    #[arg(value_parser = clap::value_parser!(i32).range(1..=22))]
    zstd: Option<i32>,

    /// Do not wait until the bytes are on the disk
    #[arg(long)]
    no_sync: bool,

    #[command(flatten)]
    select: SelectArgs,

    #[command(flatten)]
    output: OutputArgs,
}

/// A size in bytes, with a unit of thousands (kB, MB, GB, TB) or of 1024s (KiB, MiB, GiB, TiB), or none.
fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 10] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1_000),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("B", 1),
    ];
    let unit = UNITS.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, unit) = unit.unwrap_or((text, 1));
    let size = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    size.filter(|&size| size > 0).ok_or_else(|| "it is not a size such as 5GB, 500MB or 2GiB".into())
}

fn parse_alignment(text: &str) -> Result<usize, String> {
    let alignment = text.parse().map_err(|_| "it is not a number of bytes")?;
    check_alignment(alignment).map_err(|error| error.to_string())?;
    Ok(alignment)
}

/// A type, for the tensors that match a pattern or for all.
pub fn parse_cast(text: &str) -> Result<(String, DType), String> {
    let (pattern, name) = text.rsplit_once('=').unwrap_or(("*", text));
    let dtype = name.parse().map_err(|error: safejax::Error| error.to_string())?;
    Ok((pattern.to_owned(), dtype))
}

impl Convert {
    /// Refuses options that do not go together.
    fn check(&self) {
        let format = self.to.or(TargetFormat::of_name(&self.file));
        let is_other = format.is_some_and(|format| format != TargetFormat::Safetensors);
        if self.max_shard_size.is_some() && (stream::is_dash(&self.file) || is_other) {
            wrong_usage("--max-shard-size is for safetensors files with a name");
        }
        let is_orbax = format == Some(TargetFormat::Orbax);
        if self.zstd.is_some() && !is_orbax {
            wrong_usage("--zstd is for directories of Orbax");
        }
        if is_orbax && stream::is_dash(&self.file) {
            wrong_usage("a directory of Orbax needs a name, and cannot go to standard output");
        }
        if self.align.is_some() && is_other {
            wrong_usage("--align is for safetensors files");
        }
        if self.digests && is_other {
            wrong_usage("--digests is for safetensors files");
        }
        if stream::is_dash(&self.file) && self.to.is_none() {
            wrong_usage("standard output has no name that says a format; give it with --to");
        }
    }

    pub fn run(mut self) -> Result<String> {
        self.check();
        self.input = self.select.input(&self.input)?;
        let source = convert::open(&self.input, &self.select.selection()?)?;
        let mut options = ConvertOptions::default();
        options.format = self.to;
        options.dtypes = self.dtypes;
        options.alignment = self.align.unwrap_or(options.alignment);
        options.digests = if self.digests { Digests::Sha256 } else { Digests::None };
        options.max_shard_bytes = self.max_shard_size;
        options.zstd_level = self.zstd;
        options.write.sync = !self.no_sync;
        options.monitor = work_bar::watch();
        let report = stream::output(&self.file, |file| Ok(convert::convert(&source, file, &options)?))?;
        let text = || {
            let mut text = format!("{}: {}", File(&self.file), Count(report.tensors, "tensor"));
            if report.files > 1 {
                let _ =
                    write!(text, " in {} files, with an index of that name and .index.json", report.files);
            }
            let _ = write!(text, ", {} cast", report.cast_tensors);
            if report.unaligned_tensors > 0 {
                let _ = write!(text, ", {} not aligned: devices copy those", report.unaligned_tensors);
            }
            text.push('\n');
            for note in &report.notes {
                let _ = writeln!(text, "note: {}", Line(note));
            }
            for (name, count) in &report.overflows {
                let name = Name(name);
                let _ =
                    writeln!(text, "warning: {count} elements of `{name}` are too large and became infinite");
            }
            text
        };
        if stream::is_dash(&self.file) {
            // Standard output has the file.
            eprint!("{}", text());
            return Ok(String::new());
        }
        Ok(self.output.choose(text, || json!({"file": self.file, "from": source.format(), "report": report})))
    }
}
