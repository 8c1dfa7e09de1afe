//! What arrived on the GPUs is what the files say.

use crate::{
    demo,
    support::{FIXTURES, fixture, on_gpus, on_gpus::Gpus, plan, planned, simcuda::Machine},
};

#[test]
fn the_demo_loads_on_four_gpus_and_verifies_over_nccl() {
    let (_folder, plan) = demo();
    on_gpus::threads_verify(&Machine::new(), &plan, 4);
}

#[test]
fn every_fixture_loads_and_verifies_on_every_mesh() {
    let machine = Machine::new().with("SIMCUDA_GPUS", &8);
    for name in FIXTURES {
        for mesh in [[1, 1, 1], [2, 1, 1], [8, 1, 1], [2, 2, 2]] {
            for args in [&[][..], &["--registered"], &["--staging", "64 KiB"], &["--verify", "sample"]] {
                on_gpus::fixture_verifies(&machine, name, mesh, args);
            }
        }
    }
}

#[test]
fn what_is_cast_arrives_cast_however_it_is_copied() {
    let machine = Machine::new();
    for (name, dtype) in [("llama-odd-vocab-bf16", "f32"), ("mistral-f32", "f16")] {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("plan.yaml");
        plan(&fixture(name), &["--topology", "host", "--tp", "4", "--dtype", dtype], &file);
        for args in [&[][..], &["--registered"], &["--staging", "64 KiB"], &["--rank", "1"]] {
            let printed = machine.loaded(&file, args);
            assert_eq!(printed["verified"], true, "{name} as {dtype} {args:?}: {printed}");
        }
        on_gpus::a_flip_is_named(&machine, &file, 2);
    }
}

#[test]
fn a_flipped_bit_is_caught_on_every_gpu() {
    let (_folder, plan) = planned(&fixture("llama-odd-vocab-bf16"), [4, 1, 1]);
    for rank in 0..4 {
        on_gpus::a_flip_is_named(&Machine::new(), &plan, rank);
    }
}

#[test]
fn ranks_load_into_the_gpus_of_their_plan() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let devices = |machine: Machine| {
        let printed = machine.load(&plan, &["--json"]).json();
        [0, 1].map(|rank| printed["ranks"][rank]["gpu"].as_str().unwrap().to_owned())
    };
    let plain = devices(Machine::new());
    let swapped = devices(Machine::new().with("CUDA_VISIBLE_DEVICES", &"1,0"));
    assert_eq!(plain, [swapped[1].clone(), swapped[0].clone()]);
    // A process that sees one GPU has it.
    let only = Machine::new().with("CUDA_VISIBLE_DEVICES", &"1");
    let printed = only.load(&plan, &["--rank", "0", "--json"]).json();
    assert_eq!(printed["ranks"][0]["gpu"], plain[1]);
}

#[test]
fn a_timeline_shows_reading_and_copying_side_by_side() {
    let (_folder, plan) = demo();
    on_gpus::copies_overlap_reads(&Machine::new(), &plan);
}
