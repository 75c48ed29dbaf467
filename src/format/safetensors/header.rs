//! The header of a safetensors file. It is read in one pass, since files of many small tensors are mostly header, and
//! errors name the tensor and the offsets; the tests hold it against the `safetensors` crate's own reader.

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::limits::MAX_RANK;

/// The bytes of the header's length, a little-endian u64, with which a file begins.
pub const LENGTH_BYTES: usize = 8;

/// The longest header that the official readers accept, in bytes.
pub const MAX_HEADER_BYTES: usize = 100_000_000;

/// A header, read and checked.
#[derive(Debug)]
pub struct Header {
    /// The tensors by name, in the order of their bytes.
    pub tensors: Vec<(String, TensorEntry)>,
    /// The positions of the tensors in the order of their names.
    pub by_name: Vec<usize>,
    /// The strings beside the tensors.
    pub metadata: BTreeMap<String, String>,
}

/// One tensor as the header describes it.
#[derive(Debug, Deserialize)]
pub struct TensorEntry {
    pub dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    pub shape: Vec<usize>,
    /// Where its bytes begin and end, from the beginning of the data.
    pub data_offsets: (u64, u64),
}

/// The dimensions of a tensor, no more than an array may have: a header of commas and digits would take forty times its
/// size.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Collect;
    impl<'de> Visitor<'de> for Collect {
        type Value = Vec<usize>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of sizes")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Vec<usize>, A::Error> {
            let mut shape = Vec::new();
            while let Some(size) = sizes.next_element()? {
                if shape.len() == MAX_RANK {
                    return Err(A::Error::custom(format_args!("it has more than {MAX_RANK} dimensions")));
                }
                shape.push(size);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Collect)
}

/// Reads and checks the header's text, after which so many bytes of data follow, by the rules of the safetensors crate's own
/// reader and one more: names, of tensors and of metadata, stand once. Says what is wrong with it otherwise.
pub fn read(text: &[u8], data_bytes: usize) -> Result<Header, String> {
    let text = std::str::from_utf8(text).map_err(|error| {
        format!(
            "the header is not UTF-8 at byte {}; it is a file of another kind or damaged",
            error.valid_up_to()
        )
    })?;
    let HeaderObject { mut tensors, metadata } = serde_json::from_str(text).map_err(|error| {
        format!("the header is not a JSON object of tensors: {error} (column counts from the header's start)")
    })?;
    // Tensors without bytes may lie between others, or all at one place.
    tensors.sort_by(|(a_name, a), (b_name, b)| (a.data_offsets, a_name).cmp(&(b.data_offsets, b_name)));
    let mut by_name: Vec<usize> = (0..tensors.len()).collect();
    by_name.sort_by(|&a, &b| tensors[a].0.cmp(&tensors[b].0));
    let twice = |pair: &&[usize]| tensors[pair[0]].0 == tensors[pair[1]].0;
    if let Some(pair) = by_name.windows(2).find(twice) {
        let name = &tensors[pair[0]].0;
        return Err(Twice(name).to_string());
    }
    match broken_rule(&tensors, data_bytes) {
        None => Ok(Header { tensors, by_name, metadata }),
        Some(problem) => Err(problem),
    }
}

/// The problem of a name that stands twice.
struct Twice<'a>(&'a str);

impl fmt::Display for Twice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the name `{}` stands twice in the header; write the file again with distinct names",
            self.0
        )
    }
}

/// The beginning of a file that [`range`] looks at, in bytes: the length, or what a message shows of a file of text.
pub const START_BYTES: usize = 24;

