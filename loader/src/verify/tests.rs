//! Every rank of real plans of real checkpoints, loaded, broken on purpose, and verified.

use super::*;
use crate::{
    cast::{Cast, Casts},
    collective::local_group,
    device::{Device, HostDevice, Pool},
    fingerprint::seed_of,
    fixture::{planned, planned_as},
    load::{LoadError, LoadOptions, LoadedRank, Progress, Seat, load},
    schedule::{Batches, PlacedTensor, Rows},
    source::MappedFiles,
};
use shardwright_planner::plan::CastDtype;
use std::{
    collections::HashMap,
    ops::{ControlFlow, Range},
    time::Duration,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Loads every rank, lets `breaks` do its work on each rank's schedule and memory, and verifies.
fn verified(
    plan: &Plan,
    catalog: &Catalog,
    extent: Extent,
    breaks: impl Fn(&mut Schedule, &dyn DeviceMemory) + Sync,
) -> Vec<Verified> {
    let files = MappedFiles::open(catalog).unwrap();
    let batches = Batches::new(plan, catalog).unwrap();
    let chosen = chosen(plan, catalog, extent).unwrap();
    let world = plan.mesh.world_size();
    let casts = Casts::new(plan, catalog).unwrap();
    let tensors = Tensors::new(catalog, &casts, &files);
    let replicated = Replicated::new(plan, catalog).unwrap();
    let (tensors, breaks, batches, chosen, replicated) = (&tensors, &breaks, &batches, &chosen, &replicated);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0u32..)
            .zip(local_group(world, PATIENCE))
            .map(|(rank, mut communicator)| {
                scope.spawn(move || {
                    let mut schedule = Schedule::new(plan, catalog, rank).unwrap();
                    let memory = HostDevice.allocate(schedule.memory_bytes).unwrap();
                    for tensor in schedule.tensors() {
                        for rows in tensor.all_rows() {
                            copy(rows, tensor.id, tensors, memory.as_ref());
                        }
                    }
                    breaks(&mut schedule, memory.as_ref());
                    let this = Verification {
                        plan,
                        catalog,
                        schedule: &schedule,
                        batches,
                        memory: memory.as_ref(),
                        tensors,
                        chosen,
                        replicated,
                        standard: Standard::Files { samples: false },
                        step: &|| Ok(()),
                    };
                    // One rank says what the files say; the others add nothing.
                    let expected: HashMap<usize, Fingerprint> = catalog
                        .tensors()
                        .iter()
                        .enumerate()
                        .map(|(id, tensor)| {
                            let mut sum = Fingerprint::default();
                            if rank == 0 {
                                sum.add(seed_of(&tensor.name), 0, &bytes(tensors, id, 0..tensors.len_of(id)));
                            }
                            (id, sum)
                        })
                        .collect();
                    let mut verifier = Verifier::new(&this, Some(&mut communicator)).unwrap();
                    for batch in 0..batches.count() {
                        verifier
                            .batch(batch, &Arrived::OnDevice, &expected, Some(&mut communicator))
                            .unwrap();
                    }
                    verifier.finish()
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn name_of<'a>(catalog: &'a Catalog, tensor: PlacedTensor<'_>) -> &'a str {
    &catalog.tensors()[tensor.id].name
}

/// Copies row by row, as plainly as it goes.
fn copy(rows: Rows, tensor: usize, tensors: &Tensors<'_>, memory: &dyn DeviceMemory) {
    for run in 0..rows.runs {
        let from = rows.from + run * rows.from_stride;
        let run_of_file = bytes(tensors, tensor, from..from + rows.run_bytes);
        put(memory, rows.to + run * rows.to_stride, &run_of_file);
    }
}

/// A run of a tensor.
fn bytes(tensors: &Tensors<'_>, tensor: usize, run: Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let take = &mut |_: u64, piece: &[u8]| {
        bytes.extend_from_slice(piece);
        ControlFlow::Continue(())
    };
    tensors.read_run(tensor, run, take).unwrap();
    bytes
}

fn put(memory: &dyn DeviceMemory, at: u64, bytes: &[u8]) {
    for (at, part) in (at..).step_by(1 << 20).zip(bytes.chunks(1 << 20)) {
        let mut filling = memory.begin(at, part.len() as u64).unwrap();
        filling.bytes().copy_from_slice(part);
        filling.done().unwrap();
    }
}

fn flip(memory: &dyn DeviceMemory, at: u64) {
    let mut byte = [0];
    memory.read(at, &mut byte).unwrap();
    put(memory, at, &[byte[0] ^ 0x80]);
}

fn load_all(plan: &Plan, catalog: &Catalog, device: &dyn Device) -> Result<Vec<LoadedRank>, LoadError> {
    let seats = (0u32..)
        .zip(local_group(plan.mesh.world_size(), PATIENCE))
        .map(|(rank, communicator)| Seat::new(rank, device, Some(Box::new(communicator))));
    let options = LoadOptions { verify: Some(Extent::Full), ..LoadOptions::default() };
    let source = MappedFiles::open(catalog).unwrap();
    load(plan, catalog, &source, seats.collect(), &options, &Progress::default())
}

const CHECKPOINTS: [&str; 5] =
    ["llama-bf16", "mistral-f32", "qwen2-bf16", "qwen3-f32", "llama-odd-vocab-bf16"];

#[test]
fn what_was_loaded_right_is_verified_whatever_the_mesh() {
    for name in CHECKPOINTS {
        for (dp, pp, tp) in [(1, 1, 1), (1, 1, 4), (1, 1, 8), (1, 2, 2), (2, 2, 2), (3, 1, 2)] {
            let (plan, catalog) = planned(name, dp, pp, tp);
            for rank in verified(&plan, &catalog, Extent::Full, |_, _| ()) {
                assert_eq!(rank.mismatches, [], "{name} dp {dp} pp {pp} tp {tp}");
                assert_eq!(rank.tensors, catalog.tensors().len() as u64);
            }
        }
    }
}

#[test]
fn what_is_cast_is_verified_as_it_is_loaded() {
    for (name, to) in [("llama-odd-vocab-bf16", CastDtype::F32), ("mistral-f32", CastDtype::F16)] {
        let (plan, catalog) = planned_as(name, 1, 1, 4, Some(to));
        for rank in verified(&plan, &catalog, Extent::Full, |_, _| ()) {
            assert_eq!(rank.mismatches, [], "{name}");
            assert_eq!(rank.tensors, catalog.tensors().len() as u64);
        }
        let wrong = "model.norm.weight";
        let found = verified(&plan, &catalog, Extent::Full, |schedule, memory| {
            let tensor = schedule.tensors().find(|tensor| name_of(&catalog, *tensor) == wrong).unwrap();
            if schedule.rank == 1 {
                flip(memory, tensor.offset + tensor.held().bytes - 1);
            }
        });
        assert!(found.iter().all(|rank| rank.mismatches.len() == 1 && rank.mismatches[0].ranks == [1]));
    }
}

#[test]
fn one_flipped_byte_anywhere_is_caught_and_named() {
    // Copies, shared heads, biases held once, padding: every byte of every rank counts.
    for (name, dp, pp, tp) in
        [("llama-odd-vocab-bf16", 1, 1, 8), ("qwen2-bf16", 2, 2, 2), ("qwen3-f32", 1, 1, 4)]
    {
        let (plan, catalog) = planned(name, dp, pp, tp);
        for bad in 0..plan.mesh.world_size() {
            let schedule = Schedule::new(&plan, &catalog, bad).unwrap();
            for tensor in schedule.tensors().step_by(3) {
                let at = tensor.offset + tensor.held().bytes - 1;
                let found = verified(&plan, &catalog, Extent::Full, |schedule, memory| {
                    if schedule.rank == bad {
                        flip(memory, at);
                    }
                });
                for rank in found {
                    let named: Vec<_> =
                        rank.mismatches.iter().map(|m| (m.tensor.as_str(), m.ranks.as_slice())).collect();
                    assert_eq!(
                        named,
                        [(name_of(&catalog, tensor), [bad].as_slice())],
                        "{name}, byte {at} of rank {bad}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_wrong_box_is_caught_though_its_bytes_are_the_files() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 4);
    let files = MappedFiles::open(&catalog).unwrap();
    let casts = Casts::none(&catalog);
    let tensors = Tensors::new(&catalog, &casts, &files);
    let wrong = "model.layers.1.mlp.up_proj.weight";
    let found = verified(&plan, &catalog, Extent::Full, |schedule, memory| {
        if schedule.rank != 2 {
            return;
        }
        // Rank 2 believes that rank 1's rows are its own: it loads and reports them faithfully.
        let place = schedule.tensors().position(|tensor| name_of(&catalog, tensor) == wrong).unwrap();
        schedule.change_form(place, |form| form.pieces[0].rows[0].from -= form.pieces[0].rows[0].run_bytes);
        let tensor = schedule.tensor(place);
        copy(tensor.all_rows().next().unwrap(), tensor.id, &tensors, memory);
    });
    for rank in found {
        assert_eq!(rank.mismatches.len(), 1);
        assert_eq!((rank.mismatches[0].tensor.as_str(), rank.mismatches[0].ranks.len()), (wrong, 0));
    }
}

/// A device on which one rank's allocation fails.
struct OneFails(std::sync::atomic::AtomicU32);

impl Device for OneFails {
    fn name(&self) -> String {
        "one-fails".to_owned()
    }

    fn pools(&self) -> Result<Vec<Pool>, DeviceError> {
        Ok(Vec::new())
    }

    fn allocate(&self, bytes: u64) -> Result<Box<dyn DeviceMemory>, DeviceError> {
        match self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Err(DeviceError::OutOfMemory { device: self.name(), ranks: 1, bytes, available: None }),
            _ => HostDevice.allocate(bytes),
        }
    }
}

#[test]
fn a_rank_that_fails_ends_all_and_is_the_one_reported() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 4);
    let device = OneFails(std::sync::atomic::AtomicU32::new(0));
    let Err(error) = load_all(&plan, &catalog, &device) else { panic!("a rank had no memory") };
    assert!(error.to_string().contains("one-fails cannot give"), "{error}");
}

#[test]
fn what_is_loaded_in_another_dtype_is_the_cast_of_what_is_loaded_as_it_is() {
    let read = |rank: &LoadedRank, name: &str| {
        let tensor = rank.tensor(name).unwrap();
        let mut bytes = vec![0; usize::try_from(tensor.bytes).unwrap()];
        rank.memory().read(tensor.offset, &mut bytes).unwrap();
        (tensor.dtype, tensor.shape.to_vec(), bytes)
    };
    for (name, to) in [
        ("llama-odd-vocab-bf16", CastDtype::F32),
        ("qwen2-bf16", CastDtype::F16),
        ("mistral-f32", CastDtype::BF16),
        ("qwen3-f32", CastDtype::F16),
    ] {
        for (dp, pp, tp) in [(1, 1, 1), (1, 1, 4), (1, 2, 2), (2, 1, 2)] {
            let (plain, catalog) = planned(name, dp, pp, tp);
            let (cast, _) = planned_as(name, dp, pp, tp, Some(to));
            let stored = load_all(&plain, &catalog, &HostDevice).unwrap();
            let loaded = load_all(&cast, &catalog, &HostDevice).unwrap();
            for (stored, loaded) in stored.iter().zip(&loaded) {
                assert_eq!(loaded.verified.as_ref().map(|verified| verified.mismatches.len()), Some(0));
                assert_eq!(loaded.too_large, [""; 0]);
                for tensor in stored.tensors() {
                    let (dtype, shape, bytes) = read(stored, tensor.name);
                    let mut expected = Vec::new();
                    Cast::new(dtype, to).unwrap().apply(&bytes, &mut expected);
                    assert!(
                        read(loaded, tensor.name) == (to.into(), shape, expected),
                        "{name}: {}",
                        tensor.name
                    );
                }
            }
        }
    }
}

#[test]
fn a_loaded_rank_hands_out_its_tensors_where_they_lie() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let ranks = load_all(&plan, &catalog, &HostDevice).unwrap();
    assert_eq!(ranks.len(), 2);
    for rank in &ranks {
        assert_eq!(rank.verified.as_ref().map(|verified| verified.mismatches.len()), Some(0));
        for tensor in rank.tensors() {
            let same = rank.tensor(tensor.name).unwrap();
            assert_eq!((same.address, same.offset), (tensor.address, tensor.offset));
            assert_eq!((tensor.address - rank.place().address(), tensor.address % 256), (tensor.offset, 0));
            let strides = tensor.strides();
            assert_eq!(strides.last(), Some(&1));
            let bits = tensor.shape[0] * strides[0] * tensor.dtype.bitsize() as u64;
            assert_eq!(bits / 8, tensor.bytes);
        }
        assert!(rank.tensor("no.such.weight").is_none());
        assert_eq!(rank.rank, rank.weights.rank);
    }
}

#[test]
fn a_sample_has_each_kind_of_tensor_and_finds_what_is_wrong_with_all_of_a_kind() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let all = catalog.tensors().len() as u64;
    let kinds = plan.tensors.len() as u64;
    for rank in verified(&plan, &catalog, Extent::Sample, |_, _| ()) {
        assert_eq!(rank.mismatches, []);
        assert_eq!(rank.tensors + rank.left_out, all);
        assert!(rank.tensors >= kinds && rank.left_out > 0, "{rank:?}");
    }
    let found = verified(&plan, &catalog, Extent::Sample, |schedule, memory| {
        for tensor in schedule.tensors().filter(|tensor| name_of(&catalog, *tensor).contains("down_proj")) {
            flip(memory, tensor.offset);
        }
    });
    assert!(found.iter().all(|rank| rank.mismatches.len() == 1 && rank.mismatches[0].ranks == [0, 1]));
}
