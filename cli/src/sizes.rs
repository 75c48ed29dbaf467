//! Sizes of dimension variables, as they are given and told: `b=8,t=64`.

use anyhow::Result;

/// A dimension variable and its size.
pub fn parse_size(text: &str) -> Result<(String, usize), String> {
    let (name, size) = text.split_once('=').ok_or("sizes are NAME=SIZE, with commas between: b=8,t=64")?;
    if name.trim().is_empty() {
        return Err("sizes are NAME=SIZE, with commas between: b=8,t=64".into());
    }
    let parsed = if size.contains('+') { "" } else { size.trim() }.parse();
    let size = parsed
        .map_err(|_| format!("`{size}` is no size; they are whole numbers, with commas between: b=8,t=64"))?;
    Ok((name.trim().to_owned(), size))
}

/// Sizes as the library takes them.
pub fn borrowed(sizes: &[(String, usize)]) -> Vec<(&str, usize)> {
    sizes.iter().map(|(name, size)| (name.as_str(), *size)).collect()
}

/// Sizes as they are given, with `separator` between.
pub fn text(sizes: &[(&str, usize)], separator: &str) -> String {
    let texts: Vec<String> = sizes.iter().map(|(name, size)| format!("{name}={size}")).collect();
    texts.join(separator)
}
