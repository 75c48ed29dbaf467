//! The writer: a directory that `orbax.checkpoint` restores, as its first API writes them: OCDBT and zarr 2, each array in one
//! chunk where it is not too large. What Orbax cannot say of a tree, such as which of its lists are tuples, is in a record of
//! ours beside (`docs/tree-record.md`), under `custom_metadata`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::place::{STEP_METADATA, UNFINISHED, is_unfinished};
use super::tree::{self, Step};
use super::{METADATA, RANDOM_KEY, STRINGS};
use crate::array::ArraySpec;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::format::leaves::Leaves;
use crate::format::ocdbt::MANIFEST;
use crate::format::ocdbt::write::{Finished, MAX_INLINE_BYTES, NewDatabase, Value as Stored};
use crate::format::zarr::write::Layout;
use crate::store::{NewDirectory, NewFile, WriteOptions, sha256};
use crate::tree::{DictKey, Framework, Key, LeafKind, TreeDef, record};

/// Where data files are.
const DATA: &str = "d";

/// What values are aligned to in their file, in bytes, so that devices of this host use them where they are.
const ALIGNMENT: u64 = 64;

/// How a checkpoint of Orbax's is written.
pub(crate) struct OrbaxOptions {
    /// The level at which Zstandard compresses; `None` for not at all.
    pub zstd_level: Option<i32>,
    pub write: WriteOptions,
}

/// Writes the tree with these strings, as that of this framework, to a new directory.
///
/// # Errors
/// [`Error::InvalidArgument`] naming what Orbax cannot hold; [`Error::Io`], also when there is something of that name.
pub(crate) fn write(
    tree: &mut dyn Leaves,
    (framework, metadata): (Framework, &BTreeMap<String, String>),
    target: &Path,
    options: &OrbaxOptions,
) -> Result<()> {
    let entries = Entries::of(tree, framework)?;
    entries.notes.iter().for_each(|note| tree.note(note.clone()));
    note_what_is_lost(tree, metadata);
    if let Some(name) = entries.arrays.iter().find(|name| name.ends_with('/')) {
        return Err(Error::InvalidArgument(format!(
            "Orbax does not find arrays whose names end with a slash, such as `{name}`; rename it (`--rename`)"
        )));
    }
    if is_unfinished(target) {
        return Err(Error::InvalidArgument(format!(
            "{} would be taken for a checkpoint that was never finished; give another name",
            target.display()
        )));
    }
    let layouts = layouts(tree, options)?;
    let custom = custom_metadata(tree, framework, metadata);
    let described = entries.described(&custom);
    let directory = NewDirectory::create(target, UNFINISHED, options.write)?;
    directory.add_directory(DATA)?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    // Names of data files are 16 bytes in hex that are no other's.
    let id = sha256(format!("{described}{time}").as_bytes());
    let path = format!("{DATA}/{}", &id[..32]);
    let mut values = Values { database: NewDatabase::default(), file: directory.add_file(&path)? };
    for (index, layout) in layouts.iter().enumerate() {
        values.add_array(tree, index, &entries.arrays[index], layout)?;
    }
    let manifest = values.finish(&path, time, &id)?;
    write_file(&directory, MANIFEST, &manifest)?;
    write_file(&directory, STRINGS, json_of(&entries.strings).as_bytes())?;
    write_file(&directory, STEP_METADATA, step_metadata(time).to_string().as_bytes())?;
    write_file(&directory, METADATA, described.as_bytes())?;
    directory.finish()
}

