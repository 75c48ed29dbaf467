//! The StableHLO version of a portable artifact, and which versions a plugin reads.

/// With what MLIR bytecode begins, a StableHLO portable artifact included.
pub const MLIR_BYTECODE_MAGIC: &[u8] = b"ML\xefR";

/// The StableHLO version in the producer of a portable artifact.
pub fn stablehlo_version(code: &[u8]) -> Option<String> {
    /// MLIR bytecode: magic, format version (a varint of one byte), then the producer, ending in 0.
    const PRODUCER_OFFSET: usize = MLIR_BYTECODE_MAGIC.len() + 1;
    if !code.starts_with(MLIR_BYTECODE_MAGIC) {
        return None;
    }
    let producer = code.get(PRODUCER_OFFSET..)?.split(|&byte| byte == 0).next()?;
    std::str::from_utf8(producer).ok()?.strip_prefix("StableHLO_v").map(str::to_owned)
}

/// Whether a version is between two others, both included; `None` if one of them is no version.
pub fn is_within(version: &str, minimum: Option<&str>, maximum: &str) -> Option<bool> {
    let parts = |text: &str| text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u64>>>();
    let version = parts(version)?;
    let is_new_enough = minimum.map_or(Some(true), |minimum| Some(parts(minimum)? <= version))?;
    Some(is_new_enough && version <= parts(maximum)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(is_within("1.9.5", Some("0.9.0"), "1.14.0"), Some(true));
        assert_eq!(is_within("1.14.1", Some("0.9.0"), "1.14.0"), Some(false));
        assert_eq!(is_within("0.8.9", Some("0.9.0"), "1.14.0"), Some(false));
        assert_eq!(is_within("1.14.0", None, "1.14.0"), Some(true));
        assert_eq!(is_within("nightly", None, "1.14.0"), None);
    }
}
