//! How frameworks name what they save, for files without a structure record.

mod objax;

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use super::key_path::{DictKey, Key, KeyPath};
use crate::error::Result;

/// The framework whose convention a file's names follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Framework {
    /// Nested dictionaries, split at `.`.
    #[default]
    Plain,
    /// Flax linen: collections (`params`, `batch_stats`, …) of nested dictionaries.
    Flax,
    /// Haiku: modules whose names hold `/`, then parameters.
    Haiku,
    /// Objax: one flat level of names such as `(Sequential)[0](Linear).w`, which may end in a variable's type,
    /// `::TrainVar`.
    Objax,
    /// Flax NNX: nested dictionaries with string and integer keys.
    Nnx,
    /// No tree: one dictionary, whose keys are the names. What a file is whose names are no tree.
    Flat,
    /// Vision Transformer and other models of big_vision: `Transformer/encoderblock_0/LayerNorm_0/bias`, nested at `/`.
    Vit,
    /// AlphaFold: modules of Haiku, then `//` and the parameter, `alphafold/evoformer//weights`.
    AlphaFold,
    /// GraphCast: a collection, a module of Haiku and a parameter, apart by `:`, `params:mesh_gnn/~/linear:w`.
    GraphCast,
    /// Equinox: no names, but the leaves of the whole model by number, in JAX's order. They are laid by that order over what
    /// takes them.
    Equinox,
}

const NAMES: [(Framework, &str); 10] = [
    (Framework::Plain, "plain"),
    (Framework::Flax, "flax"),
    (Framework::Haiku, "haiku"),
    (Framework::Objax, "objax"),
    (Framework::Nnx, "nnx"),
    (Framework::Flat, "flat"),
    (Framework::Vit, "vit"),
    (Framework::AlphaFold, "alphafold"),
    (Framework::GraphCast, "graphcast"),
    (Framework::Equinox, "equinox"),
];

impl fmt::Display for Framework {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(NAMES[*self as usize].1)
    }
}

impl FromStr for Framework {
    type Err = String;
    fn from_str(name: &str) -> Result<Framework, String> {
        let names: Vec<&str> = NAMES.iter().map(|(_, name)| *name).collect();
        let found = NAMES.iter().find(|(_, known)| *known == name).map(|(framework, _)| *framework);
        found.ok_or_else(|| format!("there is no such framework; there are {}", names.join(", ")))
    }
}

/// The collections that Flax modules keep, and what a training state holds beside them.
const FLAX_ROOTS: [&str; 8] =
    ["params", "batch_stats", "cache", "intermediates", "losses", "opt_state", "step", "state"];

/// The last part of names that NNX modules give to their variables, random number generators included.
const NNX_LEAVES: [&str; 9] =
    ["kernel", "bias", "scale", "embedding", "mean", "var", "count", "key", "value"];

impl Framework {
    /// The framework that these names look like.
    pub fn detect<'a>(names: impl IntoIterator<Item = &'a str>) -> Framework {
        let names: Vec<&str> = names.into_iter().collect();
        if names.is_empty() {
            return Framework::Plain;
        }
        if names.iter().all(|name| objax::is_name(name)) {
            return Framework::Objax;
        }
        if names.iter().any(|name| is_haiku(name)) {
            return Framework::Haiku;
        }
        if names.iter().all(|name| FLAX_ROOTS.contains(&first_part(name)))
            || names.iter().any(|name| name.split('.').any(is_flax_module))
        {
            return Framework::Flax;
        }
        let is_nnx = |name: &&str| NNX_LEAVES.contains(&last_part(name));
        if names.iter().all(is_nnx) && names.iter().any(|name| name.split('.').any(is_integer)) {
            return Framework::Nnx;
        }
        Framework::Plain
    }

    /// The place in the tree that a name on disk stands for.
    pub fn path(self, name: &str) -> KeyPath {
        match self {
            Framework::Plain | Framework::Flax | Framework::Haiku | Framework::Equinox => {
                KeyPath::from_name(name)
            }
            Framework::Objax => KeyPath::from(vec![Key::dict(objax::without_type(name))]),
            Framework::Flat => KeyPath::from(vec![Key::dict(name)]),
            Framework::Vit => split_path(name, &["/"]),
            Framework::AlphaFold => split_path(name, &["//"]),
            Framework::GraphCast => split_path(name, &[":"]),
            Framework::Nnx => {
                let key = |part: &str| match part.parse::<i64>() {
                    // "01" is a string, since the integer would not be written so.
                    Ok(number) if number.to_string() == part => Key::Dict(DictKey::Int(number)),
                    _ => Key::dict(part),
                };
                KeyPath::from(name.split('.').map(key).collect::<Vec<_>>())
            }
        }
    }
}

impl Framework {
    /// The framework whose convention the names follow that the tree gets: where a name is split at something else than
    /// `.`, the leaf has another one.
    pub(crate) fn after_split(self) -> Framework {
        match self {
            Framework::Vit => Framework::Flax,
            Framework::AlphaFold | Framework::GraphCast => Framework::Haiku,
            other => other,
        }
    }
}

/// The path that a name stands for that is split at each of these, one after another: `//` before `/`.
pub(crate) fn split_path(name: &str, separators: &[impl AsRef<str>]) -> KeyPath {
    let whole = vec![name];
    let parts = separators.iter().fold(whole, |parts, separator| {
        parts.into_iter().flat_map(|part| part.split(separator.as_ref())).collect()
    });
    KeyPath::from(parts.into_iter().map(Key::dict).collect::<Vec<_>>())
}

