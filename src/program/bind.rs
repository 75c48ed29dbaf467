//! Binding what a call is given to a function's parameters: by path, whatever order it comes in.
//!
//! Everything that does not fit is collected, so that it can be said at once and before anything runs.

use std::collections::BTreeMap;

use super::argument::{Argument, LeafArgument};
use super::exported::{Aval, Dim};
use super::signature::{ArgumentKey, ArgumentTree, Parameter, Signature};
use crate::array::ArraySpec;
use crate::cast::can_convert;
use crate::error::nearest;
use crate::pjrt::Device;
use crate::tree::{TreeDef, respell};

/// What to do with arguments whose element type is not the function's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Conversion {
    /// They are errors.
    #[default]
    Exact,
    /// They are converted by way of the host, if that changes values by rounding at most: between floating point
    /// types, from integers and booleans to those, and between integers that hold the values.
    Convert,
}

/// What to do with arguments that lie on devices otherwise than the function takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Resharding {
    /// They are errors, which say how they are to lie.
    #[default]
    Refuse,
    /// Each call moves what is not where it should be.
    Allow,
}

/// The sizes of symbolic dimensions, as the arguments have them.
pub type Sizes<'a> = BTreeMap<&'a str, usize>;

/// What is known of one parameter's leaf.
#[derive(Debug, Clone, Copy)]
pub enum Slot<'a> {
    /// Nothing was given yet.
    Open,
    /// What was given.
    Given(LeafArgument<'a>),
    /// It is missing, and that has been said.
    Missing,
}

/// The leaf that was given.
pub fn given<'a>(slot: &Slot<'a>) -> Option<LeafArgument<'a>> {
    match slot {
        Slot::Given(leaf) => Some(*leaf),
        Slot::Open | Slot::Missing => None,
    }
}

/// What was given for every parameter of a signature, and what does not fit.
#[derive(Debug)]
pub struct Binding<'s, 'a> {
    signature: &'s Signature,
    /// In the order of the parameters.
    pub slots: Vec<Slot<'a>>,
    /// One sentence for everything that does not fit.
    pub problems: Vec<String>,
}

impl<'s, 'a> Binding<'s, 'a> {
    /// Nothing given yet.
    pub fn new(signature: &'s Signature) -> Binding<'s, 'a> {
        Binding { signature, slots: vec![Slot::Open; signature.parameters.len()], problems: Vec::new() }
    }

