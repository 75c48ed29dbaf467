//! Expressions of dimension variables, as `jax.export` writes them: `2*b`, `floordiv(a + 1, 2)`.

use std::collections::BTreeSet;

/// How deep parentheses may lie within each other.
const MAX_DEPTH: usize = 64;

/// The names of the variables in an expression.
pub fn variables(expression: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut parser = Parser {
        rest: expression,
        depth: 0,
        size_of: |name: &str| {
            found.insert(name.to_owned());
            Ok(1)
        },
    };
    // What is not understood has no variables that are known.
    let _ = parser.sum();
    found
}

/// The size that an expression is where its variables have these.
pub fn evaluate(expression: &str, sizes: &[(&str, usize)]) -> Result<usize, String> {
    let size_of = |name: &str| {
        let found = sizes.iter().find(|(known, _)| *known == name);
        let size = found.ok_or_else(|| format!("no size is given for `{name}`"))?.1;
        i64::try_from(size).map_err(|_| format!("`{name}` is too large"))
    };
    let mut parser = Parser { rest: expression, depth: 0, size_of };
    let value = parser.sum()?;
    parser.skip_spaces();
    if !parser.rest.is_empty() {
        return Err(format!("it is not understood from `{}` on", parser.rest));
    }
    usize::try_from(value).map_err(|_| format!("it would be {value}"))
}

struct Parser<'a, F> {
    rest: &'a str,
    depth: usize,
    size_of: F,
}

impl<'a, F: FnMut(&str) -> Result<i64, String>> Parser<'a, F> {
    fn skip_spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn accept(&mut self, symbol: char) -> bool {
        self.skip_spaces();
        match self.rest.strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, symbol: char) -> Result<(), String> {
        if self.accept(symbol) { Ok(()) } else { Err(format!("`{symbol}` was expected at `{}`", self.rest)) }
    }

    /// Terms, added and subtracted.
    fn sum(&mut self) -> Result<i64, String> {
        let mut sum = self.product()?;
        loop {
            let sign = if self.accept('+') {
                1
            } else if self.accept('-') {
                -1
            } else {
                return Ok(sum);
            };
            let term = self.product()?.checked_mul(sign).ok_or(TOO_LARGE)?;
            sum = sum.checked_add(term).ok_or(TOO_LARGE)?;
        }
    }

    fn product(&mut self) -> Result<i64, String> {
        if self.accept('-') {
            return self.product()?.checked_neg().ok_or_else(|| TOO_LARGE.into());
        }
        let mut product = self.power()?;
        while self.accept('*') {
            product = product.checked_mul(self.power()?).ok_or(TOO_LARGE)?;
        }
        Ok(product)
    }

    fn power(&mut self) -> Result<i64, String> {
        let base = self.atom()?;
        if !self.accept('^') {
            return Ok(base);
        }
        let exponent = u32::try_from(self.atom()?).map_err(|_| "a power is negative")?;
        base.checked_pow(exponent).ok_or_else(|| TOO_LARGE.into())
    }

    /// A number, a variable, a function of two expressions, or an expression in parentheses.
    fn atom(&mut self) -> Result<i64, String> {
        if self.depth == MAX_DEPTH {
            return Err("it is nested too deep".into());
        }
        self.depth += 1;
        let value = self.atom_within();
        self.depth -= 1;
        value
    }

    fn atom_within(&mut self) -> Result<i64, String> {
        if self.accept('(') {
            let value = self.sum()?;
            return self.expect(')').map(|()| value);
        }
        let length = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(length);
        self.rest = rest;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            return word.parse().map_err(|_| format!("`{word}` is no number"));
        }
        if word.is_empty() {
            return Err(format!("something is missing at `{rest}`"));
        }
        if !self.accept('(') {
            return (self.size_of)(word);
        }
        let a = self.sum()?;
        self.expect(',')?;
        let b = self.sum()?;
        self.expect(')')?;
        function(word, a, b)
    }
}

const TOO_LARGE: &str = "it is too large";

fn function(name: &str, a: i64, b: i64) -> Result<i64, String> {
    let value = match name {
        // As Python's, which rounds down.
        "floordiv" => a
            .checked_div_euclid(b)
            .map(|quotient| if b < 0 && a.rem_euclid(b) != 0 { quotient - 1 } else { quotient }),
        "mod" => a.checked_rem_euclid(b).map(|rest| if b < 0 && rest != 0 { rest + b } else { rest }),
        "max" => Some(a.max(b)),
        "min" => Some(a.min(b)),
        _ => return Err(format!("`{name}` is not known")),
    };
    value.ok_or_else(|| "it divides by zero".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_have_the_values_that_python_gives_them() {
        let at = |expression: &str| evaluate(expression, &[("b", 7), ("long_name", 3)]);
        for (expression, value) in [
            ("b", 7),
            ("2*b + 1", 15),
            ("-b + 16", 9),
            ("b^2 - long_name", 46),
            ("floordiv(b + 1, long_name)", 2),
            ("floordiv(-b, 2) + 4", 0),
            ("mod(-b, 4)", 1),
            ("mod(b, -4) + 1", 0),
            ("floordiv(b, -4) + 2", 0),
            ("max(b, 2*long_name) + min(b, 1)", 8),
            ("3*(b - 1)*long_name", 54),
        ] {
            assert_eq!(at(expression), Ok(value), "{expression}");
        }
        assert!(at("c").unwrap_err().contains("no size is given for `c`"));
        assert!(at("b - 9").unwrap_err().contains("would be -2"));
        assert!(at("floordiv(b, 0)").unwrap_err().contains("divides by zero"));
        for expression in
            ["b +", "b b", "non_negative(b)", "(b", "b^b^b^b", &"(".repeat(100_000), "9999999999999999999"]
        {
            assert!(at(expression).is_err(), "{expression}");
        }
        assert_eq!(variables("floordiv(2*n, b)").into_iter().collect::<Vec<_>>(), ["b", "n"]);
    }
}
