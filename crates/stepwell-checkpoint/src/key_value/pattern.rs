//! Patterns of keys.

/// A pattern of keys, in which `*` stands for any text and every other character for itself.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// The texts between the stars; their number is the number of stars and 1.
    parts: Vec<String>,
}

impl Pattern {
    /// Parses a pattern. Every text is valid.
    pub fn new(pattern: &str) -> Self {
        Self { parts: pattern.split('*').map(str::to_owned).collect() }
    }

    /// Returns whether the key matches.
    ///
    /// ```
    /// # use stepwell_checkpoint::key_value::Pattern;
    /// assert!(Pattern::new("cache:*:v1").matches("cache:[user] 7:v1"));
    /// assert!(!Pattern::new("cache:?").matches("cache:7"));
    /// ```
    pub fn matches(&self, key: &str) -> bool {
        let [first, middle @ .., last] = &self.parts[..] else {
            return self.parts.first().is_some_and(|only| only == key);
        };
        let Some(rest) = key.strip_prefix(&**first) else { return false };
        let Some(mut rest) = rest.strip_suffix(&**last) else { return false };
        for part in middle {
            let Some(found) = rest.find(&**part) else { return false };
            rest = &rest[found + part.len()..];
        }
        true
    }

    /// Returns the text with which every matching key begins.
    pub fn prefix(&self) -> &str {
        self.parts.first().map_or("", String::as_str)
    }

    /// Returns the pattern in another syntax, in which `any` stands for any text. `escape` is
    /// applied to each of the `special` characters.
    pub fn translate(
        &self,
        any: &str,
        special: &[char],
        escape: impl Fn(char) -> String,
    ) -> String {
        let escaped = |part: &String| -> String {
            part.chars()
                .map(|c| if special.contains(&c) { escape(c) } else { c.to_string() })
                .collect()
        };
        self.parts.iter().map(escaped).collect::<Vec<_>>().join(any)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Matches by the definition: a star takes any length for which the rest matches.
    fn by_definition(pattern: &[char], key: &[char]) -> bool {
        match pattern.split_first() {
            None => key.is_empty(),
            Some(('*', rest)) => (0..=key.len()).any(|taken| by_definition(rest, &key[taken..])),
            Some((c, rest)) => key.first() == Some(c) && by_definition(rest, &key[1..]),
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_it_does_by_definition(
            pattern in "[ab*é?]{0,7}",
            key in "[abé?]{0,9}",
        ) {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            let expected = by_definition(&chars(&pattern), &chars(&key));
            prop_assert_eq!(Pattern::new(&pattern).matches(&key), expected);
        }
    }
}
