//! How a size follows from a configuration: `head_dim | hidden / heads`.
//!
//! ```text
//! expression  = alternative { "|" alternative }      the first whose names are all known wins
//! alternative = sum [ "if" key ]                     only where the configuration says that `key` is true
//! sum         = product { ( "+" | "-" ) product }
//! product     = factor { ( "*" | "/" ) factor }      a division must come out even
//! factor      = number | name | "(" sum ")"
//! name        = a key of the configuration, or a size that is defined elsewhere; words may be separated by blanks
//! ```

use std::str::FromStr;

/// A formula for a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expression {
    alternatives: Vec<(Node, Option<String>)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Number(u64),
    Name(String),
    Binary(Operator, Box<Node>, Box<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Plus,
    Minus,
    Times,
    Over,
}

/// What names mean.
pub(crate) trait Names {
    type Error;

    /// The size called `name`; `None` when it is not known.
    fn size(&self, name: &str) -> Result<Option<u64>, Self::Error>;

    /// Whether `key` is true.
    fn flag(&self, key: &str) -> bool;
}

impl Expression {
    /// All names in it, in order.
    pub(crate) fn names(&self) -> Vec<&str> {
        fn collect<'a>(node: &'a Node, names: &mut Vec<&'a str>) {
            match node {
                Node::Number(_) => {}
                Node::Name(name) => names.push(name),
                Node::Binary(_, left, right) => {
                    collect(left, names);
                    collect(right, names);
                }
            }
        }
        let mut names = Vec::new();
        for (node, _) in &self.alternatives {
            collect(node, &mut names);
        }
        names
    }

    /// Its value; `None` when no alternative has all its names, or the arithmetic does not come out. What is wrong with a
    /// name, and a value of 0, count only where no alternative has another value.
    pub(crate) fn value<N: Names>(&self, names: &N) -> Result<Option<u64>, N::Error> {
        let mut first_error = None;
        let mut zero = None;
        for (node, condition) in &self.alternatives {
            if condition.as_ref().is_some_and(|key| !names.flag(key)) {
                continue;
            }
            match value(node, names) {
                Ok(None) => {}
                Ok(Some(0)) => zero = Some(0),
                Ok(Some(value)) => return Ok(Some(value)),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(zero), Err)
    }
}

fn value<N: Names>(node: &Node, names: &N) -> Result<Option<u64>, N::Error> {
    Ok(match node {
        Node::Number(number) => Some(*number),
        Node::Name(name) => names.size(name)?,
        Node::Binary(operator, left, right) => {
            let (Some(left), Some(right)) = (value(left, names)?, value(right, names)?) else {
                return Ok(None);
            };
            match operator {
                Operator::Plus => left.checked_add(right),
                Operator::Minus => left.checked_sub(right),
                Operator::Times => left.checked_mul(right),
                Operator::Over if right > 0 && left.is_multiple_of(right) => Some(left / right),
                Operator::Over => None,
            }
        }
    })
}

impl FromStr for Expression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let alternatives = text
            .split('|')
            .map(|alternative| {
                let (sum, condition) = match alternative.split_once(" if ") {
                    Some((sum, key)) => (sum, Some(key.trim().to_owned())),
                    None => (alternative, None),
                };
                let mut tokens = tokens(sum)?;
                tokens.reverse();
                let node = parse_sum(&mut tokens, 0)?;
                match tokens.pop() {
                    None => Ok((node, condition)),
                    Some(token) => Err(format!("{token:?} is not expected")),
                }
            })
            .collect::<Result<_, String>>()?;
        Ok(Self { alternatives })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Number(u64),
    Name(String),
    Sign(char),
}

