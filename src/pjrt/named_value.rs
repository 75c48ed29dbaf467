//! Named values: client create options on the way in; plugin, device and cost attributes on the way out.

use std::fmt;

use super::api::{slice, string};
use super::ffi;

/// The value of a named option or attribute (`PJRT_NamedValue`).
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
#[allow(missing_docs)] // The variants say what they hold.
pub enum NamedValue {
    String(String),
    Int64(i64),
    Int64List(Vec<i64>),
    Float(f32),
    Bool(bool),
}

impl NamedValue {
    /// Copies what a plugin returned.
    ///
    /// # Safety
    /// `values` is null or points to `count` named values that are valid during the call.
    pub(super) unsafe fn read_all(
        values: *const ffi::PJRT_NamedValue,
        count: usize,
    ) -> Vec<(String, NamedValue)> {
        // SAFETY: passed on to the caller.
        let values = unsafe { slice(values, count) };
        // SAFETY: as above; the union's active field is the one that `type_` names.
        values.iter().filter_map(|value| unsafe { NamedValue::read(value) }).collect()
    }

    /// One value; `None` for a type that this version does not know.
    ///
    /// # Safety
    /// `value` is a named value as the C API documents it.
    unsafe fn read(value: &ffi::PJRT_NamedValue) -> Option<(String, NamedValue)> {
        // SAFETY: passed on to the caller: the pointers are valid for the sizes beside them, and the
        // union's active field is the one that `type_` names.
        unsafe {
            let name = string(value.name, value.name_size);
            let read = match value.type_ {
                ffi::PJRT_NamedValue_kString => {
                    NamedValue::String(string(value.value.string_value, value.value_size))
                }
                ffi::PJRT_NamedValue_kInt64 => NamedValue::Int64(value.value.int64_value),
                ffi::PJRT_NamedValue_kInt64List => {
                    NamedValue::Int64List(slice(value.value.int64_array_value, value.value_size).to_vec())
                }
                ffi::PJRT_NamedValue_kFloat => NamedValue::Float(value.value.float_value),
                ffi::PJRT_NamedValue_kBool => NamedValue::Bool(value.value.bool_value),
                _ => return None,
            };
            Some((name, read))
        }
    }

    /// The C form, which points into `name` and `self`: it must not be used after either is gone.
    pub(super) fn to_raw(&self, name: &str) -> ffi::PJRT_NamedValue {
        let mut raw = ffi::PJRT_NamedValue::new();
        raw.name = name.as_ptr().cast();
        raw.name_size = name.len();
        raw.value_size = 1;
        (raw.type_, raw.value) = match self {
            NamedValue::String(text) => {
                raw.value_size = text.len();
                (
                    ffi::PJRT_NamedValue_kString,
                    ffi::PJRT_NamedValue_Value { string_value: text.as_ptr().cast() },
                )
            }
            NamedValue::Int64(int64_value) => {
                (ffi::PJRT_NamedValue_kInt64, ffi::PJRT_NamedValue_Value { int64_value: *int64_value })
            }
            NamedValue::Int64List(list) => {
                raw.value_size = list.len();
                (
                    ffi::PJRT_NamedValue_kInt64List,
                    ffi::PJRT_NamedValue_Value { int64_array_value: list.as_ptr() },
                )
            }
            NamedValue::Float(float_value) => {
                (ffi::PJRT_NamedValue_kFloat, ffi::PJRT_NamedValue_Value { float_value: *float_value })
            }
            NamedValue::Bool(bool_value) => {
                (ffi::PJRT_NamedValue_kBool, ffi::PJRT_NamedValue_Value { bool_value: *bool_value })
            }
        };
        raw
    }

    /// Reads `true`, `false`, an integer, a number with a point, a list `[1,2,3]` (the brackets can be left out
    /// where there is a comma), or else a string.
    pub fn parse(text: &str) -> NamedValue {
        let numbers =
            |text: &str| text.split(',').map(|number| number.trim().parse().ok()).collect::<Option<_>>();
        if let Some(list) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).and_then(numbers) {
            return NamedValue::Int64List(list);
        }
        if let Ok(value) = text.parse::<bool>() {
            return NamedValue::Bool(value);
        }
        if let Ok(value) = text.parse::<i64>() {
            return NamedValue::Int64(value);
        }
        // Not `inf` or `nan`, which are strings to everyone else.
        if let Ok(value) = text.parse::<f32>()
            && value.is_finite()
        {
            return NamedValue::Float(value);
        }
        numbers(text).map_or_else(|| NamedValue::String(text.to_owned()), NamedValue::Int64List)
    }
}

impl fmt::Display for NamedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamedValue::String(value) => f.write_str(value),
            NamedValue::Int64(value) => value.fmt(f),
            NamedValue::Int64List(list) => {
                let parts: Vec<String> = list.iter().map(i64::to_string).collect();
                write!(f, "[{}]", parts.join(","))
            }
            NamedValue::Float(value) => value.fmt(f),
            NamedValue::Bool(value) => value.fmt(f),
        }
    }
}

macro_rules! conversions {
    ($($from:ty => $variant:ident),* $(,)?) => {$(
        impl From<$from> for NamedValue {
            fn from(value: $from) -> NamedValue {
                NamedValue::$variant(value.into())
            }
        }
    )*};
}

conversions! { &str => String, String => String, i64 => Int64, Vec<i64> => Int64List, f32 => Float, bool => Bool }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_the_c_form() {
        for value in [
            NamedValue::from("text"),
            NamedValue::from(-3),
            NamedValue::from(vec![1, 20, 1]),
            NamedValue::from(0.5),
            NamedValue::from(true),
        ] {
            let raw = value.to_raw("name");
            // SAFETY: `raw` points into `value` and a literal, both alive.
            let read = unsafe { NamedValue::read_all(&raw, 1) };
            assert_eq!(read, [("name".to_owned(), value)]);
        }
    }

    #[test]
    fn text_becomes_the_narrowest_type() {
        assert_eq!(NamedValue::parse("true"), NamedValue::Bool(true));
        assert_eq!(NamedValue::parse("8"), NamedValue::Int64(8));
        assert_eq!(NamedValue::parse("0.75"), NamedValue::Float(0.75));
        assert_eq!(NamedValue::parse("0,1"), NamedValue::Int64List(vec![0, 1]));
        assert_eq!(NamedValue::parse("[0]"), NamedValue::Int64List(vec![0]));
        assert_eq!(NamedValue::parse("inf"), NamedValue::String("inf".into()));
        assert_eq!(NamedValue::Int64List(vec![1, 2]).to_string(), "[1,2]");
        assert_eq!(NamedValue::parse("bfc"), NamedValue::String("bfc".into()));
    }
}
