//! Holders and those who attach to them, over real sockets, in threads of one process. The memory is the host's, and says of
//! itself that it is a GPU's with a made-up handle: what CUDA makes of handles is not tested here.

mod attaching;
mod documents;
mod sockets;

use super::*;
use crate::{
    device::{Device, DeviceError, DeviceMemory, Filling, HostDevice, Place, Sum},
    fingerprint::Fingerprint,
    load::{LoadFigures, LoadedRank, PlacedTensors, RankWeights, TensorPlace},
};
use server::{Limits, serve_within};
use shardwright_planner::checkpoint::Dtype;
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::Duration,
};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// Host memory that says it is a GPU's.
#[derive(Clone)]
struct Pretended(Arc<dyn DeviceMemory>);

impl Pretended {
    /// Of `len` bytes, which depend on `seed`.
    fn new(len: u64, seed: u8) -> Self {
        let memory = HostDevice.allocate(len).unwrap();
        let mut filling = memory.begin(0, len).unwrap();
        filling.bytes().iter_mut().zip((0..251u8).cycle()).for_each(|(byte, value)| *byte = value ^ seed);
        filling.done().unwrap();
        Self(Arc::from(memory))
    }

    fn boxed(len: u64, seed: u8) -> Box<dyn DeviceMemory> {
        Box::new(Self::new(len, seed))
    }
}

impl DeviceMemory for Pretended {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn place(&self) -> Place {
        Place::Cuda { address: self.0.place().address(), ordinal: 3, uuid: "GPU-pretended".to_owned() }
    }

    fn window_end(&self, at: u64) -> u64 {
        at + 1
    }

    fn begin(&self, _: u64, _: u64) -> Result<Box<dyn Filling + '_>, DeviceError> {
        Err(DeviceError::ReadOnly { device: "pretended".to_owned() })
    }

    fn finish(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn fingerprints(&self, sums: &[Sum]) -> Result<Vec<Fingerprint>, DeviceError> {
        self.0.fingerprints(sums)
    }

    fn ipc_handle(&self) -> Result<Option<[u8; 64]>, DeviceError> {
        Ok(Some([0xa5; 64]))
    }

    fn read(&self, from: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        self.0.read(from, into)
    }
}

fn place(name: &str, dtype: Dtype, shape: &[u64], offset: u64) -> TensorPlace {
    let bytes = shape.iter().product::<u64>() * dtype.bitsize() as u64 / 8;
    let held = Arc::new(crate::schedule::TensorForm { dtype, shape: shape.to_vec(), bytes });
    TensorPlace { name: name.into(), held, offset }
}

/// A rank with two tensors, in memory whose bytes depend on the rank.
fn loaded(rank: u32, memory: Box<dyn DeviceMemory>) -> LoadedRank {
    let tensors = vec![place("embed", Dtype::BF16, &[4, 8], 0), place("a norm", Dtype::F32, &[8], 256)];
    let weights = RankWeights::new(rank, Arc::new(PlacedTensors::new(tensors)), memory);
    LoadedRank::new(weights, vec![(0, LoadFigures::default())], None, Vec::new())
}

fn facts() -> Facts {
    Facts {
        plan: "0123456789abcdef".repeat(4),
        checkpoint: "/models/some".to_owned(),
        gpu_names: [("GPU-pretended".to_owned(), "Pretended GPU".to_owned())].into(),
    }
}

/// What two ranks make up.
fn document() -> Document {
    let ranks = [loaded(1, Pretended::boxed(512, 1)), loaded(0, Pretended::boxed(512, 0))];
    Document::of(&ranks, &facts()).unwrap()
}

/// The same, too long for what the system keeps of a socket that nobody reads.
fn long_document() -> Document {
    let mut document = document();
    let tensors =
        (0..40_000).map(|number| place(&format!("{number:080}"), Dtype::BF16, &[4, 8], 0)).collect();
    document.ranks[0].tensors = Arc::new(PlacedTensors::new(tensors));
    document
}

/// A holder in a thread, and what happens to it.
struct Held<'scope> {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    events: Receiver<String>,
    thread: thread::ScopedJoinHandle<'scope, Result<(), HoldError>>,
}

impl<'scope> Held<'scope> {
    /// Begins to hold at `path`, and waits until one can attach.
    fn begin(
        scope: &'scope thread::Scope<'scope, '_>,
        path: &Path,
        document: Document,
        limits: Limits,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (send, events) = channel();
        let (at, stopping) = (path.to_owned(), Arc::clone(&stop));
        let thread = scope.spawn(move || {
            serve_within(
                &at,
                &document,
                &stopping,
                &mut |event| {
                    // Numbers of processes differ from run to run; here all are this one's.
                    let text = event.to_string().replace(&std::process::id().to_string(), "N");
                    let _ = send.send(text);
                },
                limits,
            )
        });
        while socket::dial(path, PATIENCE).is_ok_and(|stream| stream.is_none()) {
            assert!(!thread.is_finished());
            thread::sleep(Duration::from_millis(5));
        }
        Self { path: path.to_owned(), stop, events, thread }
    }

    fn with_defaults(scope: &'scope thread::Scope<'scope, '_>, path: &Path, document: Document) -> Self {
        Self::begin(scope, path, document, Limits::default())
    }

    /// Waits for an event; others before it are skipped.
    fn expect(&self, event: &str) {
        let mut seen = Vec::new();
        while let Ok(found) = self.events.recv_timeout(PATIENCE) {
            if found == event {
                return;
            }
            seen.push(found);
        }
        panic!("no {event:?}, but {seen:?}");
    }

    fn attach(&self) -> Attached {
        connect(&self.path, PATIENCE).unwrap()
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until it has ended.
    fn ended(self) -> Result<(), HoldError> {
        self.thread.join().unwrap()
    }
}