/// How the names of flat files are split, apart from dots: those of ViT, AlphaFold and GraphCast, and all levels of
/// AlphaFold's.
const SEPARATORS: [&[&str]; 4] = [&["/"], &["//"], &[":"], &["//", "/"]];

/// These names as paths joined with `.`, if one way to split them gives every name that is wanted. For where it is known
/// what a file must hold.
pub(crate) fn respell<'a>(
    names: &[&str],
    wanted: impl Iterator<Item = &'a str> + Clone,
) -> Option<Vec<String>> {
    SEPARATORS.iter().find_map(|separators| {
        let spelled: Vec<String> = names.iter().map(|name| split_path(name, separators).to_name()).collect();
        let known: HashSet<&str> = spelled.iter().map(String::as_str).collect();
        // Two names must not become one.
        let fits = known.len() == names.len() && wanted.clone().all(|name| known.contains(name));
        fits.then_some(spelled)
    })
}

/// Haiku's modules are named by their path, with slashes: `mlp/~/linear_0.w`.
fn is_haiku(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(module, _)| module.contains('/'))
}

/// Linen numbers modules by their class: `Dense_0`, `MultiHeadDotProductAttention_12`.
fn is_flax_module(part: &str) -> bool {
    part.rsplit_once('_').is_some_and(|(class, number)| {
        is_integer(number) && class.starts_with(|c: char| c.is_ascii_uppercase())
    })
}

fn is_integer(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

fn first_part(name: &str) -> &str {
    name.split('.').next().unwrap_or_default()
}

fn last_part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::KeyMap;

    #[test]
    fn frameworks_are_recognised_by_their_names() {
        let cases: [(&[&str], Framework); 9] = [
            (&["params.Dense_0.kernel", "params.Dense_0.bias"], Framework::Flax),
            (&["Conv_0.kernel"], Framework::Flax),
            (&["params.w", "batch_stats.mean"], Framework::Flax),
            (&["res_net/~/conv.w"], Framework::Haiku),
            (&["params.linear/~/x.w", "state.bn.mean"], Framework::Haiku),
            (&["(Sequential)[0](Linear).w::TrainVar"], Framework::Objax),
            (&["(Linear).b", "(Linear).w"], Framework::Objax),
            (&["layers.0.kernel", "layers.1.bias"], Framework::Nnx),
            (&["encoder.layer.0.attention.weight"], Framework::Plain),
        ];
        for (names, expected) in cases {
            assert_eq!(Framework::detect(names.iter().copied()), expected, "{names:?}");
        }
        assert_eq!("haiku".parse(), Ok(Framework::Haiku));
        assert_eq!(Framework::Nnx.to_string(), "nnx");
        assert!("keras".parse::<Framework>().is_err());
    }

    #[test]
    fn names_are_respelled_where_what_is_wanted_is_known() {
        let spelled = |names: &[&str], wanted: &[&str]| respell(names, wanted.iter().copied());
        let vit = spelled(&["T/b/kernel", "T/b/bias", "head"], &["T.b.bias", "T.b.kernel"]);
        assert_eq!(vit.unwrap(), ["T.b.kernel", "T.b.bias", "head"]);
        assert_eq!(spelled(&["a/b//w"], &["a/b.w"]).unwrap(), ["a/b.w"]);
        assert_eq!(spelled(&["a/b//w"], &["a.b.w"]).unwrap(), ["a.b.w"]);
        assert_eq!(spelled(&["params:a/~/b:w"], &["params.a/~/b.w"]).unwrap(), ["params.a/~/b.w"]);
        assert_eq!(spelled(&["a/b"], &["a.c"]), None);
        assert_eq!(spelled(&["a/b", "a.b"], &["a.b", "c"]), None);
    }

    #[test]
    fn names_become_paths_as_each_framework_has_them() {
        assert_eq!(Framework::Haiku.path("a/~/b.w").to_string(), "['a/~/b']['w']");
        assert_eq!(Framework::Objax.path("(Linear).w::TrainVar").to_string(), "['(Linear).w']");
        assert_eq!(Framework::Nnx.path("layers.10.kernel").to_string(), "['layers'][10]['kernel']");
        assert_eq!(Framework::Flat.path("m.weight").to_string(), "['m.weight']");
        assert_eq!(Framework::Vit.path("a/b/kernel").to_string(), "['a']['b']['kernel']");
        assert_eq!(Framework::AlphaFold.path("a/b//weights").to_string(), "['a/b']['weights']");
        assert_eq!(Framework::GraphCast.path("params:a/~/b:w").to_string(), "['params']['a/~/b']['w']");
        assert_eq!(split_path("a/b//w", &["//", "/"]).to_string(), "['a']['b']['w']");
        assert_eq!(Framework::Plain.path("layers.10.kernel").to_string(), "['layers']['10']['kernel']");
        // Integers sort as numbers, strings as strings.
        let order = |framework: Framework| {
            KeyMap::from_names_by(framework, ["a.10", "a.9"]).unwrap().def().to_string()
        };
        assert_eq!(order(Framework::Nnx), "{'a': {9: *, 10: *}}");
        assert_eq!(order(Framework::Plain), "{'a': {'10': *, '9': *}}");
    }
}
