//! The header of a safetensors file: the `safetensors` crate parses it; what is added here is that a name
//! that stands twice is an error, and that an error names the tensor and the offsets.

use std::collections::HashSet;
use std::fmt;

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// The bytes of the header's length, a little-endian u64, with which a file begins.
pub const LENGTH_BYTES: usize = 8;

/// The longest header that the official readers accept, in bytes.
pub const MAX_HEADER_BYTES: usize = 100_000_000;

/// Reads and checks the header. Returns where the data starts, and the header, or else what is wrong.
pub fn read(file: &[u8]) -> Result<(usize, Metadata), String> {
    let header = header_text(file)?;
    let (length, metadata) = SafeTensors::read_metadata(file)
        .map_err(|error| diagnose(header, file.len()).unwrap_or_else(|| error.to_string()))?;
    if let Some(name) = duplicate(header) {
        return Err(format!(
            "the name `{name}` stands twice in the header; write the file again with distinct names"
        ));
    }
    Ok((LENGTH_BYTES + length, metadata))
}

/// The header's text, with everything about its length checked.
fn header_text(file: &[u8]) -> Result<&str, String> {
    let Some((length, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(format!(
            "it has {} bytes, and the header's length alone takes {LENGTH_BYTES}; it is empty or cut off",
            file.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES as u64 {
        return Err(format!(
            "its first 8 bytes say that the header has {length} bytes, over the limit of {MAX_HEADER_BYTES}; it \
             is probably a file of another kind"
        ));
    }
    let Some(header) = rest.get(..length as usize) else {
        return Err(format!(
            "the header should have {length} bytes, but only {} follow its length; the file is cut off",
            rest.len()
        ));
    };
    std::str::from_utf8(header).map_err(|error| {
        format!(
            "the header is not UTF-8 at byte {}; it is a file of another kind or damaged",
            error.valid_up_to()
        )
    })
}

/// The first name that stands twice in the header, or in its metadata.
fn duplicate(header: &str) -> Option<String> {
    fn twice<T>(entries: &[(String, T)]) -> Option<String> {
        let mut seen = HashSet::with_capacity(entries.len());
        entries.iter().map(|(name, _)| name).find(|name| !seen.insert(*name)).cloned()
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(rename = "__metadata__")]
        metadata: Option<Entries<IgnoredAny>>,
    }
    let entries: Entries<IgnoredAny> = serde_json::from_str(header).ok()?;
    let has_metadata = entries.0.iter().any(|(name, _)| name == "__metadata__");
    twice(&entries.0).or_else(|| {
        if !has_metadata {
            return None;
        }
        let metadata = serde_json::from_str::<Metadata>(header).ok()?.metadata?;
        twice(&metadata.0).map(|key| format!("__metadata__.{key}"))
    })
}

/// The longest header of which it is told in detail what is wrong; taking one apart takes many times its size.
const MAX_DIAGNOSED_BYTES: usize = 8_000_000;

/// Why the parser refused a header, in words that name the tensor; `None` if that cannot be told.
fn diagnose(header: &str, file_bytes: usize) -> Option<String> {
    if header.len() > MAX_DIAGNOSED_BYTES {
        return None;
    }
    let entries = match serde_json::from_str::<Entries<serde_json::Value>>(header) {
        Ok(entries) => entries.0,
        Err(error) => {
            return Some(format!(
                "the header is not a JSON object: {error} (column counts from the header's start)"
            ));
        }
    };
    let mut seen = HashSet::new();
    let mut tensors = Vec::new();
    for (name, value) in entries {
        if !seen.insert(name.clone()) {
            return Some(format!("the name `{name}` stands twice in the header"));
        }
        if name == "__metadata__" {
            let strings = value.as_object().is_some_and(|map| map.values().all(serde_json::Value::is_string));
            if !strings && !value.is_null() {
                return Some("`__metadata__` must map strings to strings".into());
            }
            continue;
        }
        match Entry::deserialize(&value) {
            Ok(entry) => tensors.push((name, entry)),
            Err(error) => return Some(format!("tensor `{name}`: {error}")),
        }
    }
    tensors.sort_by_key(|(_, entry)| entry.data_offsets);
    let data_bytes = file_bytes - LENGTH_BYTES - header.len();
    diagnose_tensors(&tensors, data_bytes)
}

/// What is wrong with tensors that are in the order of their offsets.
fn diagnose_tensors(tensors: &[(String, Entry)], data_bytes: usize) -> Option<String> {
    for (name, entry) in tensors {
        let (start, end) = entry.data_offsets;
        if end < start {
            return Some(format!("tensor `{name}` ends at {end}, before it starts at {start}"));
        }
        if end > data_bytes as u64 {
            return Some(format!(
                "tensor `{name}` lies at {start}..{end}, but there are only {data_bytes} bytes of data; the file \
                 is cut off or the offsets are wrong"
            ));
        }
        let bits =
            entry.shape.iter().try_fold(entry.dtype.bitsize() as u64, |bits, &dim| bits.checked_mul(dim));
        let Some(bits) = bits else {
            return Some(format!(
                "tensor `{name}` of shape {:?} has more elements than can be counted",
                entry.shape
            ));
        };
        if bits % 8 != 0 || bits / 8 != end - start {
            return Some(format!(
                "tensor `{name}` of type {} and shape {:?} takes {} bytes, but its offsets {start}..{end} hold {}",
                entry.dtype,
                entry.shape,
                bits.div_ceil(8),
                end - start
            ));
        }
    }
    let mut previous: (&str, u64) = ("the header", 0);
    for (name, entry) in tensors {
        let (start, end) = entry.data_offsets;
        if start < previous.1 {
            return Some(format!(
                "tensor `{name}` starts at {start}, within `{}`, which ends at {}",
                previous.0, previous.1
            ));
        }
        if start > previous.1 {
            return Some(format!(
                "there is a hole of {} bytes between `{}`, which ends at {}, and tensor `{name}` at {start}",
                start - previous.1,
                previous.0,
                previous.1
            ));
        }
        previous = (name, end);
    }
    (previous.1 != data_bytes as u64).then(|| {
        format!(
            "the tensors end at {}, but there are {data_bytes} bytes of data after the header",
            previous.1
        )
    })
}

/// One tensor as the header describes it.
#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// A JSON object as the list of its entries, duplicates included.
struct Entries<T>(Vec<(String, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Collect<T> {
            type Value = Entries<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Collect(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data_bytes: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data_bytes, 0);
        file
    }

    fn problem(header: &str, data_bytes: usize) -> String {
        read(&file(header, data_bytes)).unwrap_err()
    }

    #[test]
    fn a_valid_file_is_read() {
        let header = r#"{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   "#;
        let (start, metadata) = read(&file(header, 8)).unwrap();
        assert_eq!(start, 8 + header.len());
        assert_eq!(metadata.tensors().len(), 1);
    }

    #[test]
    fn every_cut_is_an_error() {
        let header = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let whole = file(header, 8);
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "cut to {length} bytes");
        }
        assert!(read(&whole).is_ok());
    }

    #[test]
    fn each_broken_rule_is_named_with_its_tensor() {
        let cases = [
            (
                r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#,
                4,
                "takes 8 bytes, but its offsets 0..4 hold 4",
            ),
            (r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8, "a hole of 4 bytes"),
            (r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 8, "the tensors end at 4"),
            (
                r#"{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
                8,
                "ends at 0, before it starts at 4",
            ),
            (r#"{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 8, "only 8 bytes of data"),
            (
                r#"{"x":{"dtype":"F99","shape":[4],"data_offsets":[0,16]}}"#,
                16,
                "tensor `x`: unknown variant `F99`",
            ),
            (r#"{"x":{"dtype":"F32","shape":[-4],"data_offsets":[0,16]}}"#, 16, "tensor `x`: invalid value"),
            (r#"{"x":{"shape":[4],"data_offsets":[0,16]}}"#, 16, "tensor `x`: missing field `dtype`"),
            (r#"{"__metadata__":{"a":1}}"#, 0, "`__metadata__` must map strings to strings"),
            (r#"["x"]"#, 0, "not a JSON object"),
            (r#"{"x""#, 0, "not a JSON object"),
            (
                r#"{"x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"y":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                6,
                "tensor `y` starts at 2, within `x`, which ends at 4",
            ),
            (
                r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
                0,
                "more elements than can be counted",
            ),
            (r#"{"x":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, 1, "takes 2 bytes"),
        ];
        for (header, data_bytes, expected) in cases {
            let problem = problem(header, data_bytes);
            assert!(problem.contains(expected), "{header}: {problem}");
        }
    }

    #[test]
    fn a_name_that_stands_twice_is_an_error_even_where_the_offsets_agree() {
        let entry = r#""x":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        assert!(problem(&format!("{{{entry},{entry}}}"), 4).contains("`x` stands twice"));
        let metadata = r#"{"__metadata__":{"k":"1","k":"2"}}"#;
        assert!(problem(metadata, 0).contains("`__metadata__.k` stands twice"));
    }

    #[test]
    fn a_header_that_is_too_long_is_refused_before_it_is_read() {
        let mut file = u64::MAX.to_le_bytes().to_vec();
        file.extend([0; 64]);
        assert!(read(&file).unwrap_err().contains("over the limit"));
        file[..8].copy_from_slice(&1000u64.to_le_bytes());
        assert!(read(&file).unwrap_err().contains("only 64 follow"));
        file[..8].copy_from_slice(&4u64.to_le_bytes());
        file[8] = 0xff;
        assert!(read(&file).unwrap_err().contains("not UTF-8 at byte 0"));
    }
}