/// Tells of what Orbax does not bring back by itself. The record of ours does.
fn note_what_is_lost(tree: &mut dyn Leaves, metadata: &BTreeMap<String, String>) {
    let lost: Vec<&str> = [
        (has(tree.keys().def(), &|def| matches!(def, TreeDef::Tuple(_))), "tuples are lists"),
        (has(tree.keys().def(), &has_integer_keys), "integer keys are strings"),
        (has(tree.keys().def(), &is_object), "named tuples and other objects are dictionaries"),
    ]
    .iter()
    .filter_map(|(is_lost, what)| is_lost.then_some(*what))
    .collect();
    if !lost.is_empty() {
        tree.note(format!(
            "where Orbax restores without a target, {}; give it one (an abstract tree) to bring them back",
            lost.join(", ")
        ));
    }
    for (name, implementation) in metadata {
        if let Some(name) = name.strip_prefix(RANDOM_KEY) {
            tree.note(format!(
                "the random key `{name}` is written as its numbers; `jax.random.wrap_key_data(numbers, \
                 impl='{implementation}')` makes it a key again"
            ));
        }
    }
}

/// Whether a node, or one within it, is such a one.
fn has(def: &TreeDef, is_one: &dyn Fn(&TreeDef) -> bool) -> bool {
    is_one(def) || def.children().iter().any(|(_, child)| has(child, is_one))
}

fn has_integer_keys(def: &TreeDef) -> bool {
    def.children().iter().any(|(key, _)| matches!(key, Key::Dict(DictKey::Int(_))))
}

fn is_object(def: &TreeDef) -> bool {
    matches!(def, TreeDef::NamedTuple { .. } | TreeDef::Custom { .. })
}

fn write_file(directory: &NewDirectory, name: &str, content: &[u8]) -> Result<()> {
    let mut file = directory.add_file(name)?;
    file.write(content)?;
    file.finish()
}

/// What Orbax says of a step: by which of its handlers it is restored.
fn step_metadata(time: u64) -> Value {
    json!({
        "item_handlers": "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler",
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": time,
        "commit_timestamp_nsecs": time,
        "custom_metadata": {},
    })
}

/// How each array lies in chunks.
fn layouts(tree: &mut dyn Leaves, options: &OrbaxOptions) -> Result<Vec<Layout>> {
    let layout = |(index, spec): (usize, &ArraySpec)| {
        let layout = Layout::new(spec, options.zstd_level);
        layout.map_err(Error::InvalidArgument).for_tensor(tree.name(index))
    };
    tree.specs().iter().enumerate().map(layout).collect()
}

/// The user's strings and the record of the tree.
fn custom_metadata(
    tree: &mut dyn Leaves,
    framework: Framework,
    metadata: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut custom = metadata.clone();
    match record::write(tree.keys().def(), framework) {
        Ok(record) => custom.extend(record),
        Err(error) => tree.note(format!("what Orbax cannot say of the tree is lost: {error}")),
    }
    custom
}

/// The values that are written.
struct Values {
    database: NewDatabase,
    file: NewFile,
}

impl Values {
    /// Adds an array of this name.
    fn add_array(&mut self, tree: &mut dyn Leaves, index: usize, name: &str, layout: &Layout) -> Result<()> {
        let prefix = if name.is_empty() { String::new() } else { format!("{name}/") };
        let description = layout.description().into_bytes();
        self.add(format!("{prefix}{}", Layout::KEY), &description)?;
        tree.with_bytes(index, &mut |bytes| {
            layout.with_chunks(bytes, &mut |key, chunk| self.add(format!("{prefix}{key}"), chunk))
        })
    }

    fn add(&mut self, key: String, bytes: &[u8]) -> Result<()> {
        let value = if bytes.len() <= MAX_INLINE_BYTES {
            Stored::Inline(bytes.to_vec())
        } else {
            self.file.align(ALIGNMENT)?;
            let (offset, length) = (self.file.position(), bytes.len() as u64);
            self.file.write(bytes)?;
            Stored::Stored { offset, length }
        };
        self.database.add(key, value).map_err(Error::Tree)
    }

    /// Writes the nodes behind the values, in the file of this path; returns the manifest.
    fn finish(mut self, path: &str, time: u64, id: &str) -> Result<Vec<u8>> {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&id.as_bytes()[32..48]);
        let Finished { nodes, manifest } = self.database.finish(path, self.file.position(), uuid, time);
        self.file.write(&nodes)?;
        self.file.finish()?;
        Ok(manifest)
    }
}