/// Most tokens of an alternative.
const MAX_TOKENS: usize = 256;

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut rest = text.trim_start();
    let in_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '.';
    while let Some(letter) = rest.chars().next() {
        if tokens.len() == MAX_TOKENS {
            return Err(format!("it has more than {MAX_TOKENS} words and signs"));
        }
        if letter.is_ascii_digit() {
            let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
            let number = rest[..end].parse().map_err(|_| format!("{} is too large", &rest[..end]))?;
            tokens.push(Token::Number(number));
            rest = &rest[end..];
        } else if in_word(letter) {
            let end = rest.find(|letter: char| !in_word(letter)).unwrap_or(rest.len());
            match tokens.last_mut() {
                // Words that stand side by side are one name.
                Some(Token::Name(name)) => {
                    name.push(' ');
                    name.push_str(&rest[..end]);
                }
                _ => tokens.push(Token::Name(rest[..end].to_owned())),
            }
            rest = &rest[end..];
        } else if "+-*/()".contains(letter) {
            tokens.push(Token::Sign(letter));
            rest = &rest[1..];
        } else {
            return Err(format!("{letter:?} is not expected"));
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

/// Deepest nesting of parentheses.
const MAX_DEPTH: usize = 16;

fn parse_sum(tokens: &mut Vec<Token>, depth: usize) -> Result<Node, String> {
    let mut left = parse_product(tokens, depth)?;
    loop {
        let operator = match tokens.last() {
            Some(Token::Sign('+')) => Operator::Plus,
            Some(Token::Sign('-')) => Operator::Minus,
            _ => return Ok(left),
        };
        tokens.pop();
        left = Node::Binary(operator, Box::new(left), Box::new(parse_product(tokens, depth)?));
    }
}

fn parse_product(tokens: &mut Vec<Token>, depth: usize) -> Result<Node, String> {
    let mut left = parse_factor(tokens, depth)?;
    loop {
        let operator = match tokens.last() {
            Some(Token::Sign('*')) => Operator::Times,
            Some(Token::Sign('/')) => Operator::Over,
            _ => return Ok(left),
        };
        tokens.pop();
        left = Node::Binary(operator, Box::new(left), Box::new(parse_factor(tokens, depth)?));
    }
}

fn parse_factor(tokens: &mut Vec<Token>, depth: usize) -> Result<Node, String> {
    match tokens.pop() {
        Some(Token::Number(number)) => Ok(Node::Number(number)),
        Some(Token::Name(name)) => Ok(Node::Name(name)),
        Some(Token::Sign('(')) if depth < MAX_DEPTH => {
            let inner = parse_sum(tokens, depth + 1)?;
            match tokens.pop() {
                Some(Token::Sign(')')) => Ok(inner),
                _ => Err("a parenthesis is not closed".to_owned()),
            }
        }
        Some(token) => Err(format!("{token:?} is not expected")),
        None => Err("something is missing at its end".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Known;

    impl Names for Known {
        type Error = std::convert::Infallible;

        fn size(&self, name: &str) -> Result<Option<u64>, Self::Error> {
            Ok(match name {
                "hidden size" => Some(64),
                "heads" => Some(8),
                "three" => Some(3),
                "nothing" => Some(0),
                _ => None,
            })
        }

        fn flag(&self, key: &str) -> bool {
            key == "yes"
        }
    }

    fn value_of(text: &str) -> Option<u64> {
        text.parse::<Expression>().unwrap().value(&Known).unwrap()
    }

    #[test]
    fn arithmetic_is_that_of_school() {
        assert_eq!(value_of("hidden size / heads + 2 * three"), Some(14));
        assert_eq!(value_of("2 * (heads - three)"), Some(10));
        assert_eq!(value_of("absent | 7"), Some(7));
        assert_eq!(value_of("nothing | 7"), Some(7));
        assert_eq!(value_of("nothing | absent"), Some(0));
        assert_eq!(value_of("1 if no | 2 if yes | 3"), Some(2));
    }

    #[test]
    fn what_does_not_come_out_is_not_known() {
        for text in ["absent", "heads / three", "three - heads", "heads / 0", "18446744073709551615 * heads"]
        {
            assert_eq!(value_of(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for text in
            ["", "1 +", "(1", "1 2", "a ? b", "99999999999999999999", &"(".repeat(99), &"1+".repeat(300)]
        {
            assert!(text.parse::<Expression>().is_err(), "{text}");
        }
    }
}