/// Where the header's text is in a file of this size that begins so, with everything about its length checked.
pub fn range(head: &[u8], file_bytes: usize) -> Result<Range<usize>, String> {
    let Some(length) = head.first_chunk::<LENGTH_BYTES>() else {
        return Err(format!(
            "it has {file_bytes} bytes, and the header's length alone takes {LENGTH_BYTES}; it is empty or cut off"
        ));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES as u64 {
        let start: String = head.iter().take(START_BYTES).map(|&byte| char::from(byte)).collect();
        let is_text = start.chars().all(|c| c.is_ascii_graphic() || c.is_ascii_whitespace());
        if is_text {
            return Err(format!("it is text, which begins with `{start}`"));
        }
        return Err(format!(
            "its first 8 bytes say that the header has {length} bytes, over the limit of {MAX_HEADER_BYTES}; it \
             is probably a file of another kind"
        ));
    }
    let end = LENGTH_BYTES + length as usize;
    if end > file_bytes {
        return Err(format!(
            "the header should have {length} bytes, but only {} follow its length; the file is cut off",
            file_bytes - LENGTH_BYTES
        ));
    }
    Ok(LENGTH_BYTES..end)
}

/// What is wrong with tensors that are in the order of their offsets, if anything.
fn broken_rule(tensors: &[(String, TensorEntry)], data_bytes: usize) -> Option<String> {
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
        // One after another, as the official reader does, so that one without elements can still be too large.
        let count = entry.shape.iter().try_fold(1u64, |count, &dim| count.checked_mul(dim as u64));
        let bits = count.and_then(|count| count.checked_mul(entry.dtype.bitsize() as u64));
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

/// What stands in a header.
struct HeaderObject {
    tensors: Vec<(String, TensorEntry)>,
    metadata: BTreeMap<String, String>,
}

/// The key of the strings beside the tensors.
const METADATA_KEY: &str = "__metadata__";

impl<'de> Deserialize<'de> for HeaderObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<HeaderObject, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = HeaderObject;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HeaderObject, A::Error> {
                let (mut tensors, mut metadata) = (Vec::new(), None);
                while let Some(name) = map.next_key::<String>()? {
                    if name != METADATA_KEY {
                        let entry = map.next_value().map_err(|error| {
                            // The position stays at the end of the message, where serde_json finds it again.
                            A::Error::custom(format_args!("tensor `{name}`: {error}"))
                        })?;
                        tensors.push((name, entry));
                    } else if metadata.is_some() {
                        return Err(A::Error::custom(Twice(METADATA_KEY)));
                    } else {
                        metadata =
                            Some(map.next_value::<Option<Strings>>().map_err(|error| {
                                A::Error::custom(format_args!("`{METADATA_KEY}`: {error}"))
                            })?);
                    }
                }
                let metadata = metadata.flatten().map(|strings| strings.0).unwrap_or_default();
                Ok(HeaderObject { tensors, metadata })
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// An object of strings, whose keys stand once.
struct Strings(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Strings, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Strings;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of strings to strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strings, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    match strings.entry(key) {
                        btree_map::Entry::Vacant(place) => place.insert(value),
                        btree_map::Entry::Occupied(place) => {
                            return Err(A::Error::custom(Twice(place.key())));
                        }
                    };
                }
                Ok(Strings(strings))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(header: &str, data_bytes: usize) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.resize(file.len() + data_bytes, 0);
        file
    }

    /// Where the data starts, and the header.
    fn parse(file: &[u8]) -> Result<(usize, Header), String> {
        let range = range(file, file.len())?;
        let header = read(&file[range.clone()], file.len() - range.end)?;
        Ok((range.end, header))
    }

    fn problem(header: &str, data_bytes: usize) -> String {
        parse(&file(header, data_bytes)).unwrap_err()
    }

    #[test]
    fn a_valid_file_is_read() {
        let header = r#"{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}   "#;
        let (data_start, read) = parse(&file(header, 8)).unwrap();
        assert_eq!(data_start, 8 + header.len());
        assert_eq!(read.tensors.len(), 1);
        assert_eq!(read.metadata["a"], "b");
        assert!(parse(&file(r#"{"__metadata__":null}"#, 0)).unwrap().1.metadata.is_empty());
    }

    #[test]
    fn every_cut_is_an_error() {
        let header = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let whole = file(header, 8);
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "cut to {length} bytes");
        }
        assert!(parse(&whole).is_ok());
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
            (
                r#"{"__metadata__":{"a":1}}"#,
                0,
                "`__metadata__`: invalid type: integer `1`, expected a string",
            ),
            (r#"{"__metadata__":[]}"#, 0, "expected a map of strings to strings"),
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
        assert!(
            problem(r#"{"__metadata__":{},"__metadata__":{}}"#, 0).contains("`__metadata__` stands twice")
        );
        let metadata = r#"{"__metadata__":{"k":"1","k":"2"}}"#;
        assert!(problem(metadata, 0).contains("`__metadata__`: the name `k` stands twice"));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_what_the_safetensors_crate_accepts(
            changes in proptest::collection::vec((0usize..1000, "[\\PC]|[0-9\\[\\]{},:\"]"), 0..3),
            cut in 0usize..2,
        ) {
            let mut header: Vec<char> = concat!(
                r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"#,
                r#""b":{"dtype":"BF16","shape":[0],"data_offsets":[4,4]},"#,
                r#""cc":{"data_offsets":[4,12],"dtype":"I64","shape":[],"other":[{}]}}"#,
            ).chars().collect();
            for (position, with) in changes {
                let position = position % header.len();
                header.splice(position..position + 1, with.chars());
            }
            let file = file(&header.into_iter().collect::<String>(), 12 - cut);
            let ours = parse(&file);
            match safetensors::SafeTensors::read_metadata(&file) {
                // Theirs keeps the last of two of one name.
                Err(_) => prop_assert!(ours.is_err()),
                Ok((length, theirs)) => match ours {
                    Err(problem) => prop_assert!(problem.contains("stands twice"), "{problem}"),
                    Ok((data_start, ours)) => {
                        prop_assert_eq!(data_start, LENGTH_BYTES + length);
                        prop_assert_eq!(ours.tensors.len(), theirs.tensors().len());
                        for (name, entry) in &ours.tensors {
                            let theirs = theirs.info(name).unwrap();
                            prop_assert_eq!(entry.dtype, theirs.dtype);
                            prop_assert_eq!(&entry.shape, &theirs.shape);
                        }
                        let metadata: BTreeMap<_, _> =
                            theirs.metadata().clone().unwrap_or_default().into_iter().collect();
                        prop_assert_eq!(ours.metadata, metadata);
                    }
                },
            }
        }
    }

    #[test]
    fn a_header_that_is_too_long_is_refused_before_it_is_read() {
        let mut file = u64::MAX.to_le_bytes().to_vec();
        file.extend([0; 64]);
        assert!(parse(&file).unwrap_err().contains("over the limit"));
        file[..8].copy_from_slice(&1000u64.to_le_bytes());
        assert!(parse(&file).unwrap_err().contains("only 64 follow"));
        file[..8].copy_from_slice(&4u64.to_le_bytes());
        file[8] = 0xff;
        assert!(parse(&file).unwrap_err().contains("not UTF-8 at byte 0"));
    }
}
