//! What arrived on the GPUs is what the files say.

use crate::{
    demo, planned,
    support::{fixture, on_gpus, simcuda::Machine},
};

#[test]
fn the_demo_loads_on_four_gpus_and_verifies_over_nccl() {
    let (_folder, plan) = demo();
    let printed = Machine::new().load(&plan, &[]).succeeded();
    assert!(printed.contains("on 4 ranks into 4 GPUs"), "{printed}");
    assert!(printed.contains("cuda:3"), "{printed}");
    let last = printed.lines().last().unwrap();
    assert!(
        last.starts_with("verified: the fingerprints summed over the ranks are those of the files"),
        "{printed}"
    );
}

#[test]
fn every_fixture_loads_and_verifies_on_every_mesh() {
    let machine = Machine::new().with("SIMCUDA_GPUS", &8);
    on_gpus::every_fixture_loads_and_verifies(&machine, &[[1, 1, 1], [2, 1, 1], [8, 1, 1], [2, 2, 2]]);
}

#[test]
fn a_flipped_bit_is_caught_on_every_gpu() {
    on_gpus::a_flipped_bit_is_caught_on_every_rank(&Machine::new(), 4);
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
    on_gpus::a_timeline_shows_reading_and_copying_side_by_side(&Machine::new(), &plan);
}
