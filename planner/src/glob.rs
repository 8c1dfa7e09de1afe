//! Globs that people write, over names whose parts dots separate.

use crate::quote::quote;
use globset::{GlobBuilder, GlobMatcher};

/// Longest glob, in bytes: what compiling one costs grows with it.
const MAX_BYTES: usize = 1024;

/// Most alternatives within alternatives.
const MAX_DEPTH: usize = 8;

/// A glob over names like `model.layers.0.mlp`.
#[derive(Debug, Clone)]
pub struct Glob {
    matcher: GlobMatcher,
    text: String,
}

impl Glob {
    /// A glob whose `*` matches within one part of a name, and `**` over any.
    ///
    /// # Errors
    /// Says why `text` is no glob.
    pub fn of_parts(text: &str) -> Result<Self, String> {
        Self::new(text, true)
    }

    /// A glob whose `*` matches anything.
    ///
    /// # Errors
    /// Says why `text` is no glob.
    pub fn of_names(text: &str) -> Result<Self, String> {
        Self::new(text, false)
    }

    /// Whether it matches `name`.
    pub fn matches(&self, name: &str) -> bool {
        self.matcher.is_match(as_path(name))
    }

    /// As it is written.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn new(text: &str, by_parts: bool) -> Result<Self, String> {
        let failed = |why: &str| format!("{} is no glob: {why}", quote(text));
        if text.len() > MAX_BYTES {
            return Err(failed(&format!("it has more than {MAX_BYTES} bytes")));
        }
        let mut depth = 0usize;
        for byte in text.bytes() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MAX_DEPTH {
                return Err(failed(&format!("more than {MAX_DEPTH} braces stand within each other")));
            }
        }
        let matcher = GlobBuilder::new(&as_path(text))
            .literal_separator(by_parts)
            .build()
            .map_err(|error| failed(&error.kind().to_string()))?
            .compile_matcher();
        Ok(Self { matcher, text: text.to_owned() })
    }
}

/// Glob libraries separate by `/`, names by `.`.
fn as_path(name: &str) -> String {
    name.replace('.', "/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stars_know_the_parts_of_a_name() {
        let parts = Glob::of_parts("model.*.{q,k}_proj").unwrap();
        assert!(parts.matches("model.attn.q_proj") && !parts.matches("model.layers.attn.q_proj"));
        assert!(Glob::of_names("model.*.q_proj").unwrap().matches("model.layers.attn.q_proj"));
    }

    #[test]
    fn what_would_cost_too_much_is_refused() {
        for text in ["a".repeat(2000), "{".repeat(300), "{a,".repeat(40) + &"}".repeat(40)] {
            assert!(Glob::of_parts(&text).unwrap_err().contains("is no glob: "));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn no_text_brings_it_down(text in "[a-c.*?{},\\[\\]!^\\\\é/-]{0,400}") {
            let _ = Glob::of_parts(&text);
            let _ = Glob::of_names(&text);
        }
    }
}
