//! Which bytes were written: a set of half-open runs.

use std::collections::BTreeMap;

/// Runs that neither overlap nor touch, by their start.
#[derive(Debug, Default)]
pub(crate) struct Intervals {
    ends: BTreeMap<u64, u64>,
}

impl Intervals {
    /// Adds the run from `start` to `end` and says how much of it was there before.
    pub(crate) fn add(&mut self, start: u64, end: u64) -> u64 {
        let (mut from, mut to, mut before) = (start, end, 0);
        while let Some((&other, &other_end)) = self.ends.range(..=to).next_back() {
            if other_end < from {
                break;
            }
            before += other_end.min(end).saturating_sub(other.max(start));
            (from, to) = (from.min(other), to.max(other_end));
            self.ends.remove(&other);
        }
        self.ends.insert(from, to);
        before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_those_of_a_plain_array() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let (mut plain, mut intervals) = ([false; 64], Intervals::default());
            for _ in 0..12 {
                let start = random(60);
                let end = start + 1 + random(64 - start);
                let run = &mut plain[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()];
                let before = run.iter().filter(|written| **written).count() as u64;
                run.fill(true);
                assert_eq!(intervals.add(start, end), before);
            }
        }
    }
}
