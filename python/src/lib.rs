//! The extension module: commands as calls, and a rank's weights as tensors. What people use is the Python package around it.

mod command;
mod dlpack;
mod error;
mod into;
mod loading;
mod tensor;

use pyo3::prelude::*;

#[pymodule]
fn _shardwright(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    error::add(module)?;
    module.add_function(wrap_pyfunction!(command::call, module)?)?;
    module.add_function(wrap_pyfunction!(command::engine_tensors, module)?)?;
    module.add_class::<loading::Loading>()?;
    module.add_class::<tensor::Tensor>()
}
