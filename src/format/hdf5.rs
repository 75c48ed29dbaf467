//! HDF5 files, as Keras and h5py write them: groups of groups and datasets. What lies in one piece is used where it is; chunks are
//! found by the file's own indexes, and expanded as those of other formats. The crate `hdf5-reader` reads the format's structures.
//! Held against files of h5py 3.16 (HDF5 1.14) of every version of the format, and of Keras 2 and 3.

mod dataset;
mod element;
mod storage;

use std::collections::BTreeMap;
use std::sync::Arc;

use hdf5_reader::group::Group;
use hdf5_reader::{Attribute, ExternalLinkResolver, Hdf5File, OpenOptions};

use super::checkpoint::{Checkpoint, Format, LeftOut, RecordedStructure, Tensor};
use super::pool::Pool;
use super::problem::Problem;
use crate::error::Result;
use crate::limits::Limits;
use crate::store::SharedBlob;
use crate::tree::{Framework, Key, KeyMap, KeyPath, MAX_DEPTH};
use dataset::Found;
use storage::Window;

/// What a file is, for errors.
const FORMAT: &str = "HDF5 file";

/// What a file begins with, or has after a block of the user's. The first byte is also that of a map of msgpack.
pub(super) const MAGIC: &[u8] = b"\x89HDF\r\n\x1a\n";

/// The first place, in bytes, after which a file can begin; the others are this times two, again and again.
const FIRST_USER_BLOCK: usize = 512;

/// The name of the attribute in which Keras 3 keeps a layer's own name, of the group of its variables.
const LAYER_NAME: &str = "name";

/// The group in which Keras 3 keeps a layer's variables.
const VARIABLES: &str = "vars";

/// The largest header of an object that is read, in bytes: Keras keeps the model's configuration in one.
const MAX_HEADER_BYTES: usize = 64 << 20;

/// What the crate says of a dataset that is made of others. It lists no group that has one.
const VIRTUAL: &str = "unsupported layout class 3";

/// Whether a file begins like one, at once or after a block of the user's.
pub(super) fn begins(head: &[u8]) -> bool {
    let places = std::iter::successors(Some(FIRST_USER_BLOCK), |place| place.checked_mul(2));
    std::iter::once(0)
        .chain(places.take_while(|place| *place < head.len()))
        .any(|place| head[place..].starts_with(MAGIC))
}

/// Opens a file.
///
/// # Errors
/// [`crate::Error::Malformed`]; [`crate::Error::Io`].
pub(super) fn open(blob: SharedBlob, limits: Limits) -> Result<Checkpoint> {
    let window = 0..blob.size();
    open_within(blob, window, Format::Hdf5, limits)
}

/// Opens a file that is part of another one.
///
/// # Errors
/// As for [`open`].
pub(super) fn open_within(
    blob: SharedBlob,
    window: std::ops::Range<usize>,
    format: Format,
    limits: Limits,
) -> Result<Checkpoint> {
    let origin = blob.origin().to_owned();
    let window = Window::new(SharedBlob::clone(&blob), window);
    let read = Contents::read(&window, limits).map_err(|problem| problem.into_error(&origin, FORMAT));
    let Contents { found, left_out, metadata, .. } = read?;
    let mut pool = Pool::new(&origin, vec![blob]);
    let (names, paths): (Vec<String>, _) =
        found.iter().map(|(path, _)| (path.join("/"), path_of(path))).unzip();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let placed = KeyMap::place_paths_or_flat(&names, paths);
    let (keys, order) =
        placed.map_err(|error| Problem::Content(error.to_string()).into_error(&origin, FORMAT))?;
    let mut found: Vec<Option<Found>> = found.into_iter().map(|(_, found)| Some(found)).collect();
    let mut tensors: Vec<Tensor> = Vec::with_capacity(found.len());
    for (leaf, position) in keys.leaves().iter().zip(order) {
        if let Some(found) = found[position].take() {
            tensors.push(found.into_tensor(leaf.name.clone(), window.start(), &mut pool));
        }
    }
    let mut checkpoint = Checkpoint::new(&origin, format, pool.into_blobs(), tensors);
    checkpoint.structure = RecordedStructure::Tree(keys.def().clone(), Framework::Plain);
    checkpoint.left_out = left_out;
    checkpoint.metadata = metadata;
    Ok(checkpoint)
}

/// The keys that lead to an object.
fn path_of(path: &[String]) -> KeyPath {
    KeyPath::from(path.iter().map(|name| Key::dict(name.as_str())).collect::<Vec<_>>())
}

/// Refuses links to other files: what they lead to would be missing without a word.
struct NoOtherFiles;

impl ExternalLinkResolver for NoOtherFiles {
    fn resolve_external_link(&self, file: &str) -> hdf5_reader::error::Result<Option<Hdf5File>> {
        let problem =
            format!("it has a link to the file `{file}`, and links to other files are not followed");
        Err(hdf5_reader::error::Error::Other(problem))
    }
}

