//! Sets of names that differ in numbers only, written the way a person would: `model.layers.{0-79}.mlp.up_proj.weight`.
//!
//! A number is a whole dot-separated part of a name. `{0-3,5}` stands for 0, 1, 2, 3 and 5, and a pattern with several
//! such parts for every combination. A brace that a name itself contains is doubled.

use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    ops::{Range, RangeInclusive},
    str::FromStr,
};

/// Most numbers of a name that are collapsed; what comes after them is text like any other.
const MAX_NUMBERS: usize = 16;

/// What a collapsed name has in place of a number.
const HOLE: &str = "*";

/// Names that differ in numbers only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern {
    parts: Vec<PatternPart>,
}

/// One dot-separated part of a [`NamePattern`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PatternPart {
    /// The same in all names.
    Text(String),
    /// A number from one of these ranges, which ascend and do not touch.
    Numbers(Vec<RangeInclusive<u32>>),
}

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is no pattern of names: {reason}", crate::quote::quote(text))]
pub struct NamePatternError {
    text: String,
    reason: &'static str,
}

impl NamePattern {
    /// Its parts.
    pub fn parts(&self) -> &[PatternPart] {
        &self.parts
    }

    /// How many names it stands for; `u64::MAX` when that overflows.
    pub fn count(&self) -> u64 {
        self.parts
            .iter()
            .map(|part| match part {
                PatternPart::Text(_) => 1,
                PatternPart::Numbers(ranges) => {
                    ranges.iter().map(|range| u64::from(range.end() - range.start()) + 1).sum()
                }
            })
            .fold(1, u64::saturating_mul)
    }

    /// The numbers of its first name.
    pub fn first(&self) -> Option<Vec<u32>> {
        let numbers = self.parts.iter().filter_map(|part| match part {
            PatternPart::Text(_) => None,
            PatternPart::Numbers(ranges) => Some(ranges.first().map(|range| *range.start())),
        });
        numbers.collect()
    }

    /// Whether a name of it has just these numbers.
    pub fn has(&self, blocks: &[u32]) -> bool {
        let mut blocks = blocks.iter();
        let all = self.parts.iter().all(|part| match part {
            PatternPart::Text(_) => true,
            PatternPart::Numbers(ranges) => {
                blocks.next().is_some_and(|block| ranges.iter().any(|range| range.contains(block)))
            }
        });
        all && blocks.next().is_none()
    }

    /// How many numbers its names have.
    pub fn numbers(&self) -> usize {
        self.parts.iter().filter(|part| matches!(part, PatternPart::Numbers(_))).count()
    }

    /// Those of its names whose number `number`, counted from 0, lies in `range`; `None` where there are none.
    pub fn within(&self, number: usize, range: Range<u64>) -> Option<Self> {
        let mut parts = self.parts.clone();
        let mut numbers = parts.iter_mut().filter_map(|part| match part {
            PatternPart::Text(_) => None,
            PatternPart::Numbers(ranges) => Some(ranges),
        });
        let ranges = numbers.nth(number)?;
        // An empty range ends before it begins.
        let last = u32::try_from(range.end.checked_sub(1)?).unwrap_or(u32::MAX);
        let first = u32::try_from(range.start).ok()?;
        let cut = |run: &RangeInclusive<u32>| first.max(*run.start())..=last.min(*run.end());
        *ranges = ranges.iter().map(cut).filter(|run| !run.is_empty()).collect();
        (!ranges.is_empty()).then_some(Self { parts })
    }

    /// Its names, each followed by `text` and each of `numbers`, which ascend.
    pub fn numbered(&self, text: &str, numbers: &[u32]) -> Self {
        let mut parts = self.parts.clone();
        parts.push(PatternPart::Text(text.to_owned()));
        parts.push(PatternPart::Numbers(ranges(numbers)));
        Self { parts }
    }

    /// Every name with its numbers, in ascending order of the numbers. The caller bounds [`NamePattern::count`] first.
    pub fn names(&self) -> Vec<(String, Vec<u32>)> {
        let mut names = vec![(String::new(), Vec::new())];
        for (place, part) in self.parts.iter().enumerate() {
            if place > 0 {
                names.iter_mut().for_each(|(name, _)| name.push('.'));
            }
            match part {
                PatternPart::Text(text) => names.iter_mut().for_each(|(name, _)| name.push_str(text)),
                PatternPart::Numbers(ranges) => {
                    names = names
                        .iter()
                        .flat_map(|(name, blocks)| {
                            numbers(ranges).map(move |number| {
                                (format!("{name}{number}"), [blocks.as_slice(), &[number]].concat())
                            })
                        })
                        .collect();
                }
            }
        }
        names
    }
}

fn numbers(ranges: &[RangeInclusive<u32>]) -> impl Iterator<Item = u32> {
    ranges.iter().cloned().flatten()
}

