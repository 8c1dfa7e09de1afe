//! Which ranks share a host, and so a page cache.

use crate::{
    collective::{CollectiveError, Communicator, Reduce},
    fingerprint::seed_of,
};

/// The ranks whose processes run on the kernel that this one runs on, in order, whatever they call their hosts: containers of one
/// machine share its page cache. Every rank of the group calls it.
pub(super) fn neighbours(
    communicator: &mut (dyn Communicator + 'static),
) -> Result<Vec<u32>, CollectiveError> {
    let own = this_kernel();
    let mut kernels = vec![0; communicator.world_size() as usize];
    kernels[communicator.rank() as usize] = own;
    communicator.all_reduce(&mut kernels, Reduce::Sum)?;
    Ok((0..).zip(kernels).filter(|(_, kernel)| *kernel == own).map(|(rank, _)| rank).collect())
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

    #[test]
    fn threads_of_one_process_are_neighbours() {
        let found = std::thread::scope(|scope| {
            let ends = local_group(3, Duration::from_secs(20));
            let threads: Vec<_> =
                ends.into_iter().map(|mut end| scope.spawn(move || neighbours(&mut end).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(found, [[0, 1, 2]; 3]);
    }
}
