//! Choosing sets of GPUs of one node for tensor-parallel groups.

use std::{cmp::Reverse, collections::HashMap};

/// Most partial choices that are tried before the best so far is taken; enough to be exact for eight GPUs, and for pairs and
/// fours of sixteen.
const MOST_TRIED: usize = 100_000;

/// Most pairs of GPUs in the sets whose rings are looked at, for the same reason: a ring of more GPUs takes longer to find.
const MOST_SCORED: usize = 30_000;

/// How good a set is: bytes per second of its rings, then how near its GPUs are to each other.
pub(super) type SetScore = (u64, Reverse<u64>);

/// How good the ways between pipeline neighbours are: the narrowest, and all together.
pub(super) type BetweenScore = (u64, u128);

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
    /// How good a set is.
    pub(super) score: &'a dyn Fn(&[usize]) -> SetScore,
    /// The ways between neighbours, for the sets of all groups.
    pub(super) between: &'a dyn Fn(&[Vec<usize>]) -> BetweenScore,
    /// No way between neighbours is wider.
    pub(super) widest: u64,
}

/// A choice: for each group of the request its GPUs, ascending; and what the slowest group has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) groups: Vec<Vec<usize>>,
    pub(super) slowest: u64,
}

/// The best choice of disjoint sets that have the memory, and the runner-up: such that the slowest set is as fast as can be,
/// then all sets together, then that pipeline neighbours reach each other well, then that the GPUs of a set are near to each
/// other; the first in order among equals.
///
/// Machines for which all choices are too many get the best that was found, improved by exchanging single GPUs.
pub(super) fn best(request: &Request<'_>) -> (Option<Choice>, Option<Choice>) {
    // Those that need most choose first. The order of groups that need the same says nothing.
    let mut order: Vec<usize> = (0..request.needs.len()).collect();
    order.sort_by_key(|&group| Reverse(descending(&request.needs[group])));
    let mut search = Search {
        request,
        known: HashMap::new(),
        order,
        free: vec![true; request.memory.len()],
        chosen: Vec::new(),
        found: Vec::new(),
        tried: 0,
        scored: 0,
    };
    search.next_group();
    if search.found.is_empty() {
        search.take_the_largest();
    }
    if search.is_exhausted() {
        search.improve();
    }
    let mut found = search.found.into_iter();
    let mut next = || found.next().map(|(score, groups)| Choice { groups, slowest: score.0 });
    (next(), next())
}

fn descending(values: &[u64]) -> Vec<u64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    sorted
}

/// The slowest set, all sets together, the ways between neighbours, and how far apart the GPUs of sets are.
type Score = (u64, u128, BetweenScore, Reverse<u128>);

struct Search<'a> {
    request: &'a Request<'a>,
    known: HashMap<Vec<usize>, SetScore>,
    /// The groups in the order in which they choose.
    order: Vec<usize>,
    free: Vec<bool>,
    /// The sets so far, in that order.
    chosen: Vec<(u64, Vec<usize>)>,
    /// The best choice and the runner-up, the sets in the order of the groups.
    found: Vec<(Score, Vec<Vec<usize>>)>,
    tried: usize,
    scored: usize,
}

