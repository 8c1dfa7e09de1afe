//! Every rank of real plans of real checkpoints, loaded, broken on purpose, and verified.

use super::*;
use crate::{
    collective::local_group,
    device::{Block, Device, HostDevice},
    load::{LoadOptions, Progress, load_all},
    source::MappedFiles,
};
use shardwright_planner::{
    mesh::Mesh,
    model::{CONFIG_NAME, Config},
    planning::{PlanRequest, Sharing, build},
    rules::{Families, UserRules},
    topology::{HostFacts, Topology, builtin},
};
use std::{path::PathBuf, time::Duration};

const PATIENCE: Duration = Duration::from_secs(20);

fn planned(name: &str, dp: u32, pp: u32, tp: u32) -> (Plan, Catalog) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints").join(name);
    let catalog = Catalog::open(&folder).unwrap();
    let config = Config::read(&folder.join(CONFIG_NAME)).unwrap();
    let mesh = Mesh::new(dp, pp, tp).unwrap();
    let facts = HostFacts { devices: mesh.world_size(), memory_bytes: 1 << 30 };
    let topology = Topology::parse(builtin("host").unwrap(), "host", None, Some(facts)).unwrap();
    let request = PlanRequest {
        catalog: &catalog,
        path: &folder,
        config: &config,
        families: &Families::built_in().unwrap(),
        user: &UserRules::default(),
        topology: &topology,
        mesh,
        sharing: &Sharing::default(),
    };
    (build(&request).unwrap(), catalog)
}

/// Loads every rank, lets `breaks` do its work on each rank's schedule and memory, and verifies.
fn verified(
    plan: &Plan,
    catalog: &Catalog,
    breaks: impl Fn(&mut Schedule, &mut dyn DeviceMemory) + Sync,
) -> Vec<Verified> {
    let files = MappedFiles::open(catalog).unwrap();
    let (files, breaks) = (&files, &breaks);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0u32..)
            .zip(local_group(plan.mesh.world_size(), PATIENCE))
            .map(|(rank, mut communicator)| {
                scope.spawn(move || {
                    let mut schedule = Schedule::new(plan, catalog, rank).unwrap();
                    let mut memory = HostDevice.allocate(schedule.memory_bytes).unwrap();
                    for tensor in &schedule.tensors {
                        for rows in tensor.pieces.iter().flat_map(|piece| &piece.rows) {
                            crate::load::copy_for_test(*rows, tensor.file, files, memory.as_mut());
                        }
                    }
                    breaks(&mut schedule, memory.as_mut());
                    let this = Verification {
                        plan,
                        catalog,
                        schedule: &schedule,
                        memory: memory.as_ref(),
                        source: files,
                    };
                    verify(&this, &mut communicator).unwrap()
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn flip(memory: &mut dyn DeviceMemory, at: u64) {
    let mut byte = [0];
    memory.read(at, &mut byte).unwrap();
    byte[0] ^= 0x80;
    memory.write(Block { bytes: &byte, run_bytes: 1, stride: 1, runs: 1 }, at, 1).unwrap();
}

const CHECKPOINTS: [&str; 5] =
    ["llama-bf16", "mistral-f32", "qwen2-bf16", "qwen3-f32", "llama-odd-vocab-bf16"];

#[test]
fn what_was_loaded_right_is_verified_whatever_the_mesh() {
    for name in CHECKPOINTS {
        for (dp, pp, tp) in [(1, 1, 1), (1, 1, 4), (1, 1, 8), (1, 2, 2), (2, 2, 2), (3, 1, 2)] {
            let (plan, catalog) = planned(name, dp, pp, tp);
            for rank in verified(&plan, &catalog, |_, _| ()) {
                assert_eq!(rank.mismatches, [], "{name} dp {dp} pp {pp} tp {tp}");
                assert_eq!(rank.tensors, catalog.tensors().len() as u64);
            }
        }
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
            for tensor in schedule.tensors.iter().step_by(3) {
                let at = tensor.offset + tensor.bytes - 1;
                let found = verified(&plan, &catalog, |schedule, memory| {
                    if schedule.rank == bad {
                        flip(memory, at);
                    }
                });
                for rank in found {
                    let named: Vec<_> =
                        rank.mismatches.iter().map(|m| (m.tensor.as_str(), m.ranks.as_slice())).collect();
                    assert_eq!(
                        named,
                        [(tensor.name.as_str(), [bad].as_slice())],
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
    let wrong = "model.layers.1.mlp.up_proj.weight";
    let found = verified(&plan, &catalog, |schedule, memory| {
        if schedule.rank != 2 {
            return;
        }
        // Rank 2 believes that rank 1's rows are its own: it loads and reports them faithfully.
        let tensor = schedule.tensors.iter_mut().find(|tensor| tensor.name == wrong).unwrap();
        let rows = &mut tensor.pieces[0].rows[0];
        rows.from -= rows.run_bytes;
        crate::load::copy_for_test(*rows, tensor.file, &files, memory);
    });
    for rank in found {
        assert_eq!(rank.mismatches.len(), 1);
        assert_eq!((rank.mismatches[0].tensor.as_str(), rank.mismatches[0].ranks.len()), (wrong, 0));
    }
}

#[test]
fn ranks_with_different_plans_do_not_agree() {
    let (plan, _) = planned("llama-bf16", 1, 1, 2);
    let mut other = plan.clone();
    other.warnings.push("edited".to_owned());
    let outcomes = std::thread::scope(|scope| {
        let ranks: Vec<_> = [&plan, &other]
            .into_iter()
            .zip(local_group(2, PATIENCE))
            .map(|(plan, mut communicator)| scope.spawn(move || agree_on_plan(plan, &mut communicator)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(VerifyError::OtherPlan { .. }))));
}

/// A device on which one rank's allocation fails.
struct OneFails(std::sync::atomic::AtomicU32);

impl Device for OneFails {
    fn name(&self) -> String {
        "one-fails".to_owned()
    }

    fn available_bytes(&self) -> Option<u64> {
        None
    }

    fn allocate(&self, bytes: u64) -> Result<Box<dyn DeviceMemory>, DeviceError> {
        match self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Err(DeviceError::OutOfMemory { device: self.name(), bytes, available: None }),
            _ => HostDevice.allocate(bytes),
        }
    }
}

#[test]
fn a_rank_that_fails_ends_all_and_is_the_one_reported() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 4);
    let options = LoadOptions { verify: true, patience: PATIENCE, flip_byte_of: None };
    let device = OneFails(std::sync::atomic::AtomicU32::new(0));
    let Err(error) = load_all(&plan, &catalog, &device, &options, &Progress::default()) else {
        panic!("a rank had no memory")
    };
    assert!(error.to_string().contains("one-fails cannot give"), "{error}");
}
