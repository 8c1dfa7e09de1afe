//! Loading into memory that somebody else has.

use super::*;
use crate::schedule::Schedule;
use shardwright_planner::checkpoint::Dtype;

/// Memory of `device` for every tensor of `rank` that `wanted` chooses, in another order than they are loaded in and with gaps; and where
/// all of that lies, which was all ones.
fn lent(
    device: &dyn Device,
    (plan, catalog): (&Plan, &Catalog),
    rank: u32,
    wanted: &dyn Fn(usize) -> bool,
) -> (BTreeMap<String, LentTensor>, Arc<dyn DeviceMemory>) {
    let schedule = Schedule::new(plan, catalog, rank).unwrap();
    let memory: Arc<dyn DeviceMemory> = device.allocate(2 * schedule.memory_bytes + 64).unwrap().into();
    let mut filling = memory.begin(0, memory.len()).unwrap();
    filling.bytes().fill(0xff);
    filling.done().unwrap();
    let (mut tensors, mut at) = (BTreeMap::new(), 3);
    for (number, tensor) in schedule
        .tensors()
        .enumerate()
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .filter(|(number, _)| wanted(*number))
    {
        let bytes = tensor.held().bytes;
        let name = catalog.own_name(tensor.id, rank).to_owned();
        tensors.insert(
            name,
            LentTensor { address: memory.address(at), bytes, dtype: Some(tensor.held().dtype) },
        );
        at += bytes + number as u64 % 3;
    }
    (tensors, memory)
}

fn lend(tensors: BTreeMap<String, LentTensor>, memory: &Arc<dyn DeviceMemory>) -> Lent {
    // SAFETY: the memory is kept, all tensors lie in it, and nobody touches it before the load is over.
    unsafe { Lent::new(tensors, Arc::new(Arc::clone(memory))) }
}

fn bytes_of(rank: &LoadedRank, tensor: LoadedTensor<'_>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(tensor.bytes).unwrap()];
    rank.memory().read(tensor.offset, &mut bytes).unwrap();
    bytes
}

#[test]
fn tensors_lie_where_memory_was_lent_for_them_and_the_others_elsewhere() {
    for name in ["llama-bf16", "qwen3-f32", "llama-odd-vocab-bf16"] {
        let (plan, catalog) = planned(name, 1, 1, 2);
        let files = ReadFiles::open(&catalog).unwrap();
        let plain = loaded(&plan, &catalog, &files, &verifying()).unwrap();
        for wanted in [&(|_| true) as &dyn Fn(usize) -> bool, &|number| number % 2 == 0] {
            let of_ranks = [0, 1].map(|rank| lent(&HostDevice, (&plan, &catalog), rank, wanted));
            let ends = (0u32..).zip(local_group(2, Duration::from_secs(20)));
            let seats = ends.zip(&of_ranks).map(|((rank, end), (tensors, memory))| Seat {
                lent: lend(tensors.clone(), memory),
                ..Seat::new(rank, &HostDevice, Some(Box::new(end)))
            });
            let seats = seats.collect();
            let found = load(&plan, &catalog, &files, seats, &verifying(), &Progress::default()).unwrap();
            for ((rank, plain), (tensors, memory)) in found.iter().zip(&plain).zip(&of_ranks) {
                assert_eq!(rank.verified.as_ref().unwrap().mismatches, []);
                let mut left = memory.len();
                for (tensor, plain_tensor) in rank.tensors().zip(plain.tensors()) {
                    let expected = bytes_of(plain, plain_tensor);
                    assert_eq!(bytes_of(rank, tensor), expected, "{}", tensor.name);
                    let Some(lent) = tensors.get(tensor.name) else { continue };
                    assert_eq!((tensor.address, tensor.bytes), (lent.address, lent.bytes));
                    let mut there = vec![0; expected.len()];
                    memory.read(lent.address - memory.place().address(), &mut there).unwrap();
                    assert_eq!(there, expected, "{}", tensor.name);
                    left -= tensor.bytes;
                }
                // Nothing else was written.
                let mut all = vec![0; usize::try_from(memory.len()).unwrap()];
                memory.read(0, &mut all).unwrap();
                let untouched = u64::try_from(all.iter().filter(|&&byte| byte == 0xff).count()).unwrap();
                assert!(untouched >= left && !tensors.is_empty());
            }
        }
    }
}

#[test]
fn memory_that_does_not_suit_the_rank_is_refused_by_name() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let files = ReadFiles::open(&catalog).unwrap();
    let (tensors, memory) = lent(&HostDevice, (&plan, &catalog), 1, &|_| true);
    let refused = |change: &dyn Fn(&mut BTreeMap<String, LentTensor>)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        let seat = Seat { lent: lend(tensors, &memory), ..Seat::new(1, &HostDevice, None) };
        let outcome = load(&plan, &catalog, &files, vec![seat], &verifying(), &Progress::default());
        outcome.map(drop).unwrap_err().to_string()
    };
    let first = tensors.keys().next().unwrap();
    insta::assert_snapshot!(refused(&|all| all.get_mut(first).unwrap().bytes -= 2), @"rank 1 holds 6144 bytes of `lm_head.weight`, and the memory for it has 6142");
    insta::assert_snapshot!(refused(&|all| all.get_mut(first).unwrap().dtype = Some(Dtype::F16)), @"`lm_head.weight` is loaded as BF16, and the memory for it is made for F16");
    let other = LentTensor { address: memory.address(0), bytes: 1, dtype: None };
    insta::assert_snapshot!(refused(&|all| all.extend([("model.other".to_owned(), other)])), @"there is memory for `model.other`, of which rank 1 holds nothing");
}
