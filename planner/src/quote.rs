//! How names that come from files are shown to people: in backticks, escaped, and never longer than a line.

use std::fmt;

/// Longest name shown whole; a longer one is cut and marked, so that a hostile file cannot flood a terminal.
const LONGEST: usize = 160;

/// Shows `name` in backticks with control characters escaped.
pub fn quote(name: &str) -> Quoted<'_> {
    Quoted(name)
}

/// Shows `name` with control characters escaped, without backticks: for tables.
pub fn escaped(name: &str) -> String {
    let quoted = quote(name).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// A name wrapped for display; made by [`quote`].
pub struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`")?;
        for (count, letter) in self.0.chars().enumerate() {
            if count == LONGEST {
                f.write_str("…")?;
                break;
            }
            match letter {
                '\'' | '"' => write!(f, "{letter}")?,
                _ => write!(f, "{}", letter.escape_debug())?,
            }
        }
        f.write_str("`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_long_names_cut() {
        assert_eq!(quote("a.b").to_string(), "`a.b`");
        assert_eq!(quote("a\u{1b}[2J\n").to_string(), "`a\\u{1b}[2J\\n`");
        assert!(quote(&"x".repeat(5000)).to_string().len() < 200);
    }
}
