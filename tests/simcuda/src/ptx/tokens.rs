//! PTX text cut into words and signs.

use super::Unknown;

/// A piece of the text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) line: usize,
    /// A word, a sign of one letter, or a string with its quotes.
    pub(super) text: &'a str,
}

/// Cuts `text`, without its comments.
pub(super) fn cut(text: &str) -> Result<Vec<Token<'_>>, Unknown> {
    let (mut tokens, mut rest, mut line) = (Vec::new(), text, 1);
    while let Some(first) = rest.chars().next() {
        let len = if first.is_whitespace() {
            first.len_utf8()
        } else if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            let unclosed = Unknown { line, what: "a comment without end".into() };
            rest.find("*/").ok_or(unclosed)? + 2
        } else {
            let len =
                token_len(rest, first).ok_or(Unknown { line, what: format!("unexpected `{first}`") })?;
            tokens.push(Token { line, text: &rest[..len] });
            len
        };
        let (passed, left) = rest.split_at(len);
        line += passed.matches('\n').count();
        rest = left;
    }
    Ok(tokens)
}

fn token_len(rest: &str, first: char) -> Option<usize> {
    if first == '"' {
        return Some(rest[1..].find('"')? + 2);
    }
    if ",;{}[]()+-!|@:<>=~".contains(first) {
        return Some(1);
    }
    // `::` belongs to a word (`.L2::128B`), `:` ends a label.
    let mut len = 0;
    loop {
        let word = |c: char| c.is_ascii_alphanumeric() || "_.$%".contains(c);
        len += rest[len..].find(|c| !word(c)).unwrap_or(rest.len() - len);
        if len == 0 || !rest[len..].starts_with("::") {
            break;
        }
        len += 2;
    }
    (len > 0).then_some(len)
}
