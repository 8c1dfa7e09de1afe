//! A tensor of a rank's memory, for whoever knows DLPack.

use crate::dlpack;
use pyo3::{exceptions::PyBufferError, prelude::*, types::PyTuple};
use shardwright_loader::device::{DeviceMemory, Place};
use shardwright_planner::checkpoint::Dtype;
use std::sync::Arc;

/// A tensor that lies in a rank's memory. The memory goes when the last tensor of it, and the last view of any, has gone.
#[pyclass(frozen, module = "shardwright")]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) tensor_shape: Vec<u64>,
    pub(crate) tensor_bytes: u64,
    pub(crate) address: u64,
    pub(crate) memory: Arc<dyn DeviceMemory>,
}

#[pymethods]
impl Tensor {
    /// Its name in the checkpoint.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// What the rank holds of it, padding included.
    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.tensor_shape)
    }

    /// Its dtype, in safetensors' words: `BF16`, `F8_E4M3`.
    #[getter]
    fn dtype(&self) -> String {
        self.dtype.to_string()
    }

    /// Its bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.tensor_bytes
    }

    /// `cpu`, or `cuda:0`.
    #[getter]
    fn device(&self) -> String {
        match self.memory.place() {
            Place::Cuda { ordinal, .. } => format!("cuda:{ordinal}"),
            Place::Host { .. } | Place::Files => "cpu".to_owned(),
        }
    }

    /// DLPack's numbers for the device: its kind, and which one.
    fn __dlpack_device__(&self) -> (i32, i32) {
        dlpack::device(&self.memory.place())
    }

    /// A capsule of the tensor, without a copy. What has been loaded has arrived: no stream need wait.
    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        slf: &Bound<'py, Self>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (_, _) = (stream, max_version);
        let this = slf.get();
        if dl_device.is_some_and(|wanted| wanted != dlpack::device(&this.memory.place())) {
            return Err(PyBufferError::new_err(format!(
                "{} is on {}, and is not copied",
                this.name,
                this.device()
            )));
        }
        if copy == Some(true) {
            return Err(PyBufferError::new_err("a tensor is lent, not copied: copy the view"));
        }
        let memory = Arc::clone(&this.memory);
        dlpack::capsule(slf.py(), memory, this.address, this.dtype, &this.tensor_shape)
    }

    fn __repr__(&self) -> String {
        let shape: Vec<String> = self.tensor_shape.iter().map(u64::to_string).collect();
        format!(
            "<shardwright.Tensor {} {} [{}] on {}>",
            self.name,
            self.dtype,
            shape.join(", "),
            self.device()
        )
    }
}
