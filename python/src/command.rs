//! The program's commands, called.

use crate::error::exception;
use pyo3::prelude::*;
use std::{
    path::Path,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    time::Duration,
};

/// How often whoever waits looks whether somebody pressed Ctrl-C.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// Set while a command is to end. Commands of one process share it, so that they run one after the other.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static RUNNING: Mutex<()> = Mutex::new(());

/// Runs a command of the program, given as its arguments, and returns what it prints.
#[pyfunction]
pub(crate) fn call(py: Python<'_>, arguments: Vec<String>) -> PyResult<String> {
    let (done, outcome) = mpsc::channel();
    // Of this call: it has begun, and is not to.
    let (begun, cancelled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (has_begun, is_cancelled) = (Arc::clone(&begun), Arc::clone(&cancelled));
    let work = move || {
        let _one_at_a_time = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        INTERRUPTED.store(false, Ordering::Relaxed);
        has_begun.store(true, Ordering::Relaxed);
        if is_cancelled.load(Ordering::Relaxed) {
            return;
        }
        // Nobody may be left to hear of it.
        let _ = done.send(shardwright::call(&arguments, &INTERRUPTED));
    };
    std::thread::Builder::new().spawn(work)?;
    // Only what threads may share can be used while others have the interpreter.
    let outcome = Mutex::new(outcome);
    let heard = || outcome.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(TICK);
    loop {
        match py.detach(heard) {
            Ok(outcome) => return outcome.map_err(exception),
            Err(RecvTimeoutError::Timeout) => {
                if let Err(interrupt) = py.check_signals() {
                    cancelled.store(true, Ordering::Relaxed);
                    if !begun.load(Ordering::Relaxed) {
                        return Err(interrupt);
                    }
                    INTERRUPTED.store(true, Ordering::Relaxed);
                    // It ends soon, and leaves nothing half-written.
                    while matches!(py.detach(heard), Err(RecvTimeoutError::Timeout)) {}
                    return Err(interrupt);
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(crate::error::EnvironmentFailed::new_err("the command broke off"));
            }
        }
    }
}

/// Writes the plan of what an engine's ranks hold of `plan` to `adapted`, and returns the engine's tensors on `rank` as JSON.
#[pyfunction]
#[pyo3(signature = (plan, engine, rank, adapted, checkpoint = None, stages = None))]
pub(crate) fn engine_tensors(
    py: Python<'_>,
    plan: &str,
    engine: &str,
    rank: u32,
    adapted: &str,
    checkpoint: Option<&str>,
    stages: Option<Vec<u64>>,
) -> PyResult<String> {
    let (plan, checkpoint, adapted) = (Path::new(plan), checkpoint.map(Path::new), Path::new(adapted));
    py.detach(move || shardwright::engine_tensors(plan, checkpoint, engine, rank, adapted, stages.as_deref()))
        .map_err(exception)
}
