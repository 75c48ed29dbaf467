//! Orbax's checkpoints: directories with a tree in JSON, and an array for each of its leaves, in OCDBT or in directories of zarr.
//! What Orbax writes was held against orbax-checkpoint 0.2.3, 0.5.3 and 0.12.8.

mod flax;
mod place;
mod rich;
mod serialized;
mod tree;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::checkpoint::{Checkpoint, Format, LeftOut, RecordedStructure, Tensor};
use super::folder::{Folder, Location};
use super::problem::Problem;
use super::{ocdbt, zarr};
use crate::limits::Limits;
use crate::printable::{File, Line};
use crate::tree::{Framework, KeyMap, TreeDef, record};
pub use place::{Item, OrbaxContents, item_at, missing_step, orbax_contents, orbax_item};
use tree::{Content, Described};
pub(crate) use write::{OrbaxOptions, write};

/// What a directory is, for errors.
const FORMAT: &str = "checkpoint of Orbax";

/// The description of the tree.
const METADATA: &str = "_METADATA";

/// The strings of the tree.
const STRINGS: &str = "_strings.json";

/// What the directories of the databases of single processes begin with.
const PROCESS: &str = "ocdbt.process_";

/// Where the data of databases is: no directories of zarr.
const DATA: [&str; 3] = ["d", "ocdbt_data", "ocdbt_meta"];

/// How deep directories of arrays are nested at most.
const MAX_NESTING: usize = 64;

/// The arrays of a checkpoint by their names.
type Arrays = BTreeMap<String, Result<Tensor, String>>;

type Result<T, E = Problem> = std::result::Result<T, E>;

/// Opens the checkpoint whose arrays are there.
pub(super) fn open(item: &Item, limits: Limits) -> crate::error::Result<Checkpoint> {
    for step in &item.passed_over {
        tracing::warn!("{}: it is a step without arrays, and passed over", File(step));
    }
    let mut folder = Folder::new(&item.directory, limits);
    read(&mut folder).map_err(|problem| problem.into_error(&folder.origin(), FORMAT)).map(
        |(tensors, structure, left_out, metadata)| {
            let origin = folder.origin();
            let mut checkpoint = Checkpoint::new(&origin, Format::Orbax, folder.into_blobs(), tensors);
            checkpoint.structure = structure;
            checkpoint.left_out = left_out;
            checkpoint.metadata = metadata;
            checkpoint
        },
    )
}

type Opened = (Vec<Tensor>, RecordedStructure, Vec<LeftOut>, BTreeMap<String, String>);

fn read(folder: &mut Folder) -> Result<Opened> {
    if folder.has(serialized::FILE) {
        let (tensors, structure, left_out) = serialized::read(folder)?;
        return Ok((tensors, structure, left_out, BTreeMap::new()));
    }
    let described = match folder.has(METADATA) {
        true => {
            let json = folder.read_whole(METADATA)?;
            Some(Described::parse(&json).map_err(|problem| format!("{METADATA}: {problem}"))?)
        }
        false => None,
    };
    let values = values(folder, "")?;
    let is_filled = described.as_ref().is_none_or(|described| !described.has_every_chunk);
    let mut arrays = arrays(&values, folder, is_filled)?;
    let mut metadata = random_keys(folder)?;
    let is_elsewhere = |described: &Described| described.arrays().all(|name| arrays.contains_key(&name));
    let placed = match folder.has(flax::FILE) && !described.as_ref().is_some_and(is_elsewhere) {
        true => Some(flax::read(folder, &mut arrays)?),
        false => None,
    };
    let Some(described) = described else {
        if let Some(placed) = placed {
            return with_flax_tree(placed, metadata);
        }
        tracing::warn!("{}: it has no {METADATA}; the tree is that of the names", Line(&folder.origin()));
        let (tensors, left_out) = without_tree(arrays);
        return Ok((tensors, RecordedStructure::Names, left_out, metadata));
    };
    if let Some(placed) = placed {
        add_own(placed, &mut arrays)?;
    }
    folder.count(described.leaves.len())?;
    if let Some((tensors, structure)) = with_record(&described, &mut arrays)? {
        metadata.extend(described.metadata);
        return Ok((tensors, structure, Vec::new(), metadata));
    }
    let (tensors, structure, left_out) = with_tree(&described, arrays, &strings(folder)?)?;
    metadata.extend(record::strip(&described.metadata));
    Ok((tensors, structure, left_out, metadata))
}

