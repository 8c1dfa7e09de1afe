//! Choosing sets of GPUs of one node for tensor-parallel groups.

use std::{cmp::Reverse, collections::HashMap};

/// Most partial choices that are tried before the best so far is taken; enough to be exact for the machines in use.
const MOST_TRIED: usize = 100_000;

/// Most sets whose rings are looked at, for the same reason.
const MOST_SCORED: usize = 5_000;

/// How good a set is: bytes per second of its rings, then how near its GPUs are to each other.
pub(super) type SetScore = (u64, Reverse<u64>);

/// What is asked of a node.
pub(super) struct Request<'a> {
    /// Bytes of memory of each GPU.
    pub(super) memory: &'a [u64],
    /// For each group the bytes that each of its ranks needs.
    pub(super) needs: &'a [Vec<u64>],
    /// For each GPU the others, the nearest first.
    pub(super) nearest: &'a [Vec<usize>],
    /// No set is faster.
    pub(super) bound: u64,
}

/// A choice: for each group of the request its GPUs, ascending; and what the slowest group has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) groups: Vec<Vec<usize>>,
    pub(super) slowest: u64,
}

/// The best choice of disjoint sets that have the memory, and the runner-up: such that the slowest set is as fast as can be,
/// then all sets together, then that they are near to each other; the first in order among equals.
pub(super) fn best(
    request: &Request<'_>,
    score: impl Fn(&[usize]) -> SetScore,
) -> (Option<Choice>, Option<Choice>) {
    // Those that need most choose first. The order of groups that need the same says nothing.
    let mut order: Vec<usize> = (0..request.needs.len()).collect();
    order.sort_by_key(|&group| Reverse(descending(&request.needs[group])));
    let mut search = Search {
        request,
        score: &score,
        known: HashMap::new(),
        order,
        free: vec![true; request.memory.len()],
        chosen: Vec::new(),
        found: Vec::new(),
        tried: 0,
    };
    search.next_group();
    let order = search.order;
    let choice = |(score, sets): (Score, Vec<Vec<usize>>)| {
        let mut groups = vec![Vec::new(); order.len()];
        for (&group, set) in order.iter().zip(sets) {
            groups[group] = set;
        }
        Choice { groups, slowest: score.0 }
    };
    let mut found = search.found.into_iter();
    (found.next().map(choice), found.next().map(choice))
}

fn descending(needs: &[u64]) -> Vec<u64> {
    let mut sorted = needs.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted
}

/// The slowest set, all sets together, and how far apart their GPUs are.
type Score = (u64, u128, Reverse<u128>);

struct Search<'a, F> {
    request: &'a Request<'a>,
    score: &'a F,
    known: HashMap<Vec<usize>, SetScore>,
    /// The groups in the order in which they choose.
    order: Vec<usize>,
    free: Vec<bool>,
    chosen: Vec<(SetScore, Vec<usize>)>,
    /// The best choice and the runner-up.
    found: Vec<(Score, Vec<Vec<usize>>)>,
    tried: usize,
}

impl<F: Fn(&[usize]) -> SetScore> Search<'_, F> {
    fn score_of_choice(&self) -> Score {
        let bandwidths = || self.chosen.iter().map(|((bandwidth, _), _)| *bandwidth);
        let latency = self.chosen.iter().map(|((_, Reverse(latency)), _)| u128::from(*latency)).sum();
        (bandwidths().min().unwrap_or(u64::MAX), bandwidths().map(u128::from).sum(), Reverse(latency))
    }

    /// Whether the search has gone on long enough, or nothing faster is left to find.
    fn is_done(&self) -> bool {
        let perfect =
            |at: usize| self.found.get(at).is_some_and(|((slowest, ..), _)| *slowest >= self.request.bound);
        let enough = self.tried >= MOST_TRIED || self.known.len() >= MOST_SCORED;
        perfect(1) || (enough && !self.found.is_empty())
    }

    fn needs(&self, at: usize) -> Option<&[u64]> {
        self.order.get(at).map(|&group| self.request.needs[group].as_slice())
    }

    fn next_group(&mut self) {
        let at = self.chosen.len();
        let Some(needs) = self.needs(at) else {
            let sets: Vec<Vec<usize>> = self.chosen.iter().map(|(_, set)| set.clone()).collect();
            let score = self.score_of_choice();
            let rank = self.found.iter().position(|(other, _)| score > *other).unwrap_or(self.found.len());
            self.found.insert(rank, (score, sets));
            self.found.truncate(2);
            return;
        };
        let size = needs.len();
        // Of groups that need the same, each begins beyond the one before it, so that no choice is tried twice.
        let alike = at > 0 && self.needs(at - 1).map(descending) == Some(descending(needs));
        let after = if alike { self.chosen[at - 1].1[0] + 1 } else { 0 };
        for first in after..self.free.len() {
            if self.free[first] {
                self.free[first] = false;
                self.grow(vec![first], size);
                self.free[first] = true;
            }
            if self.is_done() {
                return;
            }
        }
    }

    /// Adds GPUs beyond the first to `set` until it has `size`, the nearest to its first before others.
    fn grow(&mut self, set: Vec<usize>, size: usize) {
        self.tried += 1;
        if self.is_done() {
            return;
        }
        if set.len() == size {
            self.choose(set);
            return;
        }
        let nearest = &self.request.nearest[set[0]];
        // In the order of nearness, so that no set is tried twice.
        let last = set.last().and_then(|last| nearest.iter().position(|gpu| gpu == last));
        for &next in &nearest[last.map_or(0, |last| last + 1)..] {
            if !self.free[next] || next < set[0] {
                continue;
            }
            self.free[next] = false;
            self.grow([set.as_slice(), &[next]].concat(), size);
            self.free[next] = true;
            if self.is_done() {
                return;
            }
        }
    }

    fn choose(&mut self, mut set: Vec<usize>) {
        set.sort_unstable();
        let memory: Vec<u64> = set.iter().map(|&gpu| self.request.memory[gpu]).collect();
        let Some(needs) = self.needs(self.chosen.len()) else { return };
        let fits = descending(needs).iter().zip(descending(&memory)).all(|(needs, has)| *needs <= has);
        if !fits {
            return;
        }
        let score = match self.known.get(&set) {
            Some(score) => *score,
            None => {
                let score = (self.score)(&set);
                self.known.insert(set.clone(), score);
                score
            }
        };
        let hopeless = self.found.get(1).is_some_and(|((slowest, ..), _)| score.0 < *slowest);
        if hopeless {
            return;
        }
        self.chosen.push((score, set));
        self.next_group();
        self.chosen.pop();
    }
}
