//! Strings as protocols 0 and 1 write them.

/// The bytes behind Python's escapes.
pub fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (&escape, after) = rest.split_first()?;
        rest = after;
        bytes.push(match escape {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'\\' | b'\'' | b'"' => escape,
            b'a' => 7,
            b'b' => 8,
            b'v' => 11,
            b'f' => 12,
            b'x' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

/// The text behind Latin 1 with `\uXXXX` and `\UXXXXXXXX` for the other characters.
pub fn raw_unicode(text: &[u8]) -> Option<String> {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let digits = match rest {
            [b'\\', b'u', ..] => 4,
            [b'\\', b'U', ..] => 8,
            _ => {
                decoded.push(char::from(*first));
                rest = after;
                continue;
            }
        };
        let number = std::str::from_utf8(rest.get(2..2 + digits)?).ok()?;
        decoded.push(char::from_u32(u32::from_str_radix(number, 16).ok()?)?);
        rest = &rest[2 + digits..];
    }
    Some(decoded)
}
