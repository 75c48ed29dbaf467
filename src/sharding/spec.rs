//! Partition specs: which axes of a mesh each dimension of an array is split over.

use std::fmt;
use std::str::FromStr;

use super::mesh::Mesh;
use crate::error::{Error, Result};

/// For each dimension the axes of a mesh that it is split over, the major one first; none for one that is whole. Dimensions
/// after these are whole. Along axes that are not named, devices have copies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionSpec(pub Vec<Vec<String>>);

impl PartitionSpec {
    /// Every device has all of it: `P()`.
    pub fn replicated() -> PartitionSpec {
        PartitionSpec::default()
    }

    /// Refuses an axis that the mesh has not, and one that is named twice.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`].
    pub fn check(&self, mesh: &Mesh) -> Result<()> {
        let named: Vec<&String> = self.0.iter().flatten().collect();
        for (index, axis) in named.iter().enumerate() {
            if mesh.size(axis).is_none() {
                return Err(Error::InvalidArgument(format!(
                    "the partition spec {self} names the axis `{axis}`, and the mesh has {mesh}"
                )));
            }
            if named[..index].contains(axis) {
                return Err(Error::InvalidArgument(format!(
                    "the partition spec {self} names the axis `{axis}` twice; an axis splits one dimension at most"
                )));
            }
        }
        Ok(())
    }

    /// Into how many parts each dimension is split, as far as the spec goes.
    pub(super) fn parts(&self, mesh: &Mesh) -> Vec<usize> {
        let size = |axis: &String| mesh.size(axis).unwrap_or(1);
        self.0.iter().map(|axes| axes.iter().map(size).fold(1, usize::saturating_mul)).collect()
    }
}

/// Reads what JAX writes, `P(None, ('data', 'model'), 'seq')`, also as `PartitionSpec(…)`, and without quotes.
impl FromStr for PartitionSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<PartitionSpec> {
        parse(text).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "`{text}` is no partition spec; write it as JAX does: P(None, 'model'), P(('data', 'model'))"
            ))
        })
    }
}

fn parse(text: &str) -> Option<PartitionSpec> {
    let text = text.trim();
    let inner = ["PartitionSpec", "P"]
        .iter()
        .find_map(|name| text.strip_prefix(name)?.trim_start().strip_prefix('('));
    let inner = inner?.trim_end().strip_suffix(')')?;
    let mut entries = Vec::new();
    let mut rest = inner.trim();
    while !rest.is_empty() {
        let (entry, after) = match rest.strip_prefix('(') {
            Some(group) => {
                let (group, after) = group.split_once(')')?;
                let axes = group.split(',').map(str::trim).filter(|axis| !axis.is_empty());
                (axes.map(axis).collect::<Option<Vec<_>>>()?, after.trim_start())
            }
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                let entry = rest[..end].trim();
                (if entry == "None" { Vec::new() } else { vec![axis(entry)?] }, &rest[end..])
            }
        };
        entries.push(entry);
        rest = match after.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(PartitionSpec(entries))
}

/// An axis, with quotes or without.
fn axis(text: &str) -> Option<String> {
    let quoted = ['\'', '"'].iter().find_map(|&quote| text.strip_prefix(quote)?.strip_suffix(quote));
    let name = quoted.unwrap_or(text);
    (!name.is_empty() && !name.contains(['\'', '"', '(', ')', ','])).then(|| name.to_owned())
}

impl fmt::Display for PartitionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dimension = |axes: &Vec<String>| match &axes[..] {
            [] => "None".to_owned(),
            [axis] => format!("'{axis}'"),
            axes => format!("('{}')", axes.join("', '")),
        };
        let entries: Vec<String> = self.0.iter().map(dimension).collect();
        write!(f, "P({})", entries.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read_as_they_are_written() {
        for text in ["P()", "P(None)", "P('data')", "P(None, 'model')", "P(('a', 'b'), None, 'c')"] {
            assert_eq!(text.parse::<PartitionSpec>().unwrap().to_string(), text);
        }
        let same = [
            ("P(model,)", "P('model')"),
            (" PartitionSpec( ('x',), None ) ", "P('x', None)"),
            ("P(())", "P(None)"),
        ];
        for (text, written) in same {
            assert_eq!(text.parse::<PartitionSpec>().unwrap().to_string(), written);
        }
        for wrong in
            ["", "model", "P", "P(", "P('a'", "P('a' 'b')", "P(('a')x)", "P(,)", "P('a\")", "P(None, , 'a')"]
        {
            assert!(wrong.parse::<PartitionSpec>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn axes_that_are_not_there_or_twice_are_refused() {
        let mesh: Mesh = "a=2,b=2".parse().unwrap();
        let check = |text: &str| text.parse::<PartitionSpec>().unwrap().check(&mesh);
        check("P(('b', 'a'))").unwrap();
        assert!(
            check("P('c')")
                .unwrap_err()
                .to_string()
                .contains("names the axis `c`, and the mesh has a=2, b=2")
        );
        assert!(check("P('a', 'a')").unwrap_err().to_string().contains("names the axis `a` twice"));
    }
}