/// The tree that this crate recorded beside the one that is described, with its arrays, if both have the same; Orbax cannot say
/// all of it.
fn with_record(
    described: &Described,
    arrays: &mut Arrays,
) -> Result<Option<(Vec<Tensor>, RecordedStructure)>> {
    let def = match record::read(&described.metadata) {
        Ok(Some(def)) => def,
        Ok(None) => return Ok(None),
        Err(error) => {
            tracing::warn!("what Orbax cannot say of the tree is lost: {}", Line(&error.to_string()));
            return Ok(None);
        }
    };
    let keys = keys_of(def)?;
    let framework = match described.metadata.get(record::FRAMEWORK_KEY).map(|name| name.parse()) {
        Some(Ok(framework)) => framework,
        _ => Framework::Plain,
    };
    let names = keys
        .leaves()
        .iter()
        .map(|leaf| tree::name_of(&tree::steps(leaf.path.keys(), &TreeDef::LEAF, framework)));
    let names: Vec<String> = names.collect();
    let described: BTreeSet<String> = described.arrays().collect();
    let is_same = names.len() == described.len()
        && names.iter().all(|name| described.contains(name) && matches!(arrays.get(name), Some(Ok(_))));
    if !is_same {
        tracing::warn!("the record of the tree is not of the arrays that there are, and is passed over");
        return Ok(None);
    }
    let tensors = names.iter().filter_map(|name| arrays.remove(name)?.ok()).collect();
    Ok(Some((named(&keys, tensors), RecordedStructure::Tree(keys.def().clone(), framework))))
}

/// The tree that is described, with its arrays.
fn with_tree(
    described: &Described,
    mut arrays: Arrays,
    strings: &BTreeMap<String, String>,
) -> Result<(Vec<Tensor>, RecordedStructure, Vec<LeftOut>)> {
    let content = |name: &str, kind: &str| match arrays.get(stored_name(name)) {
        Some(Ok(tensor)) => Content::Array(tensor.spec.clone()),
        Some(Err(problem)) => Content::Refused(problem.clone()),
        None => match (kind, strings.get(name)) {
            ("string", Some(text)) => Content::Text(text.clone()),
            ("string", None) => Content::Refused(format!("its text is not in {STRINGS}")),
            _ if tree::is_array(kind) => Content::Refused("its array is missing".into()),
            _ => Content::Refused(format!("it is of type `{kind}`, which is not read")),
        },
    };
    let (def, left_out) = described.tree(&content)?;
    let keys = keys_of(def)?;
    let mut tensors = Vec::with_capacity(keys.leaves().len());
    for leaf in keys.leaves() {
        let array = arrays.remove(stored_name(&leaf.name)).and_then(Result::ok);
        tensors.push(array.ok_or_else(|| format!("its tree has `{}` twice", leaf.name))?);
    }
    let (keys, framework) = match tree::without_variables(keys.def()) {
        Some(def) => (keys_of(def)?, Framework::Nnx),
        None => {
            let framework = framework_of(&keys);
            (keys, framework)
        }
    };
    let structure = RecordedStructure::Tree(keys.def().clone(), framework);
    Ok((named(&keys, tensors), structure, left_out))
}

/// The name by which an array is stored: TensorStore takes a slash at the end for one between directories.
fn stored_name(name: &str) -> &str {
    name.strip_suffix('/').unwrap_or(name)
}

fn keys_of(def: TreeDef) -> Result<KeyMap> {
    Ok(KeyMap::new(def).map_err(|error| error.to_string())?)
}

