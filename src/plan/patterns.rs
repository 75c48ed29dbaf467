//! Patterns, renames and casts that match nothing: a mistake in writing them, which must not pass for a choice.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::selection::Selection;
use crate::dtype::DType;
use crate::error::{Error, Result, nearest};
use crate::tree::matches_glob;

impl Selection {
    /// Refuses a pattern that matches none of a file's names, and a rename that applies to none of those that are wanted.
    /// Casts are for [`check_casts`], since not everybody who selects also casts.
    ///
    /// # Errors
    /// [`Error::NotFound`] with what looks alike.
    pub(crate) fn check_patterns(&self, names: &[&str]) -> Result<()> {
        for pattern in self.include.iter().chain(&self.exclude) {
            check_pattern(pattern, names)?;
        }
        let mut renamed: Vec<Cow<'_, str>> =
            names.iter().filter(|name| self.is_wanted(name)).map(|name| Cow::Borrowed(*name)).collect();
        for rule in &self.renames {
            let mut applies = false;
            for name in &mut renamed {
                if let Some(new) = rule.apply(name) {
                    *name = Cow::Owned(new);
                    applies = true;
                }
            }
            if !applies {
                let names: Vec<&str> = renamed.iter().map(|name| &**name).collect();
                let what = "tensor whose name begins with";
                return Err(Error::NotFound {
                    what,
                    name: rule.from.clone(),
                    nearest: alike(&rule.from, &names),
                });
            }
        }
        Ok(())
    }
}

/// Refuses a cast whose pattern matches none of these names.
///
/// # Errors
/// [`Error::NotFound`] with what looks alike.
pub fn check_casts(dtypes: &[(String, DType)], names: &[&str]) -> Result<()> {
    dtypes.iter().try_for_each(|(pattern, _)| check_pattern(pattern, names))
}

/// Refuses a pattern that matches none of these names.
///
/// # Errors
/// [`Error::NotFound`] with what looks alike.
pub fn check_pattern(pattern: &str, names: &[&str]) -> Result<()> {
    // Everything may be nothing.
    let is_everything = !pattern.is_empty() && pattern.chars().all(|c| c == '*');
    if is_everything || names.iter().any(|name| matches_glob(pattern, name)) {
        return Ok(());
    }
    let what = "tensor whose name matches";
    let nearest = alike(pattern, names).iter().map(|part| pattern_of(part, names)).collect();
    Err(Error::NotFound { what, name: pattern.to_owned(), nearest })
}

/// A pattern that matches the names which have this part.
fn pattern_of(part: &str, names: &[&str]) -> String {
    let [head, tail] = [format!("{part}.*"), format!("*.{part}")];
    let whole = [part.to_owned(), head, tail].into_iter();
    let mut matching = whole.filter(|pattern| names.iter().any(|name| matches_glob(pattern, name)));
    matching.next().unwrap_or_else(|| format!("*.{part}.*"))
}

/// The parts of names that look like what a pattern says besides its stars: `params` and `kernel` for `parms.*` and
/// `*.kernl`.
fn alike(pattern: &str, names: &[&str]) -> Vec<String> {
    let literal = pattern.trim_matches(['*', '.']);
    let length = literal.split('.').count();
    let mut parts: BTreeSet<String> = BTreeSet::new();
    for name in names {
        let keys: Vec<&str> = name.split('.').collect();
        parts.extend(keys.windows(length).map(|keys| keys.join(".")));
    }
    nearest(literal, parts.iter().map(String::as_str))
}
