//! The ranks that share a host: its page cache and its memory.
//!
//! In come what each rank takes its memory from and how much it wants; out goes, on every rank alike, who its neighbours are, and
//! a refusal where they want more together than there is. It loads nothing.

use crate::{
    collective::{CollectiveError, Communicator, Reduce},
    device::{DeviceError, Pool},
    fingerprint::seed_of,
};

/// Most pools of a rank that the others hear of; of more, those that have least.
const MOST_POOLS: usize = 4;

/// What a rank tells the others: the kernel it runs on, the bytes it wants, and what it takes them from.
const NUMBERS: usize = 2 + MOST_POOLS;

/// What all ranks told each other.
pub(super) struct Hosts {
    /// By rank.
    told: Vec<[u64; NUMBERS]>,
    rank: u32,
    pools: Vec<Pool>,
}

impl Hosts {
    /// Tells the others of a rank that wants `bytes` bytes of each of `pools`, and hears of them. Every rank of the group calls it.
    ///
    /// # Errors
    /// [`CollectiveError`] when the ranks do not get on together.
    pub(super) fn meet(
        communicator: &mut (dyn Communicator + 'static),
        mut pools: Vec<Pool>,
        bytes: u64,
    ) -> Result<Self, CollectiveError> {
        pools.sort_by_key(|pool| pool.available.unwrap_or(u64::MAX));
        pools.truncate(MOST_POOLS);
        let rank = communicator.rank();
        let mut told = vec![[0; NUMBERS]; communicator.world_size() as usize];
        let own = &mut told[rank as usize];
        (own[0], own[1]) = (this_kernel(), bytes);
        own[2..].iter_mut().zip(&pools).for_each(|(id, pool)| *id = pool.id);
        communicator.all_reduce(told.as_flattened_mut(), Reduce::Sum)?;
        Ok(Self { told, rank, pools })
    }

    /// The ranks whose processes run on the kernel that this one runs on, in order, whatever they call their hosts: containers of
    /// one machine share its page cache.
    pub(super) fn neighbours(&self) -> Vec<u32> {
        self.here().map(|(rank, _)| rank).collect()
    }

    /// Checks that each pool has what all ranks want that take from it.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] for the first that has not.
    pub(super) fn check_memory(&self) -> Result<(), DeviceError> {
        self.pools.iter().try_for_each(|pool| {
            let takes = |numbers: &&[u64; NUMBERS]| numbers[2..].contains(&pool.id);
            check(pool, self.here().map(|(_, numbers)| numbers).filter(takes).map(|numbers| numbers[1]))
        })
    }

    fn here(&self) -> impl Iterator<Item = (u32, &[u64; NUMBERS])> {
        let own = self.told[self.rank as usize][0];
        (0u32..).zip(&self.told).filter(move |(_, numbers)| numbers[0] == own)
    }
}

/// Checks that `pool` has what ranks `want` of it.
///
/// # Errors
/// [`DeviceError::OutOfMemory`] when it has less.
pub(super) fn check(pool: &Pool, want: impl Iterator<Item = u64>) -> Result<(), DeviceError> {
    let (ranks, bytes) = want.fold((0, 0u64), |(ranks, all), bytes| (ranks + 1, all.saturating_add(bytes)));
    match pool.available {
        Some(free) if bytes > free => {
            let device = pool.name.clone();
            Err(DeviceError::OutOfMemory { device, ranks, bytes, available: pool.available })
        }
        _ => Ok(()),
    }
}

/// A number that another kernel has but by an accident of 1 in 2^64. Where the system does not tell, all are taken for neighbours:
/// what is then asked to be read ahead elsewhere is only read later.
fn this_kernel() -> u64 {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    seed_of(boot.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::local_group;
    use std::time::Duration;

    /// What each of three ranks finds that take `bytes` bytes each from these pools.
    fn found(bytes: u64, pools: impl Fn(u32) -> Vec<Pool> + Sync) -> Vec<(Vec<u32>, Option<String>)> {
        let pools = &pools;
        std::thread::scope(|scope| {
            let meet = |mut end: crate::collective::LocalCommunicator| {
                let pools = pools(end.rank());
                let hosts = Hosts::meet(&mut end, pools, bytes).unwrap();
                (hosts.neighbours(), hosts.check_memory().err().map(|error| error.to_string()))
            };
            let ends = local_group(3, Duration::from_secs(20));
            let threads: Vec<_> = ends.into_iter().map(|end| scope.spawn(move || meet(end))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn pool(id: u64, available: u64) -> Pool {
        Pool { name: format!("pool {id}"), id, available: Some(available) }
    }

    #[test]
    fn threads_of_one_process_are_neighbours() {
        assert_eq!(found(1, |_| Vec::new()), vec![(vec![0, 1, 2], None); 3]);
    }

    #[test]
    fn what_fits_alone_may_not_fit_together() {
        let refused = Some("pool 1 cannot give 30 bytes of memory to 3 ranks, it has 29 free".to_owned());
        assert_eq!(found(10, |_| vec![pool(1, 29)]), vec![(vec![0, 1, 2], refused); 3]);
        assert!(found(10, |_| vec![pool(1, 30)]).iter().all(|(_, refused)| refused.is_none()));
    }

    #[test]
    fn ranks_with_limits_of_their_own_share_none() {
        let own = |rank: u32| vec![pool(7, 30), pool(u64::from(rank) + 1, 10)];
        assert!(found(10, own).iter().all(|(_, refused)| refused.is_none()));
        let tight = |rank: u32| vec![pool(7, 30), pool(u64::from(rank) + 1, 9 + u64::from(rank))];
        let refused: Vec<_> = found(10, tight).into_iter().map(|(_, refused)| refused).collect();
        let of_first = "pool 1 cannot give 10 bytes of memory, it has 9 free".to_owned();
        assert_eq!(refused, [Some(of_first), None, None]);
    }
}