/// What `_METADATA` says of a tree.
#[derive(Default)]
struct Entries {
    /// In the order of the tree.
    entries: Vec<(Vec<Step>, &'static str)>,
    /// The names of the arrays, in JAX's order.
    arrays: Vec<String>,
    strings: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Entries {
    fn of(tree: &dyn Leaves, framework: Framework) -> Result<Entries> {
        let mut entries = Entries::default();
        let mut specs = tree.specs().iter();
        entries.add(tree.keys().def(), &mut Vec::new(), &mut specs, framework)?;
        let mut names: Vec<&String> = entries.arrays.iter().collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            None => Ok(entries),
            Some(pair) => Err(Error::Tree(format!(
                "two arrays would be called `{}` in Orbax, which joins keys with dots; rename one of them (`--rename`)",
                pair[0]
            ))),
        }
    }

    fn add(
        &mut self,
        def: &TreeDef,
        path: &mut Vec<Key>,
        specs: &mut std::slice::Iter<'_, ArraySpec>,
        framework: Framework,
    ) -> Result<()> {
        let children = def.children();
        if !children.is_empty() {
            for (key, child) in children {
                path.push(key);
                self.add(child, path, specs, framework)?;
                path.pop();
            }
            return Ok(());
        }
        let steps = tree::steps(path, def, framework);
        let kind = match def {
            TreeDef::Leaf(kind) => {
                let spec =
                    specs.next().ok_or_else(|| Error::Tree("it has more leaves than arrays".into()))?;
                self.arrays.push(tree::name_of(&steps));
                kind_of(*kind, spec)
            }
            TreeDef::Str(text) => {
                self.strings.insert(tree::name_of(&steps), text.clone());
                tree::STRING
            }
            TreeDef::Bytes(_) => {
                self.notes.push(format!("Orbax does not restore the bytes `{}`", tree::name_of(&steps)));
                return Ok(());
            }
            empty => tree::empty_kind(empty),
        };
        self.entries.push((steps, kind));
        Ok(())
    }

    /// The file's content, in JSON.
    fn described(&self, custom: &BTreeMap<String, String>) -> String {
        #[derive(Serialize)]
        struct Metadata<'a> {
            tree_metadata: InOrder<'a>,
            use_ocdbt: bool,
            use_zarr3: bool,
            store_array_data_equal_to_fill_value: bool,
            custom_metadata: &'a BTreeMap<String, String>,
        }
        let described = Metadata {
            tree_metadata: InOrder(&self.entries),
            use_ocdbt: true,
            use_zarr3: false,
            store_array_data_equal_to_fill_value: true,
            custom_metadata: custom,
        };
        json_of(&described)
    }
}

/// The entries of a tree as an object that keeps their order, by which Orbax knows which item of a list is which.
struct InOrder<'a>(&'a [(Vec<Step>, &'static str)]);

impl Serialize for InOrder<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(steps, kind)| {
            let keys: Vec<String> = steps.iter().map(|step| json!(step.key).to_string()).collect();
            // Nobody reads this key, but it tells them apart.
            let key = format!("({}{})", keys.join(", "), if keys.len() == 1 { "," } else { "" });
            let value = json!({"value_type": kind, "skip_deserialize": tree::is_empty_kind(kind)});
            (key, json!({"key_metadata": steps, "value_metadata": value}))
        }))
    }
}

fn json_of(value: &impl Serialize) -> String {
    // Of strings, numbers and bools under keys that are strings, there is always JSON.
    serde_json::to_string(value).unwrap_or_default()
}

/// What a leaf is in Python. An array is one of NumPy's there: one of JAX's would be restored to the devices that it was on,
/// where nobody says which.
fn kind_of(kind: LeafKind, spec: &ArraySpec) -> &'static str {
    let is_scalar = spec.shape.is_empty()
        && matches!(
            (kind, spec.dtype),
            (LeafKind::Bool, DType::Bool) | (LeafKind::Int, DType::I64) | (LeafKind::Float, DType::F64)
        );
    if is_scalar { tree::SCALAR } else { tree::NUMPY_ARRAY }
}
