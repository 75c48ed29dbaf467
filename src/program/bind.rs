//! Binding arguments to the tree of an exported function, by path, whatever order they come in.

use std::collections::BTreeMap;

use super::call::Argument;
use super::exported::Exported;
use crate::pjrt::Buffer;
use crate::tree::{DictKey, Key, KeyPath, TreeDef};

/// The leaves of a call in the order of the function's flattened arguments, or everything that does not fit.
pub fn bind<'a>(
    exported: &Exported,
    positional: &[&'a dyn Argument],
    named: &[(&str, &'a dyn Argument)],
) -> Result<Vec<&'a Buffer>, Vec<String>> {
    let mut binding = Binding {
        problems: Vec::new(),
        leaves: Vec::new(),
        avals: exported.in_avals.iter().map(ToString::to_string).collect(),
    };
    let TreeDef::Tuple(parts) = &exported.in_tree else {
        return Err(vec!["its arguments are no tuple".into()]);
    };
    let (args, kwargs) = (parts[0].children(), parts[1].children());
    for (position, (_, def)) in args.iter().enumerate() {
        binding.argument(&format!("args[{position}]"), def, positional.get(position).copied());
    }
    for extra in args.len()..positional.len() {
        binding
            .problems
            .push(format!("args[{extra}]: the function takes {} positional arguments", args.len()));
    }
    let mut left: BTreeMap<&str, &'a dyn Argument> = named.iter().copied().collect();
    for (key, def) in &kwargs {
        let name = key.to_name();
        binding.argument(&format!("kwargs['{name}']"), def, left.remove(name.as_str()));
    }
    let known: Vec<String> = kwargs.iter().map(|(key, _)| key.to_name()).collect();
    for name in left.keys() {
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        binding
            .problems
            .push(format!("kwargs['{name}']: there is no such argument; the named ones are: {known}"));
    }
    let leaves = binding.leaves;
    for (leaf, aval) in leaves.iter().zip(&exported.in_avals) {
        if let (Some((place, buffer)), Some(expected)) = (leaf, aval.to_spec())
            && *buffer.spec() != expected
        {
            binding
                .problems
                .push(format!("{place}: {expected} was expected, but {} was given", buffer.spec()));
        }
    }
    let found: Vec<&Buffer> = leaves.into_iter().flatten().map(|(_, buffer)| buffer).collect();
    if binding.problems.is_empty() { Ok(found) } else { Err(binding.problems) }
}

struct Binding<'a> {
    problems: Vec<String>,
    /// Where each leaf is, and its buffer, if it was given.
    leaves: Vec<Option<(String, &'a Buffer)>>,
    /// The types of all leaves, as they are printed.
    avals: Vec<String>,
}

impl<'a> Binding<'a> {
    /// Binds one argument to its part of the tree.
    fn argument(&mut self, place: &str, def: &TreeDef, given: Option<&'a dyn Argument>) {
        let paths = def.paths();
        let mut leaves = Vec::new();
        if let Some(argument) = given {
            argument.append_leaves(&mut leaves);
        }
        let has_names = !leaves.is_empty() && leaves.iter().all(|(name, _)| name.is_some());
        if has_names && paths != [KeyPath::default()] {
            return self.by_name(place, &paths, &leaves);
        }
        for (position, path) in paths.iter().enumerate() {
            let place = format!("{place}{path}");
            let leaf = leaves.get(position).map(|(_, buffer)| *buffer);
            if leaf.is_none() {
                self.missing(&place, &[]);
            }
            self.leaves.push(leaf.map(|buffer| (place, buffer)));
        }
        for _ in paths.len()..leaves.len() {
            self.problems
                .push(format!("{place}: more leaves were given than the {} that it has", paths.len()));
        }
    }

    fn by_name(&mut self, place: &str, paths: &[KeyPath], given: &[(Option<&'a str>, &'a Buffer)]) {
        let mut left: BTreeMap<&str, &'a Buffer> =
            given.iter().filter_map(|(name, buffer)| Some(((*name)?, *buffer))).collect();
        let mut bound = Vec::new();
        for path in paths {
            bound.push((path, left.remove(path.to_name().as_str())));
        }
        for (path, buffer) in bound {
            let place = format!("{place}{path}");
            if buffer.is_none() {
                let unused: Vec<&str> = left.keys().copied().collect();
                self.missing(&place, &near(&path.to_name(), &unused));
            }
            self.leaves.push(buffer.map(|buffer| (place, buffer)));
        }
        for name in left.keys() {
            self.problems.push(format!("{place}: the leaf `{name}` was given, and there is no such one"));
        }
    }

    /// Says that the leaf that comes next was not given.
    fn missing(&mut self, place: &str, near: &[String]) {
        let expected = &self.avals[self.leaves.len()];
        let hint = if near.is_empty() {
            String::new()
        } else {
            format!("; given, but not used: {}", near.join(", "))
        };
        self.problems.push(format!("{place}: {expected} was expected, but nothing was given{hint}"));
    }
}

/// Names that could have been meant: those that end in the same key.
fn near(name: &str, unused: &[&str]) -> Vec<String> {
    let last = name.rsplit('.').next().unwrap_or_default();
    let ends = |candidate: &&&str| candidate.rsplit('.').next() == Some(last);
    unused.iter().filter(ends).take(3).map(|name| format!("`{name}`")).collect()
}

/// The function's signature as a person would write it, one line a leaf.
pub fn signature(exported: &Exported) -> String {
    let mut text = String::new();
    for (index, (path, aval)) in exported.in_tree.paths().iter().zip(&exported.in_avals).enumerate() {
        // The first two keys say whether the argument is positional, and which it is.
        let place = match path.keys() {
            [Key::Index(0), Key::Index(position), rest @ ..] => {
                format!("args[{position}]{}", KeyPath::from(rest.to_vec()))
            }
            [Key::Index(1), Key::Dict(DictKey::Str(name)), rest @ ..] => {
                format!("kwargs['{name}']{}", KeyPath::from(rest.to_vec()))
            }
            _ => path.to_string(),
        };
        let dropped = if exported.kept.contains(&index) { "" } else { "  (not used)" };
        text += &format!("  {place}  {aval}{dropped}\n");
    }
    text += "returns\n";
    for (path, aval) in exported.out_tree.paths().iter().zip(&exported.out_avals) {
        text += &format!(
            "  {}{aval}\n",
            if path.keys().is_empty() { String::new() } else { format!("{path}  ") }
        );
    }
    text
}
