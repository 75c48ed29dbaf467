//! Which process writes which part of which tensor: each says what it has, and all come to the same answer.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// What a process has of the tensors that are saved, and how it would save them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offers {
    /// All that has to be the same in every process: the file's name, its strings, how it is laid out.
    pub terms: BTreeMap<String, String>,
    pub tensors: Vec<Offer>,
    /// The machine's name.
    pub host: String,
    /// Whether machines that write to one file there undo each other's writes.
    pub is_incoherent: bool,
}

/// What a process has of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    pub name: String,
    /// Its type and shape in the file.
    pub spec: String,
    /// Into how many parts each dimension is cut.
    pub cuts: Vec<usize>,
    /// The bytes of a part in memory.
    pub part_bytes: u64,
    /// The numbers of the parts that the process has.
    pub parts: Vec<usize>,
}

/// The process that writes each part of each tensor.
pub type Writers = Vec<Vec<usize>>;

impl Offers {
    /// For a store whose values are not to be large.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let failed =
            |error: std::io::Error| Error::Processes(format!("what is saved cannot be told: {error}"));
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        let text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        encoder.write_all(&text).map_err(failed)?;
        encoder.finish().map_err(failed)
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Offers> {
        let mut text = String::new();
        let read = ZlibDecoder::new(bytes).read_to_string(&mut text).map_err(|error| error.to_string());
        read.and_then(|_| serde_json::from_str(&text).map_err(|error| error.to_string()))
            .map_err(|error| Error::Processes(format!("what another process saves cannot be read: {error}")))
    }
}

/// Who writes what: each part is written once, by the process with the least to write among those that have it.
///
/// # Errors
/// [`Error::Processes`] when the processes do not save the same, or nobody has a part.
pub fn assign(offers: &[Offers]) -> Result<Writers> {
    offers.iter().enumerate().skip(1).try_for_each(|(process, other)| compare(&offers[0], other, process))?;
    check_file_system(offers)?;
    let mut bytes = vec![0u64; offers.len()];
    let tensors = offers[0].tensors.iter().enumerate();
    tensors
        .map(|(position, tensor)| {
            let count = tensor.cuts.iter().product();
            let mut has = vec![Vec::new(); count];
            for (process, offers) in offers.iter().enumerate() {
                for &part in &offers.tensors[position].parts {
                    let Some(has) = has.get_mut(part) else {
                        return Err(Error::Processes(format!(
                            "process {process} has a part {part} of {count}"
                        )));
                    };
                    has.push(process);
                }
            }
            let writer = |(part, has): (usize, Vec<usize>)| {
                let writer = has.into_iter().min_by_key(|&process| (bytes[process], process));
                let writer = writer
                    .ok_or_else(|| Error::Processes(format!("no process has its part {part} of {count}")))?;
                bytes[writer] += tensor.part_bytes;
                Ok(writer)
            };
            has.into_iter().enumerate().map(writer).collect::<Result<Vec<_>>>().for_tensor(&tensor.name)
        })
        .collect()
}

/// Refuses what two processes would not save alike.
fn compare(first: &Offers, other: &Offers, process: usize) -> Result<()> {
    let differs = |what: String| {
        Err(Error::Processes(format!("processes 0 and {process} do not save the same: {what}")))
    };
    if first.tensors.len() != other.tensors.len() {
        return differs(format!("{} tensors and {}", first.tensors.len(), other.tensors.len()));
    }
    for (one, two) in first.tensors.iter().zip(&other.tensors) {
        let is_same = one.name == two.name && one.spec == two.spec && one.cuts == two.cuts;
        if !is_same {
            let said =
                |tensor: &Offer| format!("`{}`, {} in {:?} parts", tensor.name, tensor.spec, tensor.cuts);
            return differs(format!("{} and {}", said(one), said(two)));
        }
    }
    let keys = first.terms.keys().chain(other.terms.keys());
    match keys.into_iter().find(|key| first.terms.get(*key) != other.terms.get(*key)) {
        Some(key) => {
            let said =
                |offers: &Offers| offers.terms.get(key).map_or("nothing".to_owned(), |value| cut(value));
            differs(format!("{key} is {} and {}", said(first), said(other)))
        }
        None => Ok(()),
    }
}

/// What is shown of a value.
const SHOWN_CHARACTERS: usize = 60;

