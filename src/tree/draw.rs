//! A tree as a person looks at it: nodes with what is below them, drawn with lines.

use std::fmt;

use super::def::TreeDef;
use super::key_path::Key;
use crate::array::ArraySpec;
use crate::printable::Line;

/// A node of a tree with the sums over the leaves below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// What the node is, where that is neither a dictionary nor an array: `list`, `None`, a type's name.
    pub kind: Option<String>,
    /// The nodes below, in JAX's order.
    pub children: Vec<(Key, Node)>,
    /// The array, for a leaf.
    pub array: Option<ArraySpec>,
    /// What is below and in this node.
    pub summary: NodeSummary,
}

/// The sums over the leaves of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct NodeSummary {
    /// Leaves.
    pub leaves: usize,
    /// Elements of all leaves.
    pub parameters: u64,
    /// Bytes of all leaves, as they are in a file.
    pub bytes: u64,
}

impl Node {
    /// The tree of this structure, with the arrays of its leaves in JAX's order.
    pub fn build<'a>(def: &TreeDef, specs: &mut impl Iterator<Item = &'a ArraySpec>) -> Node {
        if let TreeDef::Leaf(_) = def {
            let array = specs.next().cloned();
            let count = |size: Option<usize>| size.unwrap_or(0) as u64;
            let summary = NodeSummary {
                leaves: 1,
                parameters: count(array.as_ref().and_then(|spec| spec.element_count().ok())),
                // The last byte can be filled in part.
                bytes: count(array.as_ref().and_then(|spec| {
                    let bits = spec.element_count().ok()?.checked_mul(spec.dtype.bits())?;
                    Some(bits.div_ceil(8))
                })),
            };
            return Node { kind: None, children: Vec::new(), array, summary };
        }
        let kind = match def {
            TreeDef::Dict(entries) if !entries.is_empty() => None,
            TreeDef::Dict(_) => Some("empty dict".to_owned()),
            TreeDef::None => Some("None".to_owned()),
            TreeDef::Str(_) | TreeDef::Bytes(_) => Some(def.to_string()),
            TreeDef::List(_) => Some("list".to_owned()),
            TreeDef::Tuple(_) => Some("tuple".to_owned()),
            TreeDef::OrderedDict(_) => Some("OrderedDict".to_owned()),
            TreeDef::NamedTuple { name, .. } | TreeDef::Custom { name, .. } => Some(name.clone()),
            TreeDef::Leaf(_) => None,
        };
        let mut node = Node { kind, ..Node::default() };
        for (key, child) in def.children() {
            let child = Node::build(child, specs);
            node.summary.add(child.summary);
            node.children.push((key, child));
        }
        node
    }
}

impl NodeSummary {
    fn add(&mut self, other: NodeSummary) {
        self.leaves += other.leaves;
        self.parameters += other.parameters;
        self.bytes += other.bytes;
    }
}

impl fmt::Display for NodeSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} parameter{}, {} in {} {}",
            grouped(self.parameters),
            if self.parameters == 1 { "" } else { "s" },
            human_bytes(self.bytes),
            self.leaves,
            if self.leaves == 1 { "leaf" } else { "leaves" }
        )
    }
}

impl fmt::Display for Node {
    /// Draws the tree, one line a node, without a line for the root unless that is an array. The alternate form (`{:#}`)
    /// has no characters but those of ASCII for the lines.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(spec) = &self.array {
            return writeln!(f, "{spec}  {}", human_bytes(self.summary.bytes));
        }
        draw(self, "", f)
    }
}

fn draw(node: &Node, indent: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (position, (key, child)) in node.children.iter().enumerate() {
        let is_last = position + 1 == node.children.len();
        let label = match key {
            Key::Index(index) => format!("[{index}]"),
            key => Line(&key.to_name()).to_string(),
        };
        let (branch, below) = match (f.alternate(), is_last) {
            (false, false) => ("├── ", "│   "),
            (false, true) => ("└── ", "    "),
            (true, false) => ("|-- ", "|   "),
            (true, true) => ("`-- ", "    "),
        };
        let kind = child.kind.as_ref().map_or(String::new(), |kind| format!("  {}", Line(kind)));
        match &child.array {
            Some(spec) => {
                writeln!(f, "{indent}{branch}{label}  {spec}  {}", human_bytes(child.summary.bytes))?;
            }
            None if child.summary.leaves == 0 => writeln!(f, "{indent}{branch}{label}{kind}")?,
            None => writeln!(f, "{indent}{branch}{label}{kind}  ({})", child.summary)?,
        }
        draw(child, &format!("{indent}{below}"), f)?;
    }
    Ok(())
}

/// A number with its thousands apart: `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in decimal units with three digits: `12.3 MB`.
fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match (unit, value) {
        (0, _) => format!("{bytes} B"),
        (_, value) if value < 9.995 => format!("{value:.2} {}", UNITS[unit]),
        (_, value) if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        (_, value) => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::tree::KeyMap;

    #[test]
    fn a_tree_is_drawn_with_the_sums_of_its_nodes() {
        let map = KeyMap::from_names(["params.Dense_0.bias", "params.Dense_0.kernel", "step"]).unwrap();
        let specs = [
            ArraySpec::new(DType::F32, [10]),
            ArraySpec::new(DType::BF16, [300, 10]),
            ArraySpec::new(DType::I32, []),
        ];
        let tree = Node::build(map.def(), &mut specs.iter());
        insta::assert_snapshot!(tree.to_string(), @r"
        ├── params  (3,010 parameters, 6.04 kB in 2 leaves)
        │   └── Dense_0  (3,010 parameters, 6.04 kB in 2 leaves)
        │       ├── bias  float32[10]  40 B
        │       └── kernel  bfloat16[300,10]  6.00 kB
        └── step  int32[]  4 B
        ");
    }

    #[test]
    fn a_tree_of_one_array_shows_it_and_ascii_is_enough_for_lines() {
        let spec = ArraySpec::new(DType::F32, [3]);
        assert_eq!(Node::build(&TreeDef::LEAF, &mut [spec.clone()].iter()).to_string(), "float32[3]  12 B\n");
        let map = KeyMap::from_names(["a.b", "c"]).unwrap();
        let tree = Node::build(map.def(), &mut [spec.clone(), spec].iter());
        assert!(format!("{tree:#}").is_ascii());
    }

    #[test]
    fn nodes_that_are_no_dictionaries_say_what_they_are() {
        let def = TreeDef::dict([
            ("a".into(), TreeDef::List(vec![TreeDef::LEAF, TreeDef::None])),
            ("b".into(), TreeDef::Dict(vec![])),
        ]);
        let spec = ArraySpec::new(DType::F32, [1]);
        insta::assert_snapshot!(Node::build(&def.unwrap(), &mut [spec].iter()).to_string(), @r"
        ├── a  list  (1 parameter, 4 B in 1 leaf)
        │   ├── [0]  float32[1]  4 B
        │   └── [1]  None
        └── b  empty dict
        ");
    }

    #[test]
    fn sizes_have_three_digits() {
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(1_340_000_000), "1.34 GB");
        assert_eq!(human_bytes(999_999), "1.00 MB");
        assert_eq!(human_bytes(12_345), "12.3 kB");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
    }
}
