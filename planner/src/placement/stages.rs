//! Which of the chosen sets each group gets, so that pipeline neighbours are next to each other.

use super::groups::BetweenScore;

/// Orders of sets as they are looked for.
pub(super) struct Stages<'a> {
    /// Whether the group at each place is the stage after the one before it.
    pub(super) follows: &'a [bool],
    /// Whether the groups of two places may swap their sets.
    pub(super) alike: &'a dyn Fn(usize, usize) -> bool,
    /// How wide the way from set to set is.
    pub(super) width: &'a dyn Fn(usize, usize) -> u64,
    /// No way is wider.
    pub(super) widest: u64,
}

impl Stages<'_> {
    /// For each place of a group the set that it gets: the narrowest way between neighbours is as wide as can be, then all
    /// ways together; the first in order among equals. Of more orders than `most` the best of those tried, the nearest first.
    pub(super) fn order(&self, most: usize) -> (BetweenScore, Vec<usize>) {
        let mut search = Search { stages: self, most, order: Vec::new(), best: None, tried: 0 };
        if self.follows.contains(&true) {
            search.next((u64::MAX, 0));
        }
        search.best.unwrap_or_else(|| ((u64::MAX, 0), (0..self.follows.len()).collect()))
    }
}

struct Search<'a> {
    stages: &'a Stages<'a>,
    most: usize,
    order: Vec<usize>,
    best: Option<(BetweenScore, Vec<usize>)>,
    tried: usize,
}

impl Search<'_> {
    fn is_done(&self) -> bool {
        let perfect = |best: &(BetweenScore, Vec<usize>)| best.0.0 >= self.stages.widest;
        self.best.as_ref().is_some_and(|best| perfect(best) || self.tried >= self.most)
    }

    fn next(&mut self, score: BetweenScore) {
        self.tried += 1;
        let place = self.order.len();
        let Stages { follows, alike, width, .. } = self.stages;
        if place == follows.len() {
            if self.best.as_ref().is_none_or(|(best, _)| score > *best) {
                self.best = Some((score, self.order.clone()));
            }
            return;
        }
        let before = self.order.last().copied().filter(|_| follows[place]);
        let free = (0..follows.len()).filter(|set| !self.order.contains(set) && alike(place, *set));
        let mut sets: Vec<(u64, usize)> =
            free.map(|set| (before.map_or(u64::MAX, |before| width(before, set)), set)).collect();
        sets.sort_by_key(|&(width, set)| (std::cmp::Reverse(width), set));
        for (width, set) in sets {
            if self.is_done() {
                return;
            }
            let narrowest = score.0.min(width);
            if self.best.as_ref().is_some_and(|((best, _), _)| narrowest < *best) {
                continue;
            }
            let all = score.1 + before.map_or(0, |_| u128::from(width));
            self.order.push(set);
            self.next((narrowest, all));
            self.order.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(follows: &[bool], alike: &dyn Fn(usize, usize) -> bool, most: usize) -> Vec<usize> {
        // Sets 0 and 2, and 1 and 3, and so on, are near to each other.
        let width = |a: usize, b: usize| if a.abs_diff(b) == 2 { 9 } else { 1 };
        Stages { follows, alike, width: &width, widest: 9 }.order(most).1
    }

    #[test]
    fn neighbours_are_next_to_each_other() {
        assert_eq!(order(&[false, true, false, true], &|_, _| true, 1000), [0, 2, 1, 3]);
        assert_eq!(order(&[false, true, true, true], &|_, _| true, 1000), [0, 2, 1, 3]);
        assert_eq!(order(&[false, false], &|_, _| true, 1000), [0, 1]);
        // A set that only one group fits stays with it.
        assert_eq!(order(&[false, true, false, true], &|a, b| a == b, 1000), [0, 1, 2, 3]);
        // However few orders are tried, there is one.
        let mut all = order(&[[false].as_slice(), &[true; 63]].concat(), &|_, _| true, 1);
        all.sort_unstable();
        assert_eq!(all, (0..64).collect::<Vec<_>>());
    }
}
