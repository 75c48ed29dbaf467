//! Patterns for names: `*` stands for any characters, `?` for one.

/// Whether a name matches a pattern. In it, `*` stands for any number of characters (dots included), `?`
/// for exactly one, and everything else for itself.
///
/// ```
/// use safejax::tree::matches_glob;
/// assert!(matches_glob("params.*.kernel", "params.Dense_0.kernel"));
/// assert!(!matches_glob("params.Dense_?.bias", "params.Dense_10.bias"));
/// ```
pub fn matches_glob(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on if what follows the last star does not match: after the star, one character further.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((after_star, start)) => {
                    retry = Some((after_star, start + 1));
                    (p, n) = (after_star, start + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_may_match_nothing_and_try_again() {
        assert!(matches_glob("*", ""));
        assert!(matches_glob("a*b*c", "abxbc"));
        assert!(matches_glob("**kernel", "params.kernel"));
        assert!(!matches_glob("a*b", "ac"));
        assert!(!matches_glob("", "a"));
        assert!(matches_glob("é?", "é→"));
    }
}