    /// Binds arguments to those of the signature's that are `open`: positional ones in order, `None` leaving one
    /// out, and named ones by name.
    pub fn add(
        &mut self,
        open: &[usize],
        positional: &[Option<&'a dyn Argument>],
        named: &[(&str, &'a dyn Argument)],
    ) {
        let signature = self.signature;
        let is_positional =
            |index: &&usize| matches!(signature.arguments[**index].key, ArgumentKey::Position(_));
        let mut by_position = open.iter().filter(is_positional);
        for (position, argument) in positional.iter().enumerate() {
            match (by_position.next(), argument) {
                (Some(&index), Some(argument)) => self.argument(&signature.arguments[index], *argument),
                (Some(_), None) => {}
                (None, _) => self.problems.push(format!(
                    "args[{position}]: the function takes {} positional arguments{}",
                    open.iter().filter(is_positional).count(),
                    if open.len() < signature.arguments.len() { " beside those that are bound" } else { "" }
                )),
            }
        }
        let mut given: BTreeMap<&str, &'a dyn Argument> = BTreeMap::new();
        for (name, argument) in named {
            if given.insert(name, *argument).is_some() {
                self.problems.push(format!("kwargs['{name}']: it was given twice"));
            }
        }
        for tree in open.iter().map(|&index| &signature.arguments[index]) {
            if let ArgumentKey::Name(name) = &tree.key
                && let Some(argument) = given.remove(name.as_str())
            {
                self.argument(tree, argument);
            }
        }
        given.keys().for_each(|name| self.unknown_name(open, name));
    }

    /// Says what nothing was given for. Arguments that the program does not use need not be given.
    pub fn finish(&mut self) {
        for tree in &self.signature.arguments {
            let is_open = |index: &usize| {
                matches!(self.slots[*index], Slot::Open) && self.signature.parameters[*index].is_used
            };
            let open: Vec<usize> = tree.leaves.clone().filter(is_open).collect();
            match open[..] {
                [] => {}
                [index] => self.problems.push(absent(&self.signature.parameters[index])),
                _ => self.problems.push(format!(
                    "{}: nothing was given, and the function takes a tree of {} leaves there",
                    tree.key,
                    tree.leaves.len()
                )),
            }
        }
    }

    fn unknown_name(&mut self, open: &[usize], name: &str) {
        let known = open.iter().filter_map(|&index| match &self.signature.arguments[index].key {
            ArgumentKey::Name(name) => Some(name.as_str()),
            ArgumentKey::Position(_) => None,
        });
        let known: Vec<&str> = known.collect();
        let positional = open
            .iter()
            .filter(|&&index| matches!(self.signature.arguments[index].key, ArgumentKey::Position(_)));
        let hint = match (&known[..], positional.count()) {
            ([], count) => {
                format!("arguments are given by their positions, 0 to {}", count.saturating_sub(1))
            }
            (known, _) => format!("the named ones are: {}", known.join(", ")),
        };
        self.problems.push(format!("kwargs['{name}']: there is no such argument; {hint}"));
    }

    /// Binds the leaves of one argument: by name if they have names, else in order.
    fn argument(&mut self, tree: &ArgumentTree, argument: &'a dyn Argument) {
        let mut given = Vec::with_capacity(tree.leaves.len());
        argument.append_leaves(&mut given);
        let names = tree.names.iter().map(|name| Some(name.as_str()));
        let has_names = !given.is_empty() && given.iter().all(|leaf| leaf.name.is_some());
        let is_leaf = matches!(tree.def, TreeDef::Leaf(_));
        if has_names && !is_leaf && !given.iter().map(|leaf| leaf.name).eq(names) {
            return self.by_name(tree, &given);
        }
        for (index, leaf) in tree.leaves.clone().zip(&given) {
            self.slots[index] = Slot::Given(*leaf);
        }
        for index in tree.leaves.clone().skip(given.len()) {
            self.missing(index, "");
        }
        if given.len() > tree.leaves.len() {
            let expected = tree.leaves.len();
            self.problems.push(format!(
                "{}: {} leaves were given, and it has {expected}",
                tree.key,
                given.len()
            ));
        }
    }

    fn by_name(&mut self, tree: &ArgumentTree, given: &[LeafArgument<'a>]) {
        let mut left: BTreeMap<&str, LeafArgument<'a>> =
            given.iter().filter_map(|leaf| Some((leaf.name?, *leaf))).collect();
        let used = tree.leaves.clone().zip(&tree.names);
        let used = used.filter(|(index, _)| self.signature.parameters[*index].is_used);
        let used = used.map(|(_, name)| name.as_str());
        let spelled;
        if !used.clone().all(|name| left.contains_key(name)) {
            let names: Vec<&str> = left.keys().copied().collect();
            if let Some(new_names) = respell(&names, used) {
                tracing::info!(argument = %tree.key, "its names are split otherwise than at dots");
                spelled = new_names;
                left = spelled.iter().map(String::as_str).zip(left.into_values()).collect();
            }
        }
        let mut missing = Vec::new();
        for (index, name) in tree.leaves.clone().zip(&tree.names) {
            match left.remove(name.as_str()) {
                Some(leaf) => self.slots[index] = Slot::Given(leaf),
                None => missing.push((index, name.as_str())),
            }
        }
        let used = |(index, _): &&(usize, &str)| self.signature.parameters[*index].is_used;
        let names: Vec<&str> = missing.iter().filter(used).map(|(_, name)| *name).collect();
        if let Some(hint) = misplaced(&names, &left) {
            // Said once instead of for every leaf.
            self.problems.push(format!("{}: {hint}", tree.key));
            missing.iter().for_each(|(index, _)| self.slots[*index] = Slot::Missing);
            return;
        }
        for (index, name) in missing {
            self.missing(index, &similar(name, &left));
        }
        for name in left.keys() {
            self.problems
                .push(format!("{}: the leaf `{name}` was given, and there is no such one", tree.key));
        }
    }

    /// Says that a leaf is missing, unless the program does not use it.
    fn missing(&mut self, index: usize, hint: &str) {
        self.slots[index] = Slot::Missing;
        let parameter = &self.signature.parameters[index];
        if parameter.is_used {
            self.problems.push(absent(parameter) + hint);
        }
    }

    /// What the parameter at this position is called in a message.
    pub fn place(&self, index: usize) -> String {
        let parameter = &self.signature.parameters[index];
        match given(&self.slots[index]).and_then(|leaf| leaf.name) {
            // A plain list has only numbers, which the names of the tree make readable.
            Some(name) if self.signature.arguments.is_empty() => format!("{} (`{name}`)", parameter.place),
            _ => parameter.place.clone(),
        }
    }

    /// Compares what was given for these parameters with what they are, and with the device. Learns the sizes of
    /// symbolic dimensions if they are wanted, which must then agree.
    pub fn check(
        &mut self,
        indices: impl IntoIterator<Item = usize>,
        device: Option<&Device>,
        conversion: Conversion,
        mut sizes: Option<&mut Sizes<'s>>,
    ) {
        for index in indices {
            let (Slot::Given(leaf), parameter) = (self.slots[index], &self.signature.parameters[index])
            else {
                continue;
            };
            if let Some(problem) = mismatch(&parameter.aval, leaf.spec(), conversion, sizes.as_deref_mut()) {
                self.problems.push(format!("{}: {problem}", self.place(index)));
            }
            if let Some(error) = leaf.gone() {
                self.problems.push(format!("{}: {error}", self.place(index)));
            }
            if let Some(device) = device
                && let Some(other) = leaf.other_device(device)
            {
                self.problems.push(format!("{}: {}", self.place(index), elsewhere(&other, device)));
            }
        }
    }
}

/// Says that an array is on another device than the function.
fn elsewhere(other: &Device, device: &Device) -> String {
    if other.client() != device.client() {
        return "it belongs to another client than the function; load it with the client that compiled that"
            .into();
    }
    format!(
        "it is on {other}, and the function runs on {device}; copy it there (copy_to), or load it there to begin with"
    )
}

/// Says that nothing was given for a parameter.
pub fn absent(parameter: &Parameter) -> String {
    format!("{}: {} was expected, but nothing was given", parameter.place, parameter.aval)
}

/// If all missing leaves are among those that are left, but all too deep or too high by the same path: what to do.
fn misplaced(missing: &[&str], left: &BTreeMap<&str, LeafArgument<'_>>) -> Option<String> {
    let first = missing.first()?;
    let has_all = |moved: &dyn Fn(&str) -> Option<String>| {
        missing.iter().all(|name| moved(name).is_some_and(|name| left.contains_key(name.as_str())))
    };
    let below = left.keys().filter_map(|name| name.strip_suffix(first)?.strip_suffix('.'));
    let fits: Vec<&str> = below.filter(|prefix| has_all(&|name| Some(format!("{prefix}.{name}")))).collect();
    // The moments of an optimizer have the same leaves as the params.
    if let Some(best) = fits.iter().find(|prefix| **prefix == "params").or(fits.first()) {
        let others: Vec<String> =
            fits.iter().filter(|prefix| *prefix != best).map(|prefix| format!("`{prefix}`")).collect();
        let others =
            if others.is_empty() { String::new() } else { format!(" (and below {})", others.join(", ")) };
        return Some(format!(
            "its leaves were given below `{best}`{others}, where the function does not look for them; pass that part \
             of the tree: subtree(\"{best}\"), or --arg N=FILE#{best} with `safejax run`"
        ));
    }
    for (dot, _) in first.match_indices('.') {
        let prefix = &first[..=dot];
        if has_all(&|name| Some(name.strip_prefix(prefix)?.to_owned())) {
            let prefix = prefix.trim_end_matches('.');
            return Some(format!(
                "the function looks for its leaves below `{prefix}`, and they were given without it; put the tree \
                 there, or give it as --arg N.{prefix}=FILE with `safejax run`"
            ));
        }
    }
    None
}

/// Which of the leaves that are left could have been meant: those that look alike, else those that end alike.
fn similar(name: &str, left: &BTreeMap<&str, LeafArgument<'_>>) -> String {
    let mut found = nearest(name, left.keys().copied());
    if found.is_empty() {
        let last = name.rsplit('.').next();
        let ends_alike = left.keys().filter(|other| other.rsplit('.').next() == last);
        found = ends_alike.take(3).map(|&name| name.to_owned()).collect();
    }
    match &found[..] {
        [] => String::new(),
        names => format!("; did you mean `{}`?", names.join("` or `")),
    }
}

/// Why an array cannot be given for a parameter.
fn mismatch<'s>(
    expected: &'s Aval,
    found: &ArraySpec,
    conversion: Conversion,
    mut sizes: Option<&mut Sizes<'s>>,
) -> Option<String> {
    let simply = || Some(format!("{expected} was expected, but {found} was given"));
    if expected.shape.len() != found.shape.len() {
        return simply();
    }
    for (dim, &size) in expected.shape.iter().zip(&found.shape) {
        match dim {
            Dim::Size(expected) if *expected == size => {}
            Dim::Size(_) => {
                let reversed = found.shape.iter().rev().map(|&size| Dim::Size(size));
                let is_transposed = reversed.eq(expected.shape.iter().cloned());
                let hint = if is_transposed { "; is it transposed?" } else { "" };
                return simply().map(|text| text + hint);
            }
            Dim::Symbolic(name) => {
                let known = sizes.as_deref_mut().map_or(size, |sizes| *sizes.entry(name).or_insert(size));
                if known != size {
                    return simply()
                        .map(|text| text + &format!("; `{name}` is {known} in an argument before"));
                }
            }
        }
    }
    if expected.dtype == found.dtype {
        return None;
    }
    match (can_convert(found.dtype, expected.dtype), conversion) {
        (true, Conversion::Convert) => None,
        (true, Conversion::Exact) => simply()
            .map(|text| text + "; it can be cast on the way in (--cast, or Function::with_conversion)"),
        (false, _) => simply(),
    }
}