/// Arrays by the names of their leaves.
fn named(keys: &KeyMap, tensors: Vec<Tensor>) -> Vec<Tensor> {
    let leaves = keys.leaves().iter().zip(tensors);
    leaves.map(|(leaf, tensor)| Tensor { name: leaf.name.clone(), ..tensor }).collect()
}

/// The tree of the old file, with its arrays.
fn with_flax_tree(placed: flax::Placed, metadata: BTreeMap<String, String>) -> Result<Opened> {
    let flax::Placed { def, tensors, left_out } = placed;
    let keys = keys_of(def)?;
    let framework = framework_of(&keys);
    let structure = RecordedStructure::Tree(keys.def().clone(), framework);
    Ok((named(&keys, tensors), structure, left_out, metadata))
}

/// Adds the arrays that are in the old file itself, by their names.
fn add_own(placed: flax::Placed, arrays: &mut Arrays) -> Result<()> {
    for tensor in named(&keys_of(placed.def)?, placed.tensors) {
        arrays.entry(tensor.name.clone()).or_insert(Ok(tensor));
    }
    Ok(())
}

/// Where everything is that has a key, in a directory that is named with its slash: in a database, in those of single processes, or
/// in directories.
fn values(folder: &mut Folder, directory: &str) -> Result<ocdbt::Values> {
    let within = |name: &str| format!("{directory}{name}");
    if folder.has(&within(ocdbt::MANIFEST)) {
        return ocdbt::read(folder, directory);
    }
    let names = folder.names(directory)?;
    let mut values = ocdbt::Values::new();
    let is_database = |name: &&String| {
        name.starts_with(PROCESS) && folder.has(&within(&format!("{name}/{}", ocdbt::MANIFEST)))
    };
    let databases: Vec<&String> = names.iter().filter(is_database).collect();
    if !databases.is_empty() {
        tracing::warn!(
            "{}: its processes' databases were never put together by Orbax; the save may not have ended",
            Line(&folder.origin())
        );
        for name in databases {
            values.append(&mut ocdbt::read(folder, &within(&format!("{name}/")))?);
        }
        return Ok(values);
    }
    if folder.has(&within(zarr::V2_KEY)) || folder.has(&within(zarr::V3_KEY)) {
        add_files(folder, directory, true, MAX_NESTING, &mut values)?;
    } else {
        for name in &names {
            if folder.is_own_directory(&within(name)) {
                add_files(folder, &within(&format!("{name}/")), false, MAX_NESTING, &mut values)?;
            }
        }
    }
    let relative = |(path, location): (String, Location)| {
        (path.strip_prefix(directory).map(str::to_owned).unwrap_or(path), location)
    };
    Ok(values.into_iter().map(relative).collect())
}

/// Adds the files of a directory, which is named with its slash, by their paths: if it is an array's, or those within it that are.
fn add_files(
    folder: &mut Folder,
    directory: &str,
    is_within_array: bool,
    depth: usize,
    values: &mut ocdbt::Values,
) -> Result<()> {
    let too_deep = || format!("its directories are nested deeper than {MAX_NESTING} levels");
    let depth = depth.checked_sub(1).ok_or_else(too_deep)?;
    folder.count(1)?;
    let names = folder.names(directory)?;
    let is_array = is_within_array || names.iter().any(|name| name == zarr::V2_KEY || name == zarr::V3_KEY);
    for name in names {
        let path = format!("{directory}{name}");
        if folder.is_own_directory(&path) {
            add_files(folder, &format!("{path}/"), is_array, depth, values)?;
        } else if is_array && !folder.is_directory(&path) {
            folder.count(1)?;
            values.insert(path.clone(), folder.whole(&path)?);
        }
    }
    Ok(())
}

