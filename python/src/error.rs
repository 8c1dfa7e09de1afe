//! Exceptions, one for each exit code of the program.

use pyo3::{create_exception, exceptions::PyException, prelude::*};
use shardwright::CallError;

create_exception!(
    shardwright,
    ShardwrightError,
    PyException,
    "What shardwright could not do, in the command line's words."
);
create_exception!(
    shardwright,
    AnswerIsNo,
    ShardwrightError,
    "The answer is no: it does not fit, does not verify, is no plan."
);
create_exception!(shardwright, UsageError, ShardwrightError, "Wrong usage.");
create_exception!(
    shardwright,
    BadInput,
    ShardwrightError,
    "A file that cannot be believed, or is not there."
);
create_exception!(
    shardwright,
    EnvironmentFailed,
    ShardwrightError,
    "The environment failed: no memory, no device, a disk."
);

pub(crate) fn add(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("ShardwrightError", py.get_type::<ShardwrightError>())?;
    module.add("AnswerIsNo", py.get_type::<AnswerIsNo>())?;
    module.add("UsageError", py.get_type::<UsageError>())?;
    module.add("BadInput", py.get_type::<BadInput>())?;
    module.add("EnvironmentFailed", py.get_type::<EnvironmentFailed>())
}

/// The exception for what a command ended with.
pub(crate) fn exception(error: CallError) -> PyErr {
    match error.code {
        1 => AnswerIsNo::new_err(error.message),
        2 => UsageError::new_err(error.message),
        3 => BadInput::new_err(error.message),
        _ => EnvironmentFailed::new_err(error.message),
    }
}
