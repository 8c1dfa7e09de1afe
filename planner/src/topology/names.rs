//! Names and numbers that stand for several: `nic0-7`, `0-3,6`.

use crate::{quote::quote, yaml::Parsed};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Unexpected, Visitor},
};
use std::{borrow::Cow, collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr};

/// Largest number in a list, and most names that one text stands for.
const MOST: u32 = 1024;

/// Longest name, in bytes.
const LONGEST_NAME: usize = 64;

/// One name, or a run of them: `cpu0`, or `cpu0-1` for `cpu0` and `cpu1`. Never empty, and no larger than its text: what it stands
/// for is made when it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub(super) struct Names {
    text: String,
    /// Of a run the length of what all its names begin with, the first number, and how many there are.
    run: Option<(usize, u32, u32)>,
}

impl Names {
    /// Each of the names.
    pub(super) fn iter(&self) -> std::vec::IntoIter<String> {
        let names: Vec<String> = match self.run {
            Some((prefix, start, count)) => {
                let prefix = &self.text[..prefix];
                (start..start + count).map(|number| format!("{prefix}{number}")).collect()
            }
            None => vec![self.text.clone()],
        };
        names.into_iter()
    }

    /// Whether `name` is one of them.
    pub(super) fn has(&self, name: &str) -> bool {
        let Some((prefix, start, count)) = self.run else { return self.text == name };
        let number = name.strip_prefix(&self.text[..prefix]).and_then(|number| number.parse::<u32>().ok());
        number.is_some_and(|number| (start..start + count).contains(&number))
    }

    /// How many names.
    pub(super) fn len(&self) -> usize {
        self.run.map_or(1, |(_, _, count)| count as usize)
    }

    /// As it was written.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

impl FromStr for Names {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sound = |name: &str| {
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte))
                && (1..=LONGEST_NAME).contains(&name.len())
        };
        if !sound(text) {
            return Err(format!(
                "{} is no name: use up to {LONGEST_NAME} letters, digits and `_`, `.`, `:`, `-`",
                quote(text)
            ));
        }
        let Some((prefix, start, end)) = run(text) else { return Ok(Self::from(text)) };
        let wrong =
            || format!("{} is no run of names: write it like cpu0-1, at most {MOST} of them", quote(text));
        let (start, end): (u32, u32) =
            (start.parse().map_err(|_| wrong())?, end.parse().map_err(|_| wrong())?);
        if start > end || end - start >= MOST {
            return Err(wrong());
        }
        Ok(Self { text: text.to_owned(), run: Some((prefix.len(), start, end - start + 1)) })
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Parsed::new("name"))
    }
}

/// `nic0-7` as `nic`, `0`, `7`.
fn run(text: &str) -> Option<(&str, &str, &str)> {
    let (front, end) = text.rsplit_once('-')?;
    let prefix = front.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let start = &front[prefix.len()..];
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (!prefix.is_empty() && digits(start) && digits(end)).then_some((prefix, start, end))
}

impl From<Names> for String {
    fn from(names: Names) -> Self {
        names.text
    }
}

impl From<&str> for Names {
    /// One name, taken as it is. The caller has made it of sound letters.
    fn from(name: &str) -> Self {
        Self { text: name.to_owned(), run: None }
    }
}

impl JsonSchema for Names {
    fn schema_name() -> Cow<'static, str> {
        "Names".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "One name, or a run of them: cpu0-1 is cpu0 and cpu1.",
            "pattern": "^[A-Za-z0-9_.:-]{1,64}$",
        })
    }
}

/// Numbers as people write them: `0`, `0-3` or `0-3,6`. Each once, never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Numbers(Vec<u32>);

impl Numbers {
    /// These numbers. `None` if there are none, or one stands twice.
    pub(super) fn new(numbers: Vec<u32>) -> Option<Self> {
        let distinct: BTreeSet<&u32> = numbers.iter().collect();
        (!numbers.is_empty() && distinct.len() == numbers.len()).then_some(Self(numbers))
    }