/// A name with `*` in place of each number, and the numbers. Only numbers as Rust writes them count, so that a name and
/// its numbers give each other: `01` stays as it is.
pub(crate) fn collapse(name: &str) -> (String, Vec<u32>) {
    let mut template = String::with_capacity(name.len());
    let mut blocks = Vec::new();
    collapse_into(name, &mut template, &mut blocks);
    (template, blocks)
}

/// The same into what is there already, which is cleared first: names come by the hundred thousand.
pub(super) fn collapse_into(name: &str, template: &mut String, blocks: &mut Vec<u32>) {
    template.clear();
    blocks.clear();
    for (place, part) in name.split('.').enumerate() {
        if place > 0 {
            template.push('.');
        }
        match number(part).filter(|_| blocks.len() < MAX_NUMBERS) {
            Some(number) => {
                blocks.push(number);
                template.push_str(HOLE);
            }
            None => {
                template.push_str(part);
                if is_stars(part) {
                    template.push('*');
                }
            }
        }
    }
}

/// A part that is a number as Rust writes it.
fn number(part: &str) -> Option<u32> {
    let plain = part.bytes().all(|byte| byte.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
    part.parse().ok().filter(|_| plain)
}

/// A part that is nothing but stars carries one more in a collapsed name, so that it is not taken for a number.
fn is_stars(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte == b'*')
}

/// The patterns that together stand for just `template` filled with each of `blocks`, which are sorted.
pub(super) fn factor(template: &str, blocks: &[Vec<u32>]) -> Vec<NamePattern> {
    let arity = blocks.first().map_or(0, Vec::len);
    let rows: Vec<&[u32]> = blocks.iter().map(Vec::as_slice).collect();
    factor_rows(&rows, arity)
        .into_iter()
        .map(|holes| {
            let mut holes = holes.into_iter();
            let parts = template
                .split('.')
                .map(|part| match (part == HOLE).then(|| holes.next()).flatten() {
                    Some(ranges) => PatternPart::Numbers(ranges),
                    None if is_stars(part) => PatternPart::Text(part[1..].to_owned()),
                    None => PatternPart::Text(part.to_owned()),
                })
                .collect();
            NamePattern { parts }
        })
        .collect()
}

/// Splits a sorted set of rows of numbers into full products of ranges.
fn factor_rows(rows: &[&[u32]], arity: usize) -> Vec<Vec<Vec<RangeInclusive<u32>>>> {
    if arity == 0 {
        return vec![Vec::new()];
    }
    // Which first numbers lead to the same remainder.
    let mut firsts_of: BTreeMap<Vec<&[u32]>, Vec<u32>> = BTreeMap::new();
    for run in rows.chunk_by(|a, b| a[0] == b[0]) {
        let rest = run.iter().map(|row| &row[1..]).collect();
        firsts_of.entry(rest).or_default().push(run[0][0]);
    }
    let mut products: Vec<Vec<Vec<RangeInclusive<u32>>>> = Vec::new();
    for (rest, firsts) in firsts_of {
        for tail in factor_rows(&rest, arity - 1) {
            products.push([vec![ranges(&firsts)], tail].concat());
        }
    }
    products.sort_by_key(|product| product.iter().map(|ranges| *ranges[0].start()).collect::<Vec<_>>());
    products
}

/// Ascending numbers as ranges.
fn ranges(numbers: &[u32]) -> Vec<RangeInclusive<u32>> {
    numbers.chunk_by(|a, b| a + 1 == *b).map(|run| run[0]..=run[run.len() - 1]).collect()
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, part) in self.parts.iter().enumerate() {
            if place > 0 {
                f.write_str(".")?;
            }
            match part {
                PatternPart::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}"))?,
                PatternPart::Numbers(ranges) => {
                    f.write_str("{")?;
                    for (place, range) in ranges.iter().enumerate() {
                        let comma = if place > 0 { "," } else { "" };
                        match (range.start(), range.end()) {
                            (start, end) if start == end => write!(f, "{comma}{start}")?,
                            (start, end) => write!(f, "{comma}{start}-{end}")?,
                        }
                    }
                    f.write_str("}")?;
                }
            }
        }
        Ok(())
    }
}

impl FromStr for NamePattern {
    type Err = NamePatternError;

    fn from_str(text: &str) -> Result<Self, NamePatternError> {
        let parts = text
            .split('.')
            .map(parse_part)
            .collect::<Result<_, _>>()
            .map_err(|reason| NamePatternError { text: text.to_owned(), reason })?;
        Ok(Self { parts })
    }
}

