//! What a caller brings to a load: memory for tensors, and what connects the ranks.

use crate::dlpack::{self, Borrowed, CPU, CUDA};
use pyo3::{
    exceptions::{PyBufferError, PyValueError},
    prelude::*,
    types::{PyByteArray, PyByteArrayMethods, PyDict},
};
use shardwright::Brought;
use shardwright_loader::{
    collective::{Group, Reduce},
    load::{Lent, LentTensor},
};
use shardwright_planner::checkpoint::Dtype;
use std::{collections::BTreeMap, sync::Arc};

/// Tensors to load into, by their names in the checkpoint: the device that all of them are on, in the command line's word, and what the
/// load is given of them.
pub(crate) fn brought(into: &Bound<'_, PyDict>) -> PyResult<(Option<&'static str>, Brought)> {
    let mut tensors = BTreeMap::new();
    let mut kept: Vec<Borrowed> = Vec::new();
    let mut device: Option<(i32, i32)> = None;
    for (name, tensor) in into {
        let name: String = name.extract()?;
        let (borrowed, view) = dlpack::borrow(&name, &tensor)?;
        kept.push(borrowed);
        if view.device != *device.get_or_insert(view.device) {
            return Err(PyValueError::new_err(format!(
                "{name} is on another device than the tensors before it"
            )));
        }
        let dtype = Some(view.dtype).filter(|&dtype| dtype != Dtype::U8);
        tensors.insert(name, LentTensor { address: view.address, bytes: view.bytes, dtype });
    }
    let (word, gpu) = match device {
        None => return Ok((None, Brought::default())),
        Some((CPU, _)) => ("host", None),
        Some((CUDA, number)) => ("cuda", u32::try_from(number).ok()),
        Some((kind, _)) => {
            return Err(PyBufferError::new_err(format!(
                "nothing can be loaded into tensors on DLPack's device {kind}"
            )));
        }
    };
    let mut places: Vec<(&String, LentTensor)> = tensors.iter().map(|(name, &lent)| (name, lent)).collect();
    places.sort_by_key(|(_, lent)| lent.address);
    if let Some([(first, _), (second, _)]) =
        places.windows(2).find(|pair| pair[0].1.address.saturating_add(pair[0].1.bytes) > pair[1].1.address)
    {
        return Err(PyValueError::new_err(format!(
            "{first} and {second} are to be loaded into the same memory"
        )));
    }
    // SAFETY: they are tensors of the device, none of which overlap, which are borrowed until the load's memory is dropped, and were given
    // to be written to.
    let lent = unsafe { Lent::new(tensors, Arc::new(kept)) };
    Ok((Some(word), Brought { lent, gpu, group: None }))
}

/// A function that combines numbers of all ranks: `all_reduce(bytearray, "sum" | "min" | "max")`, of signed 64-bit numbers in this machine's
/// order of bytes, in place.
pub(crate) struct Called(pub(crate) Py<PyAny>);

/// What turns the order of unsigned numbers into that of signed ones.
const SIGN: u64 = 1 << 63;

impl Group for Called {
    fn all_reduce(&self, values: &mut [u64], reduce: Reduce) -> Result<(), String> {
        let (word, turn) = match reduce {
            Reduce::Sum => ("sum", 0),
            Reduce::Min => ("min", SIGN),
            Reduce::Max => ("max", SIGN),
        };
        let bytes: Vec<u8> = values.iter().flat_map(|value| (value ^ turn).to_ne_bytes()).collect();
        let combined = Python::attach(|py| -> PyResult<Vec<u8>> {
            let buffer = PyByteArray::new(py, &bytes);
            self.0.call1(py, (&buffer, word))?;
            Ok(buffer.to_vec())
        });
        let combined = combined.map_err(|error| format!("its process group could not sum up: {error}"))?;
        if combined.len() != bytes.len() {
            return Err("its process group changed how many numbers there are".to_owned());
        }
        for (value, bytes) in values.iter_mut().zip(combined.as_chunks::<8>().0) {
            *value = u64::from_ne_bytes(*bytes) ^ turn;
        }
        Ok(())
    }
}
