//! Sets of things that links join.

use petgraph::unionfind::UnionFind;
use std::collections::BTreeMap;

/// The sets of two and more of `things` things that `links` join, over others too; both the sets and their members ascend.
pub fn joined(things: usize, links: impl IntoIterator<Item = (usize, usize)>) -> Vec<Vec<usize>> {
    let mut union: UnionFind<usize> = UnionFind::new(things);
    for (from, to) in links {
        union.union(from, to);
    }
    let mut sets: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for thing in 0..things {
        sets.entry(union.find(thing)).or_default().push(thing);
    }
    let mut sets: Vec<Vec<usize>> = sets.into_values().filter(|set| set.len() > 1).collect();
    sets.sort();
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_over_others_is_one_set() {
        assert_eq!(joined(7, [(5, 3), (0, 6), (3, 1)]), [vec![0, 6], vec![1, 3, 5]]);
        assert_eq!(joined(3, []), Vec::<Vec<usize>>::new());
    }
}