/// What a file holds.
struct Contents<'a> {
    window: &'a Window,
    file: Hdf5File,
    limits: Limits,
    /// The datasets by the names that lead to them.
    found: Vec<(Vec<String>, Found)>,
    left_out: Vec<LeftOut>,
    metadata: BTreeMap<String, String>,
    /// Objects that were met.
    count: usize,
}

impl Contents<'_> {
    fn read(window: &Window, limits: Limits) -> Result<Contents<'_>, Problem> {
        let options = OpenOptions {
            // Chunks are not read by it.
            chunk_cache_bytes: 0,
            max_object_header_bytes: MAX_HEADER_BYTES,
            external_link_resolver: Some(Arc::new(NoOtherFiles)),
            ..OpenOptions::default()
        };
        let file = Hdf5File::from_storage_with_options(window.storage(), options).map_err(problem_of)?;
        let end = file.superblock().eof_address;
        if end > window.size() as u64 {
            return Err(format!(
                "it says that it ends at byte {end}, and has {}: it is cut off",
                window.size()
            )
            .into());
        }
        let root = file.root_group().map_err(problem_of)?;
        let mut contents = Contents {
            window,
            file,
            limits,
            found: Vec::new(),
            left_out: Vec::new(),
            metadata: BTreeMap::new(),
            count: 0,
        };
        contents.add_texts(&root);
        contents.group(&root, &mut Vec::new(), &mut Vec::new())?;
        Ok(contents)
    }

    /// Takes the texts that are attributes of a group.
    fn add_texts(&mut self, group: &Group) {
        for attribute in attributes(group) {
            if let Ok(text) = attribute.read_string() {
                self.metadata.insert(attribute.name, text);
            }
        }
    }

    /// Takes what a group has. These names lead to it, and these addresses are of the groups that it is in.
    fn group(&mut self, group: &Group, path: &mut Vec<String>, within: &mut Vec<u64>) -> Result<(), Problem> {
        let place = || match path.is_empty() {
            true => "its root group".to_owned(),
            false => format!("its group `{}`", path.join("/")),
        };
        if within.contains(&group.address()) {
            return Err(format!("{} is within itself", place()).into());
        }
        if within.len() > MAX_DEPTH {
            return Err(format!("its groups are nested deeper than {MAX_DEPTH} levels").into());
        }
        let members = group.member_names().map_err(|error| problem_of(error).at(place()));
        let (groups, datasets) = members?;
        self.count += groups.len() + datasets.len();
        self.limits.check_nodes(self.count)?;
        if path.last().is_some_and(|name| name == VARIABLES) && !datasets.is_empty() {
            self.add_layer_name(group, path);
        }
        for name in datasets {
            path.push(name);
            self.dataset(group, path)?;
            path.pop();
        }
        within.push(group.address());
        for name in groups {
            let child =
                group.group(&name).map_err(|error| problem_of(error).at(format!("its group `{name}`")));
            path.push(name);
            self.group(&child?, path, within)?;
            path.pop();
        }
        within.pop();
        Ok(())
    }

    /// Takes the name that the user gave a layer, which is not where its variables are.
    fn add_layer_name(&mut self, variables: &Group, path: &[String]) {
        let attribute = attributes(variables).into_iter().find(|attribute| attribute.name == LAYER_NAME);
        if let Some(name) = attribute.and_then(|attribute| attribute.read_string().ok()) {
            self.metadata.insert(format!("layer_name.{}", path[..path.len() - 1].join(".")), name);
        }
    }

    fn dataset(&mut self, group: &Group, path: &[String]) -> Result<(), Problem> {
        let Some(name) = path.last() else { return Ok(()) };
        let found = group.dataset(name).map_err(problem_of);
        let found = found.and_then(|dataset| Found::read(&self.file, &dataset, self.window, self.limits));
        match found {
            Ok(Ok(found)) => self.found.push((path.to_vec(), found)),
            Ok(Err(why)) => self.left_out.push(LeftOut::new(path.join("."), why)),
            Err(Problem::Content(problem)) => {
                self.left_out.push(LeftOut::unreadable(path.join("."), problem));
            }
            Err(unreadable) => return Err(unreadable),
        }
        Ok(())
    }
}

/// The attributes of a group, where they can be read: nothing depends on them.
fn attributes(group: &Group) -> Vec<Attribute> {
    group.attributes().unwrap_or_else(|error| {
        tracing::debug!(%error, "the attributes of a group cannot be read");
        Vec::new()
    })
}

fn problem_of(error: hdf5_reader::error::Error) -> Problem {
    match error {
        hdf5_reader::error::Error::Io(error) => Problem::of_stream(error, "it is damaged"),
        error => {
            let problem = error.to_string();
            match problem.contains(VIRTUAL) {
                true => Problem::Content(format!(
                    "{}is virtual: its data is that of other datasets, which is not read; write it again by itself",
                    problem.split(VIRTUAL).next().unwrap_or_default().replace(": ", " ")
                )),
                false => Problem::Content(problem),
            }
        }
    }
}
