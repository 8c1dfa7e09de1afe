//! Slices cut out of safetensors files element by element: slow, and plain enough to be believed.

use super::listing;
use safetensors::SafeTensors;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fs, path::Path};

/// A tensor as Python's `safetensors` saw it, or as `slices` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// What a rank holds of a tensor, with just the keys that the contract has.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Held {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) boxes: Vec<Box>,
    #[serde(default)]
    pub(crate) pad_rows: usize,
}

/// Half-open in every dimension.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Box {
    pub(crate) start: Vec<usize>,
    pub(crate) stop: Vec<usize>,
}

/// The `tensors` of what `slices` prints.
pub(crate) fn held(printed: &serde_json::Value) -> BTreeMap<String, Held> {
    BTreeMap::deserialize(&printed["tensors"]).unwrap()
}

/// Every tensor of the checkpoint in `folder`, as the `safetensors` crate reads them.
pub(crate) fn read_checkpoint(folder: &Path) -> BTreeMap<String, Tensor> {
    read_files(folder, "")
}

/// Every tensor of the files in `folder` whose names begin with `start`.
pub(crate) fn read_files(folder: &Path, start: &str) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    let is_one = |name: &&String| name.starts_with(start) && name.ends_with(".safetensors");
    for file in listing(folder).iter().filter(is_one) {
        let bytes = fs::read(folder.join(file)).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let dtype = format!("{:?}", view.dtype());
            let tensor = Tensor { dtype, shape: view.shape().to_vec(), bytes: view.data().to_vec() };
            assert!(all.insert(name, tensor).is_none());
        }
    }
    all
}

impl Tensor {
    fn element_bytes(&self) -> usize {
        self.bytes.len() / self.shape.iter().product::<usize>()
    }

    pub(crate) fn sha256(&self) -> String {
        Sha256::digest(&self.bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What `held` says of this tensor: its boxes one after the other, then rows of zeros.
    pub(crate) fn cut(&self, held: &Held) -> Self {
        let parts: Vec<Self> = held.boxes.iter().map(|region| self.cut_box(region)).collect();
        let mut joined = join(&parts, &held.shape);
        if held.pad_rows > 0 {
            let row = held.shape[1..].iter().product::<usize>() * self.element_bytes();
            joined.bytes.resize(joined.bytes.len() + held.pad_rows * row, 0);
            joined.shape[0] += held.pad_rows;
        }
        assert_eq!((&joined.shape, &joined.dtype), (&held.shape, &held.dtype));
        joined
    }

    fn cut_box(&self, region: &Box) -> Self {
        assert_eq!((region.start.len(), region.stop.len()), (self.shape.len(), self.shape.len()));
        let extents: Vec<usize> = region.start.iter().zip(&region.stop).map(|(a, b)| b - a).collect();
        let width = self.element_bytes();
        let mut bytes = Vec::new();
        for number in 0..extents.iter().product() {
            let mut place = index(number, &extents);
            place.iter_mut().zip(&region.start).for_each(|(index, start)| *index += start);
            assert!(
                place.iter().zip(&self.shape).all(|(index, size)| index < size),
                "{region:?} leaves the tensor"
            );
            let at = number_of(&place, &self.shape) * width;
            bytes.extend_from_slice(&self.bytes[at..at + width]);
        }
        Self { dtype: self.dtype.clone(), shape: extents, bytes }
    }
}

/// Lays `parts` one after the other along the dimension in which they differ from `whole`.
pub(crate) fn join(parts: &[Tensor], whole: &[usize]) -> Tensor {
    let first = &parts[0];
    let dim = (0..whole.len()).find(|&dim| first.shape[dim] != whole[dim]).unwrap_or(0);
    let mut shape = first.shape.clone();
    shape[dim] = parts.iter().map(|part| part.shape[dim]).sum();
    let width = first.element_bytes();
    let mut bytes = vec![0; shape.iter().product::<usize>() * width];
    let mut before = 0;
    for part in parts {
        for (number, element) in part.bytes.chunks(width).enumerate() {
            let mut place = index(number, &part.shape);
            place[dim] += before;
            let at = number_of(&place, &shape) * width;
            bytes[at..at + width].copy_from_slice(element);
        }
        before += part.shape[dim];
    }
    Tensor { dtype: first.dtype.clone(), shape, bytes }
}

/// The coordinates of the element with this number, row by row.
fn index(mut number: usize, shape: &[usize]) -> Vec<usize> {
    let mut place = vec![0; shape.len()];
    for dim in (0..shape.len()).rev() {
        place[dim] = number % shape[dim];
        number /= shape[dim];
    }
    place
}

fn number_of(place: &[usize], shape: &[usize]) -> usize {
    place.iter().zip(shape).fold(0, |number, (index, size)| number * size + index)
}
