//! Choosing groups of GPUs of one node.

/// Most partial choices that are tried before the best so far is taken; enough to be exact for the machines in use.
const MOST_TRIED: usize = 200_000;

/// `count` disjoint groups of `size` of the GPUs `0..gpus`: such that the narrowest path inside any group is as wide as can
/// be, then that the narrowest paths of all groups together are; the first in order among equals. `width` gives the bandwidth
/// between two GPUs.
pub(super) fn best(
    gpus: usize,
    size: usize,
    count: usize,
    width: impl Fn(usize, usize) -> u64,
) -> Vec<Vec<usize>> {
    if size == 1 {
        return (0..count).map(|gpu| vec![gpu]).collect();
    }
    let mut search = Search {
        width: &width,
        size,
        count,
        free: vec![true; gpus],
        chosen: Vec::new(),
        widest: widest(gpus, &width),
        best: None,
        tried: 0,
    };
    search.next_group();
    search.best.map_or_else(Vec::new, |(_, groups)| groups)
}

/// The narrowest path of the worst group, and the sum over all groups.
type Score = (u64, u128);

struct Search<'a, F> {
    width: &'a F,
    size: usize,
    count: usize,
    free: Vec<bool>,
    chosen: Vec<(u64, Vec<usize>)>,
    /// The widest path there is: no group can be better.
    widest: u64,
    best: Option<(Score, Vec<Vec<usize>>)>,
    tried: usize,
}

impl<F: Fn(usize, usize) -> u64> Search<'_, F> {
    fn score(&self) -> Score {
        let worst = self.chosen.iter().map(|(narrowest, _)| *narrowest).min().unwrap_or(u64::MAX);
        (worst, self.chosen.iter().map(|(narrowest, _)| u128::from(*narrowest)).sum())
    }

    /// Whether nothing better is left to find, or the search has gone on long enough.
    fn is_done(&self) -> bool {
        let perfect = (self.widest, u128::from(self.widest) * self.count as u128);
        let found = self.best.as_ref().map(|(score, _)| *score);
        found == Some(perfect) || (self.tried >= MOST_TRIED && found.is_some())
    }

    /// Chooses the next group: its first GPU is beyond those of the groups before it, so that no set is tried twice.
    fn next_group(&mut self) {
        if self.chosen.len() == self.count {
            let score = self.score();
            if self.best.as_ref().is_none_or(|(best, _)| score > *best) {
                self.best = Some((score, self.chosen.iter().map(|(_, group)| group.clone()).collect()));
            }
            return;
        }
        let after = self.chosen.last().map_or(0, |(_, group)| group[0] + 1);
        for first in after..self.free.len() {
            if self.free[first] {
                self.free[first] = false;
                self.grow(vec![first], u64::MAX);
                self.free[first] = true;
            }
            if self.is_done() {
                return;
            }
        }
    }

    /// Adds GPUs to `group` in ascending order until it is whole. `narrowest` is its narrowest path so far.
    fn grow(&mut self, group: Vec<usize>, narrowest: u64) {
        self.tried += 1;
        let hopeless = self.best.as_ref().is_some_and(|((worst, _), _)| narrowest < *worst);
        if self.is_done() || hopeless {
            return;
        }
        if group.len() == self.size {
            self.chosen.push((narrowest, group));
            self.next_group();
            self.chosen.pop();
            return;
        }
        for next in group[group.len() - 1] + 1..self.free.len() {
            if !self.free[next] {
                continue;
            }
            let narrowest = group.iter().map(|&member| (self.width)(member, next)).fold(narrowest, u64::min);
            self.free[next] = false;
            self.grow([group.as_slice(), &[next]].concat(), narrowest);
            self.free[next] = true;
            if self.is_done() {
                return;
            }
        }
    }
}

fn widest(gpus: usize, width: &impl Fn(usize, usize) -> u64) -> u64 {
    let pairs = (0..gpus).flat_map(|a| (a + 1..gpus).map(move |b| (a, b)));
    pairs.map(|(a, b)| width(a, b)).max().unwrap_or(0)
}
