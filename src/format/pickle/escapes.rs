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
                u8::try_from(hexadecimal(digits)?).ok()?
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
            // What follows another backslash escapes nothing.
            [b'\\', other, after @ ..] => {
                decoded.extend(['\\', char::from(*other)]);
                rest = after;
                continue;
            }
            _ => {
                decoded.push(char::from(*first));
                rest = after;
                continue;
            }
        };
        decoded.push(char::from_u32(hexadecimal(rest.get(2..2 + digits)?)?)?);
        rest = &rest[2 + digits..];
    }
    Some(decoded)
}

/// The number that digits are, without a sign.
fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits
        .iter()
        .try_fold(0u32, |number, &digit| number.checked_mul(16)?.checked_add(char::from(digit).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_mean_what_they_mean_to_python() {
        let text = raw_unicode(br"\\u0041 \u0041 \U0001f600 \q");
        assert_eq!(text.as_deref(), Some(r"\\u0041 A 😀 \q"));
        assert_eq!(raw_unicode(br"\u+041"), None);
        assert_eq!(unescape(br"a\x41\n\\"), Some(b"aA\n\\".to_vec()));
        assert_eq!(unescape(br"\x+1"), None);
    }
}
