//! Loading into GPU memory that the caller has. The library is asked for it, not the binary, so this test starts itself again on the
//! simulated driver.

use crate::support::{on_gpus::Gpus, simcuda::Machine, text};
use shardwright_loader::{
    device::{CudaDevice, CudaOptions, Device, DeviceMemory, cuda::Driver},
    load::{Lent, LentTensor, LoadOptions, Progress, Seat, load},
    schedule::Schedule,
    source::{Io, open},
    trace::Tracer,
    verify::Extent,
};
use shardwright_planner::{checkpoint::Catalog, plan::Plan};
use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::Arc, time::Duration};

/// Says to the test that starts itself which plan to load.
const PLAN: &str = "SHARDWRIGHT_TEST_PLAN";

#[test]
fn tensors_lie_where_gpu_memory_was_lent_for_them() {
    let Some(plan) = std::env::var_os(PLAN) else {
        let (_folder, plan) = crate::demo();
        let machine = Machine::new();
        let like = machine.command(&[]);
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?)))).env(PLAN, text(&plan));
        let name = "lent::tensors_lie_where_gpu_memory_was_lent_for_them";
        let ended = again.args(["--exact", name, "--nocapture"]).output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        assert!(String::from_utf8_lossy(&ended.stdout).contains("1 passed"));
        return;
    };
    let plan = PathBuf::from(plan);
    let plan = Plan::read(&plan).unwrap();
    let catalog = Catalog::open(&plan.checkpoint.path).unwrap();
    for (registered, wanted) in [(false, 1), (false, 2), (true, 1)] {
        loaded_into(&plan, &catalog, registered, wanted);
    }
}

/// Loads rank 1, every `wanted`th tensor into memory that another device object has, and compares with memory of the loader's own.
fn loaded_into(plan: &Plan, catalog: &Catalog, registered: bool, wanted: usize) {
    const RANK: u32 = 1;
    let driver = Driver::open().unwrap();
    let gpu = driver.gpus().unwrap().remove(0);
    let options = CudaOptions {
        staging_bytes: 1 << 20,
        registered,
        fingerprints: true,
        patience: Duration::from_secs(20),
        connecting: Duration::from_secs(20),
        rank: RANK,
        tracer: Tracer::default(),
    };
    let device = CudaDevice::new(driver, gpu, options, None).unwrap();
    let schedule = Schedule::new(plan, catalog, RANK).unwrap();
    let memory: Arc<dyn DeviceMemory> = device.allocate(2 * schedule.memory_bytes + 64).unwrap().into();
    let mut filled = 0;
    while filled < memory.len() {
        let end = memory.window_end(filled).min(memory.len());
        let mut filling = memory.begin(filled, end - filled).unwrap();
        filling.bytes().fill(0xff);
        filling.done().unwrap();
        filled = end;
    }
    memory.finish().unwrap();

    let (mut tensors, mut at) = (BTreeMap::new(), 0);
    let places: Vec<_> = schedule.tensors().step_by(wanted).collect();
    for tensor in places.iter().rev() {
        let (bytes, dtype) = (tensor.held().bytes, Some(tensor.held().dtype));
        tensors.insert(
            catalog.own_name(tensor.id, RANK).to_owned(),
            LentTensor { address: memory.address(at), bytes, dtype },
        );
        // Not at whole words, now and then.
        at += bytes + 2;
    }
    let verify = LoadOptions { verify: Some(Extent::Full), threads: 2, ..LoadOptions::default() };
    let io = if registered { Io::Mmap } else { Io::Read };
    let files = open(catalog, io, false, 2).unwrap();
    let loaded = |lent: Lent| {
        let seat = Seat { lent, ..Seat::new(RANK, &device, None) };
        let source = files.source.as_ref();
        load(plan, catalog, source, vec![seat], &verify, &Progress::default()).unwrap().remove(0)
    };
    let plain = loaded(Lent::default());
    // SAFETY: the memory is kept, all tensors lie in it, and nobody touches it before the load is over.
    let lent = loaded(unsafe { Lent::new(tensors.clone(), Arc::new(Arc::clone(&memory))) });
    assert_eq!(lent.verified.as_ref().unwrap().mismatches, []);
    let read = |memory: &dyn DeviceMemory, at: u64, bytes: u64| {
        let mut found = vec![0; usize::try_from(bytes).unwrap()];
        memory.read(at, &mut found).unwrap();
        found
    };
    for (tensor, expected) in lent.tensors().zip(plain.tensors()) {
        let bytes = read(plain.memory(), expected.offset, expected.bytes);
        assert_eq!(read(lent.memory(), tensor.offset, tensor.bytes), bytes, "{}", tensor.name);
        if let Some(place) = tensors.get(tensor.name) {
            assert_eq!(tensor.address, place.address);
            let at = place.address - memory.place().address();
            assert_eq!(read(memory.as_ref(), at, place.bytes), bytes, "{}", tensor.name);
            // What lies behind it is as it was.
            assert_eq!(read(memory.as_ref(), at + place.bytes, 2), [0xff; 2], "{}", tensor.name);
        }
    }
}