/// The arrays that values are of. Where one cannot be read, why not.
fn arrays(values: &ocdbt::Values, folder: &mut Folder, is_filled: bool) -> Result<Arrays> {
    let mut arrays = Arrays::new();
    for (path, location) in values {
        let (name, key) = path.rsplit_once('/').unwrap_or(("", path));
        if key != zarr::V2_KEY && key != zarr::V3_KEY {
            continue;
        }
        let array = match array(name, key, location, values, folder, is_filled) {
            Ok(tensor) => Ok(tensor),
            Err(Problem::Content(problem)) => Err(problem),
            Err(unreadable) => return Err(unreadable),
        };
        arrays.insert(name.to_owned(), array);
    }
    Ok(arrays)
}

fn array(
    name: &str,
    key: &str,
    location: &Location,
    values: &ocdbt::Values,
    folder: &mut Folder,
    is_filled: bool,
) -> Result<Tensor> {
    let json = folder.read_at_most("its description", location, zarr::MAX_DESCRIPTION_BYTES)?;
    let mut description = zarr::Description::parse(key, &json)?;
    if !is_filled {
        description.refuse_missing_chunks();
    }
    let prefix = if name.is_empty() { String::new() } else { format!("{name}/") };
    let under = values
        .range(prefix.clone()..)
        .map_while(|(path, location)| Some((path.strip_prefix(&prefix)?, location)));
    description.tensor(name, under, folder)
}

/// The arrays by their names, which may be paths, and those that cannot be read.
fn without_tree(arrays: Arrays) -> (Vec<Tensor>, Vec<LeftOut>) {
    let (mut tensors, mut left_out) = (Vec::new(), Vec::new());
    for (name, array) in arrays {
        match array {
            Ok(tensor) => tensors.push(Tensor { name: name.replace('/', "."), ..tensor }),
            Err(problem) => left_out.push(LeftOut::unreadable(name, problem)),
        }
    }
    (tensors, left_out)
}

fn strings(folder: &mut Folder) -> Result<BTreeMap<String, String>> {
    if !folder.has(STRINGS) {
        return Ok(BTreeMap::new());
    }
    let json = folder.read_whole(STRINGS)?;
    Ok(serde_json::from_slice(&json).map_err(|error| format!("{STRINGS} cannot be read: {error}"))?)
}

/// What the names of metadata begin with that says of a random key how it was made.
const RANDOM_KEY: &str = "random_key_impl.";

/// What JAX's random keys are of, which are stored as their numbers: `random_key_impl.NAME` for each.
fn random_keys(folder: &mut Folder) -> Result<BTreeMap<String, String>> {
    const DIRECTORY: &str = "array_metadatas";
    #[derive(Deserialize)]
    struct Metadatas {
        #[serde(default)]
        array_metadatas: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        array_metadata: Array,
    }
    #[derive(Deserialize)]
    struct Array {
        #[serde(default)]
        param_name: String,
        #[serde(default)]
        ext_metadata: Option<Extension>,
    }
    #[derive(Deserialize)]
    struct Extension {
        #[serde(default)]
        random_key_impl: Option<String>,
    }
    let mut keys = BTreeMap::new();
    if !folder.is_directory(DIRECTORY) {
        return Ok(keys);
    }
    for name in folder.names(DIRECTORY)? {
        let path = format!("{DIRECTORY}/{name}");
        if !folder.has(&path) {
            continue;
        }
        // Nothing else of it is needed.
        let Ok(found) = serde_json::from_slice::<Metadatas>(&folder.read_whole(&path)?) else { continue };
        for Entry { array_metadata: Array { param_name, ext_metadata } } in found.array_metadatas {
            if let Some(implementation) = ext_metadata.and_then(|extension| extension.random_key_impl) {
                keys.insert(format!("{RANDOM_KEY}{param_name}"), implementation);
            }
        }
    }
    Ok(keys)
}

/// The framework whose names these are, of those whose trees are as their names are.
fn framework_of(keys: &KeyMap) -> Framework {
    match Framework::detect(keys.leaves().iter().map(|leaf| leaf.name.as_str())) {
        framework @ (Framework::Flax | Framework::Haiku | Framework::Nnx) => framework,
        _ => Framework::Plain,
    }
}
