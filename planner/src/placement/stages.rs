//! Which of the chosen sets each group gets, so that pipeline neighbours are next to each other.

/// Most sets of a node for which every order is tried; of more, each stage takes the nearest of those that are left.
const MOST_FOR_ALL_ORDERS: usize = 7;

/// The order of sets: for each place of a group the set that it gets. `follows[place]` says whether the group there is the
/// stage after the one before it, `alike(a, b)` whether the groups of two places may swap their sets, and `width(a, b)` how
/// wide the way from set to set is.
///
/// The narrowest way between neighbours is as wide as can be, then all ways together; the first in order among equals.
pub(super) fn order(
    follows: &[bool],
    alike: impl Fn(usize, usize) -> bool,
    width: impl Fn(usize, usize) -> u64,
) -> Vec<usize> {
    let mut search = Search {
        follows,
        alike: &alike,
        width: &width,
        greedy: follows.len() > MOST_FOR_ALL_ORDERS,
        order: Vec::new(),
        best: None,
    };
    search.next((u64::MAX, 0));
    search.best.map_or_else(|| (0..follows.len()).collect(), |(_, order)| order)
}

type Score = (u64, u128);

struct Search<'a, A, W> {
    follows: &'a [bool],
    alike: &'a A,
    width: &'a W,
    /// Whether only the nearest set is tried at each place.
    greedy: bool,
    order: Vec<usize>,
    best: Option<(Score, Vec<usize>)>,
}

impl<A: Fn(usize, usize) -> bool, W: Fn(usize, usize) -> u64> Search<'_, A, W> {
    fn next(&mut self, score: Score) {
        let place = self.order.len();
        if place == self.follows.len() {
            if self.best.as_ref().is_none_or(|(best, _)| score > *best) {
                self.best = Some((score, self.order.clone()));
            }
            return;
        }
        let before = self.order.last().copied().filter(|_| self.follows[place]);
        let free =
            (0..self.follows.len()).filter(|set| !self.order.contains(set) && (self.alike)(place, *set));
        let mut sets: Vec<(u64, usize)> =
            free.map(|set| (before.map_or(u64::MAX, |before| (self.width)(before, set)), set)).collect();
        sets.sort_by_key(|&(width, set)| (std::cmp::Reverse(width), set));
        if self.greedy {
            sets.truncate(1);
        }
        for (width, set) in sets {
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

    #[test]
    fn neighbours_are_next_to_each_other() {
        // Sets 0 and 2, and 1 and 3, are near to each other.
        let width = |a: usize, b: usize| if a.abs_diff(b) == 2 { 9 } else { 1 };
        assert_eq!(order(&[false, true, false, true], |_, _| true, width), [0, 2, 1, 3]);
        assert_eq!(order(&[false, true, true, true], |_, _| true, width), [0, 2, 1, 3]);
        assert_eq!(order(&[false, false], |_, _| true, width), [0, 1]);
        // A set that only one group fits stays with it.
        assert_eq!(order(&[false, true, false, true], |a, b| a == b, width), [0, 1, 2, 3]);
    }
}
