//! Loading one rank, tensor by tensor as they are ready.

use crate::{
    command::TICK,
    error::{EnvironmentFailed, UsageError, exception},
    into::{Called, brought},
    tensor::Tensor,
};
use pyo3::{exceptions::PyValueError, prelude::*, types::PyDict};
use shardwright::{Brought, LoadRequest, Loaded, load_rank};
use shardwright_loader::{
    collective::Group,
    load::{OnReady, Progress, Ready},
};
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
};

/// What the thread that loads says.
enum Event {
    Ready(Vec<Tensor>),
    Done(Result<Loaded, shardwright::CallError>),
}

/// A rank that is being loaded: an iterator over its tensors in the order in which they are ready, verified where that is asked for.
#[pyclass(module = "shardwright")]
pub(crate) struct Loading {
    // Python objects are shared between threads; what is in a channel is not.
    events: Mutex<Receiver<Event>>,
    ready: Mutex<VecDeque<Tensor>>,
    interrupted: Arc<AtomicBool>,
    progress: Arc<Progress>,
    loaded: Mutex<Option<Loaded>>,
}

#[pymethods]
impl Loading {
    #[new]
    #[pyo3(signature = (plan, rank, checkpoint = None, device = "auto", verify = "full", io = "auto", threads = 0, rendezvous = None, into = None, all_reduce = None, patience = None))]
    // Python names them.
    #[allow(clippy::too_many_arguments)]
    fn new(
        plan: String,
        rank: u32,
        checkpoint: Option<String>,
        device: &str,
        verify: &str,
        io: &str,
        threads: usize,
        rendezvous: Option<String>,
        into: Option<&Bound<'_, PyDict>>,
        all_reduce: Option<Py<PyAny>>,
        patience: Option<u64>,
    ) -> PyResult<Self> {
        let (lent_on, mut brought) = into.map_or_else(|| Ok((None, Brought::default())), brought)?;
        if let Some(lent_on) = lent_on.filter(|lent_on| !["auto", lent_on].contains(&device)) {
            return Err(PyValueError::new_err(format!(
                "device is {device}, and the tensors of `into` are on {lent_on}"
            )));
        }
        let device = lent_on.unwrap_or(device);
        brought.group = all_reduce.map(|call| Arc::new(Called(call)) as Arc<dyn Group>);
        let (events, heard) = mpsc::channel();
        let interrupted: Arc<AtomicBool> = Arc::default();
        let progress: Arc<Progress> = Arc::default();
        let request = LoadRequest {
            plan: plan.into(),
            checkpoint: checkpoint.map(Into::into),
            rank,
            rendezvous,
            device: device.to_owned(),
            verify: verify.to_owned(),
            io: io.to_owned(),
            threads,
            brought,
            patience,
            interrupted: Arc::clone(&interrupted),
            on_ready: on_ready(events.clone()),
        };
        request.check().map_err(|error| UsageError::new_err(error.message))?;
        let counted = Arc::clone(&progress);
        let work = move || {
            // Nobody may be left to hear of it.
            let _ = events.send(Event::Done(load_rank(&request, &counted)));
        };
        std::thread::Builder::new().spawn(work)?;
        Ok(Self {
            events: Mutex::new(heard),
            ready: Mutex::default(),
            interrupted,
            progress,
            loaded: Mutex::default(),
        })
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    /// The next tensor; waits until there is one.
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Tensor>> {
        loop {
            if let Some(tensor) = self.ready.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                return Ok(Some(tensor));
            }
            if self.loaded.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
                return Ok(None);
            }
            if !self.hear(py)? {
                py.check_signals().inspect_err(|_| self.interrupted.store(true, Ordering::Relaxed))?;
            }
        }
    }

    /// Waits a moment for what is ready; false when there was nothing.
    fn hear(&self, py: Python<'_>) -> PyResult<bool> {
        let event =
            py.detach(|| self.events.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(TICK));
        match event {
            Ok(Event::Ready(tensors)) => {
                self.ready.lock().unwrap_or_else(PoisonError::into_inner).extend(tensors);
                Ok(true)
            }
            Ok(Event::Done(Ok(loaded))) => {
                *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(loaded);
                Ok(true)
            }
            Ok(Event::Done(Err(error))) => Err(exception(error)),
            Err(RecvTimeoutError::Timeout) => Ok(false),
            Err(RecvTimeoutError::Disconnected) => Err(EnvironmentFailed::new_err("the load broke off")),
        }
    }

    /// Bytes that have been read so far.
    #[getter]
    fn bytes(&self) -> u64 {
        self.progress.bytes()
    }

    /// What loading took, when it has ended: `bytes`, `seconds`, `verified_tensors`, `files`.
    #[getter]
    fn report<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(loaded) = loaded.as_ref() else { return Ok(None) };
        let report = PyDict::new(py);
        report.set_item("bytes", loaded.bytes)?;
        report.set_item("seconds", loaded.seconds)?;
        report.set_item("verified_tensors", loaded.verified_tensors)?;
        report.set_item("files", &loaded.how)?;
        Ok(Some(report))
    }

    /// Has the load end before all is there.
    fn stop(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }
}

fn on_ready(events: Sender<Event>) -> OnReady {
    let events = Mutex::new(events);
    OnReady::new(move |ready: Ready<'_>| {
        let tensors = ready.tensors.iter().map(|tensor| Tensor {
            name: tensor.name.to_owned(),
            dtype: tensor.dtype,
            tensor_shape: tensor.shape.to_vec(),
            tensor_bytes: tensor.bytes,
            address: tensor.address,
            memory: Arc::clone(ready.memory),
        });
        let tensors = tensors.collect();
        // Who does not listen any more gets nothing.
        let _ = events.lock().unwrap_or_else(PoisonError::into_inner).send(Event::Ready(tensors));
    })
}
