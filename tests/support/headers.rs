//! Checkpoints whose headers real tools wrote, kept as JSON: made again as headers over holes.

use super::tiny::write_file;
use serde_json::{Map, Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A checkpoint in a folder of its own, which is removed in the end.
#[derive(Debug)]
pub(crate) struct Headers {
    root: TempDir,
    /// The whole fixture.
    pub(crate) fixture: Value,
}

impl Headers {
    /// The checkpoint of a fixture: `config`, and `tensors` with the dtype and shape of each.
    pub(crate) fn of(fixture: Value) -> Self {
        let headers = Self { root: TempDir::new().unwrap(), fixture };
        headers.write();
        headers
    }

    /// The checkpoint that a fixture file keeps.
    pub(crate) fn read(path: &Path) -> Self {
        Self::of(serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap())
    }

    /// Where it lies.
    pub(crate) fn path(&self) -> PathBuf {
        self.root.path().join("model")
    }

    /// A path beside the checkpoint's folder, removed with it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The names of the tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.fixture["tensors"].as_object().unwrap().keys()
    }

    /// Writes it anew after `change` was made to the fixture.
    pub(crate) fn changed(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.fixture);
        self.write();
        self
    }

    /// The same with bytes of no pattern in place of the hole.
    pub(crate) fn filled(self) -> Self {
        let file = self.path().join("model.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        let header = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for byte in &mut bytes[8 + header..] {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[3];
        }
        fs::write(&file, bytes).unwrap();
        self
    }

    fn write(&self) {
        let folder = self.path();
        fs::create_dir_all(&folder).unwrap();
        let mut end = 0;
        let mut header = Map::new();
        for (name, tensor) in self.fixture["tensors"].as_object().unwrap() {
            let shape = tensor[1].as_array().unwrap();
            let elements: u64 = shape.iter().map(|size| size.as_u64().unwrap()).product();
            let bytes = elements * bits(tensor[0].as_str().unwrap()) / 8;
            header.insert(
                name.clone(),
                json!({"dtype": tensor[0], "shape": shape, "data_offsets": [end, end + bytes]}),
            );
            end += bytes;
        }
        write_file(&folder.join("model.safetensors"), &Value::from(header).to_string(), end);
        fs::write(folder.join("config.json"), self.fixture["config"].to_string()).unwrap();
    }
}

fn bits(dtype: &str) -> u64 {
    match dtype {
        "F64" | "I64" | "U64" | "C64" => 64,
        "F32" | "I32" | "U32" => 32,
        "F16" | "BF16" | "I16" | "U16" => 16,
        _ => 8,
    }
}