fn parse_part(part: &str) -> Result<PatternPart, &'static str> {
    let is_text = !part.starts_with('{') || part.starts_with("{{");
    if is_text {
        let plain = part.replace("{{", "").replace("}}", "");
        if plain.contains(['{', '}']) {
            return Err("a brace stands alone");
        }
        return Ok(PatternPart::Text(part.replace("{{", "{").replace("}}", "}")));
    }
    let inner = part[1..].strip_suffix('}').ok_or("a brace is not closed")?;
    let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
    for piece in inner.split(',') {
        let (start, end) = piece.split_once('-').unwrap_or((piece, piece));
        let number = |text: &str| text.parse::<u32>().map_err(|_| "what stands in braces are numbers");
        let (start, end) = (number(start)?, number(end)?);
        let after = ranges.last().is_none_or(|last| *last.end() < start);
        if start > end || !after {
            return Err("the numbers in braces do not ascend");
        }
        ranges.push(start..=end);
    }
    Ok(PatternPart::Numbers(ranges))
}

impl TryFrom<String> for NamePattern {
    type Error = NamePatternError;

    fn try_from(text: String) -> Result<Self, NamePatternError> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn patterns(names: &[&str]) -> Vec<String> {
        let mut by_template: BTreeMap<String, Vec<Vec<u32>>> = BTreeMap::new();
        for name in names {
            let (template, blocks) = collapse(name);
            by_template.entry(template).or_default().push(blocks);
        }
        by_template
            .into_iter()
            .flat_map(|(template, mut blocks)| {
                blocks.sort();
                factor(&template, &blocks)
            })
            .map(|pattern| pattern.to_string())
            .collect()
    }

    proptest! {
        #[test]
        fn names_within_a_range_are_those_whose_number_lies_in_it(
            layers in prop::collection::btree_set(0u32..20, 1..8), experts in prop::collection::btree_set(0u32..9, 1..5),
            start in 0u64..22, len in 0u64..22, number in 0usize..3, ranks in prop::collection::btree_set(0u32..6, 1..4),
        ) {
            let blocks: Vec<Vec<u32>> =
                layers.iter().flat_map(|layer| experts.iter().map(|expert| vec![*layer, *expert])).collect();
            let pattern = factor("l.*.e.*.w", &blocks).remove(0);
            let range = start..start + len;
            let expected: Vec<String> = pattern
                .names()
                .into_iter()
                .filter(|(_, blocks)| blocks.get(number).is_some_and(|at| range.contains(&u64::from(*at))))
                .map(|(name, _)| name)
                .collect();
            let within = pattern.within(number, range);
            let found: Vec<String> = within.iter().flat_map(NamePattern::names).map(|(name, _)| name).collect();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(within.is_none(), expected.is_empty());
            let ranks: Vec<u32> = ranks.into_iter().collect();
            let numbered = pattern.numbered("rank", &ranks);
            prop_assert_eq!(numbered.numbers(), 3);
            let all: BTreeSet<String> = numbered.names().into_iter().map(|(name, _)| name).collect();
            let expected: BTreeSet<String> = pattern
                .names()
                .iter()
                .flat_map(|(name, _)| ranks.iter().map(move |rank| format!("{name}.rank.{rank}")))
                .collect();
            prop_assert_eq!(all, expected);
        }
    }

    #[test]
    fn repeated_blocks_collapse_and_gaps_show() {
        assert_eq!(patterns(&["a.0.w", "a.1.w", "a.3.w"]), ["a.{0-1,3}.w"]);
        assert_eq!(
            patterns(&["a.0.e.0", "a.0.e.1", "a.1.e.0", "a.1.e.1", "a.2.e.0"]),
            ["a.{0-1}.e.{0-1}", "a.{2}.e.{0}"]
        );
        assert_eq!(patterns(&["a.01.w", "b.{x}"]), ["a.01.w", "b.{{x}}"]);
    }

    #[test]
    fn a_text_that_is_no_pattern_is_refused() {
        for text in ["a.{0", "a.{x}", "a.{3-1}", "a.{1,1}", "a.{}", "a.b}", "a.{4294967296}"] {
            assert!(text.parse::<NamePattern>().is_err(), "{text}");
        }
        let huge: NamePattern = "{0-4000000000}.{0-4000000000}.{0-9}".parse().unwrap();
        assert_eq!(huge.parts().len(), 3);
    }

    proptest! {
        #[test]
        fn patterns_stand_for_just_the_names_they_were_made_of(
            names in prop::collection::btree_set("[ab{}*]{1,2}(\\.([0-4]|01)){0,3}(\\.[ab])?", 1..40),
        ) {
            let list: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut back = Vec::new();
            for text in patterns(&list) {
                let pattern: NamePattern = text.parse().unwrap();
                let expanded = pattern.names();
                prop_assert_eq!(expanded.len() as u64, pattern.count());
                for (name, blocks) in expanded {
                    prop_assert_eq!(collapse(&name).1, blocks);
                    back.push(name);
                }
            }
            prop_assert_eq!(back.len(), names.len());
            prop_assert_eq!(back.into_iter().collect::<BTreeSet<_>>(), names);
        }
    }
}
