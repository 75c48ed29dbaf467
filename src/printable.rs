//! Text from files, made fit to print: a name can hold line breaks, and escapes that a terminal obeys.

use std::fmt::{self, Write};
use std::path::Path;

/// Text on one line. Line breaks, other control characters and characters that reorder or hide text are escaped as Rust
/// writes them: `\n`, `\u{1b}`.
#[derive(Debug, Clone, Copy)]
pub struct Line<'a>(pub &'a str);

/// Text of several lines: as [`Line`], but line breaks and tabs stay.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a>(pub &'a str);

/// The name of a leaf or tensor, as a [`Line`]; the name of a leaf that is the whole tree, which is empty, is `(root)`.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a>(pub &'a str);

/// A file or directory, as a [`Line`].
#[derive(Debug, Clone, Copy)]
pub struct File<'a>(pub &'a Path);

/// So many things, by a word whose plural ends in `s`: `1 tensor`, `2 tensors`.
#[derive(Debug, Clone, Copy)]
pub struct Count(pub usize, pub &'static str);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}{}", self.0, self.1, if self.0 == 1 { "" } else { "s" })
    }
}

/// Whether a character must not reach a terminal.
fn is_unsafe(c: char) -> bool {
    // Marks of direction, zero width characters and separators of lines, by Unicode's chart of general punctuation; then
    // the byte order mark and the tags.
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

fn write_escaped(f: &mut fmt::Formatter<'_>, text: &str, is_kept: impl Fn(char) -> bool) -> fmt::Result {
    text.chars().try_for_each(|c| match c {
        c if !is_unsafe(c) || is_kept(c) => f.write_char(c),
        c => write!(f, "{}", c.escape_default()),
    })
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, self.0, |_| false)
    }
}

impl fmt::Display for Block<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_escaped(f, self.0, |c| matches!(c, '\n' | '\t'))
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("(root)") } else { Line(self.0).fmt(f) }
    }
}

impl fmt::Display for File<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Line(&self.0.to_string_lossy()).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_the_rest_stays() {
        assert_eq!(Line("a\x1b[2J\nb\u{9b}1m\u{202e}").to_string(), r"a\u{1b}[2J\nb\u{9b}1m\u{202e}");
        assert_eq!(Line("naïve 层 é'\"\\").to_string(), "naïve 层 é'\"\\");
        assert_eq!(Block("a\n\tb\r\x07").to_string(), "a\n\tb\\r\\u{7}");
        assert_eq!(Name("").to_string(), "(root)");
        assert_eq!(format!("{}, {}", Count(1, "tensor"), Count(0, "digest")), "1 tensor, 0 digests");
        assert_eq!(File(Path::new("a\nb")).to_string(), r"a\nb");
    }
}
