//! What was called, copied and left behind, for tests to read when the process has ended.
//!
//! In: every entry point and every piece of work tells the counts of its GPU. Out: a JSON file, `SIMCUDA_COUNTS` with the
//! process's number behind, written when the process exits (not when it is killed).

use crate::{context, device, event, host, lock::lock, memory, module, settings::settings, stream};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Mutex, Once},
};

/// Copies below this are counted apart: they are too small to fill a bus.
const SMALL: u64 = 4 << 20;

/// Copies from here on are of data; what is smaller are numbers that ranks tell each other, and arguments of kernels.
const DATA: u64 = 4 << 10;

/// How a copy got at host memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Route {
    /// From or to memory that the driver allocated, when the stream got to it.
    Pinned,
    /// The same with memory that was registered.
    Registered,
    /// Asynchronous by name, from or to memory that the driver doesn't know: staged while the call waits.
    Pageable,
    /// By a call that waits, whatever the memory.
    Synchronous,
}

/// Copies of one direction and route.
#[derive(Clone, Debug, Default)]
struct Copies {
    copies: u64,
    bytes: u64,
    smallest: Option<u64>,
    small: u64,
}

impl Copies {
    fn add(&mut self, bytes: u64) {
        self.copies += 1;
        self.bytes += bytes;
        self.smallest = Some(self.smallest.map_or(bytes, |smallest| smallest.min(bytes)));
        self.small += u64::from(bytes < SMALL);
    }

    fn json(&self) -> Value {
        json!({"copies": self.copies, "bytes": self.bytes, "smallest": self.smallest, "below_4_mib": self.small})
    }
}

/// The copies of one direction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Direction {
    routes: [Copies; 4],
    data: u64,
}

impl Direction {
    /// Counts a copy, and says which of those of data it is, from 1; `None` for one that is no data.
    pub(crate) fn add(&mut self, route: Route, bytes: usize) -> Option<u64> {
        let bytes = bytes as u64;
        self.routes[route as usize].add(bytes);
        let is_data = bytes >= DATA;
        self.data += u64::from(is_data);
        is_data.then_some(self.data)
    }

    fn json(&self) -> Value {
        let [pinned, registered, pageable, synchronous] = self.routes.each_ref().map(Copies::json);
        json!({"pinned": pinned, "registered": registered, "pageable": pageable, "synchronous": synchronous})
    }
}

/// Things that nobody ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Leaks {
    pub(crate) allocations: usize,
    pub(crate) streams: usize,
    pub(crate) events: usize,
    pub(crate) modules: usize,
}

/// What happened on one GPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counts {
    calls: BTreeMap<&'static str, u64>,
    pub(crate) to_device: Direction,
    pub(crate) to_host: Direction,
    /// Bytes of device memory that copies from the host wrote though one had written them before.
    pub(crate) rewritten_bytes: u64,
    pub(crate) allocations: u64,
    pub(crate) allocated_bytes: u64,
    pub(crate) peak_bytes: u64,
    pub(crate) frees: u64,
    pub(crate) kernels: u64,
    pub(crate) stream_synchronisations: u64,
    pub(crate) context_synchronisations: u64,
    pub(crate) peak_pinned_bytes: u64,
    /// What was alive when its context ended.
    pub(crate) lost: Leaks,
}

/// Calls of the whole process.
static CALLS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

/// Counts a call of `function`, for the GPU whose context is current too if there is one.
pub(crate) fn call(function: &'static str) {
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        if settings().counts.is_some() {
            // SAFETY: `write` is a function without arguments; the library stays in the process (`build.rs`).
            unsafe { libc::atexit(write) };
        }
    });
    *lock(&CALLS).entry(function).or_default() += 1;
    if let Some(gpu) = context::current_gpu() {
        *lock(&gpu.counts).calls.entry(function).or_default() += 1;
    }
}

extern "C" fn write() {
    let Some(prefix) = &settings().counts else { return };
    let mut name = prefix.clone().into_os_string();
    name.push(format!(".{}", std::process::id()));
    if let Err(error) = std::fs::write(&name, format!("{:#}\n", report())) {
        eprintln!("simcuda: {}: {error}", name.display());
    }
}

/// All counts as they stand.
pub(crate) fn report() -> Value {
    let gpus: Vec<Value> = device::gpus().iter().map(gpu_report).collect();
    json!({
        "calls": *lock(&CALLS),
        "peak_pinned_bytes": host::peak_pinned_bytes(),
        "gpus": gpus,
    })
}

fn gpu_report(gpu: &device::Gpu) -> Value {
    let counts = lock(&gpu.counts).clone();
    let mut to_device = counts.to_device.json();
    to_device["rewritten_bytes"] = json!(counts.rewritten_bytes);
    let lost = counts.lost;
    json!({
        "number": gpu.number,
        "calls": counts.calls,
        "h2d": to_device,
        "d2h": counts.to_host.json(),
        "allocations": {
            "count": counts.allocations,
            "bytes": counts.allocated_bytes,
            "peak_bytes": counts.peak_bytes,
            "frees": counts.frees,
        },
        "kernels": counts.kernels,
        "stream_synchronisations": counts.stream_synchronisations,
        "context_synchronisations": counts.context_synchronisations,
        "peak_pinned_bytes": counts.peak_pinned_bytes,
        "leaks": {
            "contexts": context::alive_on(gpu),
            "allocations": lost.allocations + memory::alive_on(gpu),
            "streams": lost.streams + stream::alive_on(gpu),
            "events": lost.events + event::alive_on(gpu),
            "modules": lost.modules + module::alive_on(gpu),
            "pinned": host::alive_on(gpu, host::Kind::Pinned),
            "registered": host::alive_on(gpu, host::Kind::Registered),
        },
    })
}