fn cut(value: &str) -> String {
    match value.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => format!("`{}…`", &value[..end]),
        None => format!("`{value}`"),
    }
}

/// Refuses a file system on which the machines would undo each other's writes: a client of NFS writes pages, not bytes, and two
/// machines write to one page.
fn check_file_system(offers: &[Offers]) -> Result<()> {
    let other = offers.iter().find(|other| other.host != offers[0].host);
    match other.filter(|_| offers.iter().any(|offers| offers.is_incoherent)) {
        Some(other) => Err(Error::Processes(format!(
            "the checkpoint is on NFS, SMB or the like, and processes of several machines ({} and {}) cannot write one file there: save to a file \
             system that is the same everywhere (such as Lustre, GPFS or CephFS), or from one machine",
            offers[0].host.trim(),
            other.host.trim()
        ))),
        None => Ok(()),
    }
}

/// The process whose file has each tensor: the one that writes most of it.
pub fn owners(writers: &Writers, processes: usize) -> Vec<usize> {
    let owner = |parts: &Vec<usize>| {
        let mut counts = vec![0usize; processes];
        parts.iter().for_each(|&writer| counts[writer] += 1);
        let most = counts.iter().copied().max().unwrap_or(0);
        counts.iter().position(|&count| count == most).unwrap_or(0)
    };
    writers.iter().map(owner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(parts: &[(&str, &[usize], &[usize])]) -> Offers {
        let tensors = parts.iter().map(|(name, cuts, parts)| Offer {
            name: (*name).into(),
            spec: "float32[8]".into(),
            cuts: cuts.to_vec(),
            part_bytes: 32 / cuts.iter().product::<usize>() as u64,
            parts: parts.to_vec(),
        });
        Offers {
            terms: [("the file".to_owned(), "a".to_owned())].into(),
            tensors: tensors.collect(),
            host: "here".into(),
            is_incoherent: true,
        }
    }

    #[test]
    fn each_part_is_written_once_and_the_work_is_shared() {
        let all = [
            offers(&[("a", &[4], &[0, 1]), ("b", &[1], &[0]), ("c", &[1], &[0]), ("d", &[2], &[0])]),
            offers(&[("a", &[4], &[2, 3]), ("b", &[1], &[0]), ("c", &[1], &[0]), ("d", &[2], &[0, 1])]),
        ];
        let writers = assign(&all).unwrap();
        assert_eq!(writers, [vec![0, 0, 1, 1], vec![0], vec![1], vec![0, 1]]);
        assert_eq!(owners(&writers, 2), [0, 0, 1, 0]);
        let again = Offers::from_bytes(&all[0].to_bytes().unwrap()).unwrap();
        assert_eq!(again, all[0]);
        assert!(Offers::from_bytes(b"no").is_err());
    }

    #[test]
    fn what_is_not_the_same_or_missing_is_named() {
        let error = |one: &Offers, two: &Offers| assign(&[one.clone(), two.clone()]).unwrap_err();
        let one = offers(&[("a", &[2], &[0])]);
        let message = error(&one, &offers(&[("b", &[2], &[0])])).to_string();
        assert!(message.contains("processes 0 and 1") && message.contains("`b`"), "{message}");
        assert!(error(&one, &offers(&[])).to_string().contains("1 tensors and 0"));
        let long = "b".repeat(100);
        let other = Offers { terms: [("the file".to_owned(), long)].into(), ..one.clone() };
        let message = error(&one, &other).to_string();
        assert!(message.ends_with(&format!("the file is `a` and `{}…`", "b".repeat(60))), "{message}");
        let elsewhere = Offers { host: "there".into(), ..offers(&[("a", &[2], &[1])]) };
        assert!(error(&one, &elsewhere).to_string().contains("(here and there)"));
        let local = Offers { is_incoherent: false, ..one.clone() };
        assert!(assign(&[local, Offers { is_incoherent: false, ..elsewhere }]).is_ok());
        let missing = error(&one, &one);
        assert_eq!(missing.to_string(), "tensor `a`");
        assert!(crate::error::chain(&missing).contains("no process has its part 1 of 2"));
        assert!(error(&one, &offers(&[("a", &[2], &[7])])).to_string().contains("a part 7 of 2"));
    }
}