    /// Each of the numbers.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = u32> {
        self.0.iter().copied()
    }

    /// How many.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the list that `text` is has `number`; `false` of what is no list.
    pub(super) fn lists(text: &str, number: u32) -> bool {
        ranges(text).try_fold(false, |found, range| Some(found || range?.contains(&number))) == Some(true)
    }

    /// Reads a list like `0-3,6`.
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{} is no list of numbers: write it like 0-3,6, each once and below {MOST}", quote(text))
        };
        let mut numbers = Vec::new();
        for range in ranges(text) {
            // No number twice, so never more than there are.
            let range = range.filter(|_| numbers.len() < MOST as usize).ok_or_else(wrong)?;
            numbers.extend(range);
        }
        Self::new(numbers).ok_or_else(wrong)
    }
}

/// The pieces of a list like `0-3,6`; `None` for a piece that is none, or goes beyond [`MOST`].
fn ranges(text: &str) -> impl Iterator<Item = Option<RangeInclusive<u32>>> {
    text.split(',').map(|piece| {
        let (start, end) = piece.split_once('-').unwrap_or((piece, piece));
        let (start, end): (u32, u32) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
        (start <= end && end < MOST).then_some(start..=end)
    })
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&runs(&self.0))
    }
}

/// Numbers with runs written short: `0-3,6`.
pub fn runs(numbers: &[u32]) -> String {
    let runs: Vec<String> = numbers
        .chunk_by(|a, b| a.checked_add(1) == Some(*b))
        .map(|run| match run {
            [one] => one.to_string(),
            _ => format!("{}-{}", run[0], run[run.len() - 1]),
        })
        .collect();
    runs.join(",")
}

impl Serialize for Numbers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [one] => serializer.serialize_u32(*one),
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("numbers like 0-3,6")
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Numbers, E> {
                match u32::try_from(number) {
                    Ok(number) if number < MOST => Ok(Numbers(vec![number])),
                    _ => Err(E::invalid_value(Unexpected::Unsigned(number), &self)),
                }
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Numbers, E> {
                Numbers::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Written)
    }
}

impl JsonSchema for Numbers {
    fn schema_name() -> Cow<'static, str> {
        "Numbers".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Numbers, each once: 0, 0-3 or 0-3,6.",
            "anyOf": [{ "type": "integer", "minimum": 0, "maximum": 1023 }, { "type": "string", "pattern": "^[0-9, -]+$" }],
        })
    }
}

/// Deals `of` things to `to` in contiguous runs, or the other way round where there are more of the others: pairs of places.
/// `None` where the longer is no multiple of the shorter.
pub(super) fn dealt(of: usize, to: usize) -> Option<Vec<(usize, usize)>> {
    let (longer, shorter) = (of.max(to), of.min(to));
    if shorter == 0 || !longer.is_multiple_of(shorter) {
        return None;
    }
    Some((0..longer).map(|at| (at * of / longer, at * to / longer)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(text: &str) -> Result<Vec<String>, String> {
        text.parse::<Names>().map(|names| names.iter().collect())
    }

    #[test]
    fn a_run_of_names_stands_for_each() {
        assert_eq!(names("cpu0-1").unwrap(), ["cpu0", "cpu1"]);
        assert_eq!(names("mlx5_9-10").unwrap(), ["mlx5_9", "mlx5_10"]);
        for one in ["cpu0", "pcie-switch", "cpu-0", "a-", "0-1", "mlx5_bond_0"] {
            assert_eq!(names(one).unwrap(), [one]);
        }
        for wrong in ["", "a b", "cpu1-0", "cpu0-1024", "cpu0-99999999999", "grün", &"x".repeat(65)] {
            assert!(names(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_are_read_and_written() {
        for text in ["0", "0-3", "0-3,6", "1,3,5-7", "3,1,7,5"] {
            assert_eq!(Numbers::parse(text).unwrap().to_string(), text);
        }
        for wrong in ["", "1-0", "0-4000000000", "0-2,1", "0,0", "-1", "a", "1024"] {
            assert!(Numbers::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn things_are_dealt_in_runs() {
        assert_eq!(dealt(4, 2).unwrap(), [(0, 0), (1, 0), (2, 1), (3, 1)]);
        assert_eq!(dealt(1, 2).unwrap(), [(0, 0), (0, 1)]);
        assert_eq!(dealt(3, 2), None);
        assert_eq!(dealt(0, 2), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = (names(&text), Numbers::parse(&text));
        }

        #[test]
        fn numbers_come_back(set in prop::collection::btree_set(0u32..MOST, 1..20)) {
            let numbers = Numbers::new(set.into_iter().collect()).unwrap();
            prop_assert_eq!(Numbers::parse(&numbers.to_string()).unwrap(), numbers);
        }
    }
}
