//! Cutting the layers into pipeline stages of about the same number of bytes.

use crate::plan::LayerRange;

/// Cuts layers of `layer_bytes` bytes into `stages` runs, of which the first also holds `first_bytes` and the last
/// `last_bytes`. The largest stage is as small as it can be; among such cuts, each stage in turn takes what comes closest
/// to an even share of what is left. A model without layers is one stage. `None` when there are fewer layers than stages.
pub(super) fn balance(
    layer_bytes: &[u64],
    first_bytes: u64,
    last_bytes: u64,
    stages: u32,
) -> Option<Vec<LayerRange>> {
    let (count, stages) = (layer_bytes.len(), stages as usize);
    if count == 0 && stages == 1 {
        return Some(vec![LayerRange { start: 0, stop: 0 }]);
    }
    if stages == 0 || count < stages {
        return None;
    }
    // What belongs to the ends counts as part of the end layers: it can go nowhere else.
    let mut bytes: Vec<u128> = layer_bytes.iter().map(|&bytes| u128::from(bytes)).collect();
    bytes[0] += u128::from(first_bytes);
    bytes[count - 1] += u128::from(last_bytes);

    let limit = smallest_limit(&bytes, stages);
    // The fewest stages that layers `n..` need under the limit.
    let mut needed = vec![0usize; count + 1];
    let (mut end, mut sum) = (count, 0u128);
    for start in (0..count).rev() {
        sum += bytes[start];
        while sum > limit {
            end -= 1;
            sum -= bytes[end];
        }
        needed[start] = needed[end] + 1;
    }

    let mut cuts = Vec::with_capacity(stages);
    let (mut start, mut left) = (0, bytes.iter().sum::<u128>());
    for stage in 0..stages {
        let after = stages - stage - 1;
        let share = left / (after as u128 + 1);
        let (mut stop, mut sum) = (start + 1, bytes[start]);
        while stop < count - after && (needed[stop] > after || sum + bytes[stop] / 2 < share || after == 0) {
            if sum + bytes[stop] > limit {
                break;
            }
            sum += bytes[stop];
            stop += 1;
        }
        cuts.push(LayerRange { start: start as u64, stop: stop as u64 });
        (start, left) = (stop, left - sum);
    }
    Some(cuts)
}

/// The smallest size that the largest of `stages` runs can have.
fn smallest_limit(bytes: &[u128], stages: usize) -> u128 {
    let runs_under = |limit: u128| {
        let (mut runs, mut sum) = (1usize, 0u128);
        for &layer in bytes {
            if sum + layer > limit {
                runs += 1;
                sum = 0;
            }
            sum += layer;
        }
        runs
    };
    let mut low = bytes.iter().copied().max().unwrap_or(0);
    let mut high = bytes.iter().sum::<u128>();
    while low < high {
        let middle = low + (high - low) / 2;
        if runs_under(middle) <= stages {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(layers: &[u64], first: u64, last: u64, stages: u32) -> Vec<u64> {
        let cuts = balance(layers, first, last, stages).unwrap();
        cuts.iter().map(|cut| cut.stop - cut.start).collect()
    }

    #[test]
    fn equal_layers_are_dealt_evenly_and_ends_weigh_in() {
        assert_eq!(counts(&[10; 80], 0, 0, 4), [20, 20, 20, 20]);
        assert_eq!(counts(&[10; 8], 20, 20, 4), [1, 3, 3, 1]);
        assert_eq!(counts(&[10; 4], 0, 0, 4), [1, 1, 1, 1]);
        assert!(balance(&[10; 3], 0, 0, 4).is_none());
    }

    /// The best cut of all, by trying each.
    fn best_limit(bytes: &[u64], stages: usize) -> u64 {
        if stages == 1 {
            return bytes.iter().sum();
        }
        (1..=bytes.len() + 1 - stages)
            .map(|stop| bytes[..stop].iter().sum::<u64>().max(best_limit(&bytes[stop..], stages - 1)))
            .min()
            .unwrap()
    }

    proptest! {
        #[test]
        fn the_largest_stage_is_as_small_as_it_can_be(
            layers in prop::collection::vec(0u64..50, 1..10), first in 0u64..60, last in 0u64..60, stages in 1u32..6,
        ) {
            let Some(cuts) = balance(&layers, first, last, stages) else {
                prop_assert!(layers.len() < stages as usize);
                return Ok(());
            };
            let mut bytes = layers.clone();
            bytes[0] += first;
            *bytes.last_mut().unwrap() += last;
            prop_assert_eq!(cuts.len(), stages as usize);
            let mut next = 0;
            let mut largest = 0;
            for cut in &cuts {
                prop_assert!(cut.start == next && cut.stop > cut.start);
                let run = &bytes[usize::try_from(cut.start).unwrap()..usize::try_from(cut.stop).unwrap()];
                largest = largest.max(run.iter().sum::<u64>());
                next = cut.stop;
            }
            prop_assert_eq!(next, layers.len() as u64);
            prop_assert_eq!(largest, best_limit(&bytes, stages as usize));
        }
    }
}