impl Search<'_> {
    fn is_exhausted(&self) -> bool {
        self.tried >= MOST_TRIED || self.scored >= MOST_SCORED
    }

    /// Whether the search has gone on long enough, or nothing better is left to find.
    fn is_done(&self) -> bool {
        let perfect = self.found.get(1).is_some_and(|((slowest, _, (narrowest, _), _), _)| {
            *slowest >= self.request.bound && *narrowest >= self.request.widest
        });
        perfect || self.is_exhausted()
    }

    fn needs(&self, at: usize) -> Option<&[u64]> {
        self.order.get(at).map(|&group| self.request.needs[group].as_slice())
    }

    fn next_group(&mut self) {
        let at = self.chosen.len();
        let Some(needs) = self.needs(at) else {
            let mut sets = vec![Vec::new(); self.order.len()];
            for (&group, (_, set)) in self.order.iter().zip(&self.chosen) {
                sets[group].clone_from(set);
            }
            return self.keep(sets);
        };
        let (size, least) = (needs.len(), needs.iter().min().copied().unwrap_or(0));
        // Of groups that need the same, each begins beyond the one before it, so that no choice is tried twice.
        let alike = |other: usize| self.needs(other).map(descending) == Some(descending(needs));
        let after = if at > 0 && alike(at - 1) { self.chosen[at - 1].1[0] + 1 } else { 0 };
        let more = (at..self.order.len()).take_while(|&other| alike(other)).count();
        let usable = |gpu: &usize| self.free[*gpu] && self.request.memory[*gpu] >= least;
        let firsts: Vec<usize> = (after..self.free.len()).filter(usable).collect();
        for (passed, &first) in firsts.iter().enumerate() {
            // All of this group and of those like it are this GPU or beyond it.
            if firsts.len() - passed < size * more || self.is_done() {
                return;
            }
            self.free[first] = false;
            self.grow(&[first], size, least);
            self.free[first] = true;
        }
    }

    /// Adds GPUs beyond the first to `set` until it has `size`, the nearest to its first before others.
    fn grow(&mut self, set: &[usize], size: usize, least: u64) {
        self.tried += 1;
        if set.len() == size {
            return self.choose(set.to_vec());
        }
        let nearest = &self.request.nearest[set[0]];
        // In the order of nearness, so that no set is tried twice.
        let last = set.last().and_then(|last| nearest.iter().position(|gpu| gpu == last));
        let rest = &nearest[last.map_or(0, |last| last + 1)..];
        let usable = |next: usize| self.free[next] && next > set[0] && self.request.memory[next] >= least;
        let candidates: Vec<usize> = rest.iter().copied().filter(|&next| usable(next)).collect();
        for (passed, &next) in candidates.iter().enumerate() {
            if candidates.len() - passed < size - set.len() || self.is_done() {
                return;
            }
            self.free[next] = false;
            self.grow(&[set, &[next]].concat(), size, least);
            self.free[next] = true;
        }
    }

    fn choose(&mut self, mut set: Vec<usize>) {
        set.sort_unstable();
        let fits = self.needs(self.chosen.len()).is_some_and(|needs| self.fits(needs, &set));
        if !fits {
            return;
        }
        let (bandwidth, _) = self.score_of(&set);
        let hopeless = self.found.get(1).is_some_and(|((slowest, ..), _)| bandwidth < *slowest);
        if !hopeless {
            self.chosen.push((bandwidth, set));
            self.next_group();
            self.chosen.pop();
        }
    }

    /// Whether the GPUs have what the ranks need, each in the place that suits it.
    fn fits(&self, needs: &[u64], set: &[usize]) -> bool {
        let memory: Vec<u64> = set.iter().map(|&gpu| self.request.memory[gpu]).collect();
        descending(needs).iter().zip(descending(&memory)).all(|(needs, has)| *needs <= has)
    }

    fn score_of(&mut self, set: &[usize]) -> SetScore {
        if let Some(known) = self.known.get(set) {
            return *known;
        }
        self.scored += set.len() * set.len();
        let score = (self.request.score)(set);
        self.known.insert(set.to_vec(), score);
        score
    }

    fn score_of_all(&mut self, sets: &[Vec<usize>]) -> Score {
        let scores: Vec<SetScore> = sets.iter().map(|set| self.score_of(set)).collect();
        let slowest = scores.iter().map(|(bandwidth, _)| *bandwidth).min().unwrap_or(u64::MAX);
        let all = scores.iter().map(|(bandwidth, _)| u128::from(*bandwidth)).sum();
        let apart = scores.iter().map(|(_, Reverse(latency))| u128::from(*latency)).sum();
        // What is slower than the runner-up is not looked at any further.
        let hopeless = self.found.get(1).is_some_and(|(score, _)| (slowest, all) < (score.0, score.1));
        let between = if hopeless { (0, 0) } else { (self.request.between)(sets) };
        (slowest, all, between, Reverse(apart))
    }

    /// Keeps the sets if they are the best so far, or the next best.
    fn keep(&mut self, sets: Vec<Vec<usize>>) {
        let score = self.score_of_all(&sets);
        // The same sets for other groups are no other choice.
        let sorted = |sets: &[Vec<usize>]| {
            let mut sorted = sets.to_vec();
            sorted.sort();
            sorted
        };
        if let Some(same) = self.found.iter().position(|(_, other)| sorted(other) == sorted(&sets)) {
            if score <= self.found[same].0 {
                return;
            }
            self.found.remove(same);
        }
        let rank = self.found.iter().position(|(other, _)| score > *other).unwrap_or(self.found.len());
        self.found.insert(rank, (score, sets));
        self.found.truncate(2);
    }

    /// Who needs most gets the largest GPUs: it fits if anything does.
    fn take_the_largest(&mut self) {
        let mut ranks: Vec<(u64, usize)> = Vec::new();
        for (group, needs) in self.request.needs.iter().enumerate() {
            ranks.extend(needs.iter().map(|&need| (need, group)));
        }
        ranks.sort_by_key(|&(need, group)| (Reverse(need), group));
        let mut gpus: Vec<usize> = (0..self.free.len()).collect();
        gpus.sort_by_key(|&gpu| (Reverse(self.request.memory[gpu]), gpu));
        let mut sets = vec![Vec::new(); self.request.needs.len()];
        for (&(_, group), &gpu) in ranks.iter().zip(&gpus) {
            sets[group].push(gpu);
        }
        for set in &mut sets {
            set.sort_unstable();
        }
        if sets
            .iter()
            .zip(self.request.needs)
            .all(|(set, needs)| set.len() == needs.len() && self.fits(needs, set))
        {
            self.keep(sets);
        }
    }

    /// Exchanges a GPU of the slowest set for one of another set, or for a free one, as long as that is better.
    fn improve(&mut self) {
        const MOST_ROUNDS: usize = 64;
        for _ in 0..MOST_ROUNDS {
            let Some((best, sets)) = self.found.first().cloned() else { return };
            let slowest = (0..sets.len()).min_by_key(|&set| self.score_of(&sets[set]).0);
            let Some(slowest) = slowest.filter(|_| self.scored < 2 * MOST_SCORED) else { return };
            let used: Vec<usize> = sets.concat();
            let idle = (0..self.free.len()).filter(|gpu| !used.contains(gpu)).map(|gpu| (None, gpu));
            let others = (0..sets.len()).filter(|&set| set != slowest);
            let others = others.flat_map(|set| sets[set].iter().map(move |&gpu| (Some(set), gpu)));
            let partners: Vec<(Option<usize>, usize)> = idle.chain(others).collect();
            let swaps = sets[slowest].iter().flat_map(|&gpu| partners.iter().map(move |&other| (gpu, other)));
            let better = swaps.collect::<Vec<_>>().into_iter().find(|&(gpu, (of, other))| {
                let mut swapped = sets.clone();
                let exchange = |set: &mut Vec<usize>, from: usize, to: usize| {
                    set.retain(|&gpu| gpu != from);
                    set.push(to);
                    set.sort_unstable();
                };
                exchange(&mut swapped[slowest], gpu, other);
                if let Some(of) = of {
                    exchange(&mut swapped[of], other, gpu);
                }
                let fits = swapped.iter().zip(self.request.needs).all(|(set, needs)| self.fits(needs, set));
                if fits && self.scored < 2 * MOST_SCORED {
                    self.keep(swapped);
                }
                self.found.first().is_some_and(|(score, _)| *score > best)
            });
            if better.is_none() {
                return;
            }
        }
    }
}
