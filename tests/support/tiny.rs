//! Llama-shaped checkpoints as headers over holes: valid as they are made, for tests to break one thing.

use serde_json::{Map, Value, json};
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// The dimensions of a Llama-shaped model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dims {
    pub(crate) hidden: u64,
    pub(crate) intermediate: u64,
    pub(crate) layers: u64,
    pub(crate) heads: u64,
    pub(crate) kv_heads: u64,
    pub(crate) head_size: u64,
    pub(crate) vocabulary: u64,
}

/// Small, and everything divides by 2 and 4.
pub(crate) const TINY: Dims =
    Dims { hidden: 16, intermediate: 32, layers: 2, heads: 4, kv_heads: 2, head_size: 4, vocabulary: 24 };

/// Llama 3.1 70B.
pub(crate) const LLAMA_70B: Dims = Dims {
    hidden: 8192,
    intermediate: 28672,
    layers: 80,
    heads: 64,
    kv_heads: 8,
    head_size: 128,
    vocabulary: 128_256,
};

/// Qwen2 7B.
pub(crate) const QWEN2_7B: Dims = Dims {
    hidden: 3584,
    intermediate: 18944,
    layers: 28,
    heads: 28,
    kv_heads: 4,
    head_size: 128,
    vocabulary: 152_064,
};

/// A tensor's name and shape; all are bf16.
pub(crate) type Named = (String, Vec<u64>);

impl Dims {
    /// The tensors in the order of the model.
    pub(crate) fn tensors(self) -> Vec<Named> {
        let (hidden, inner) = (self.hidden, self.intermediate);
        let (query, kv) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocabulary, hidden])];
        for layer in 0..self.layers {
            let of_layer = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![query, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, query]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
            ];
            all.extend(of_layer.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
        }
        all.push(("model.norm.weight".to_owned(), vec![hidden]));
        all.push(("lm_head.weight".to_owned(), vec![self.vocabulary, hidden]));
        all
    }

    /// The `config.json` of a model of this type.
    pub(crate) fn config(self, model_type: &str) -> Value {
        json!({
            "model_type": model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": false,
        })
    }
}

/// A header that lays `tensors` one after the other, and how many bytes of data it describes.
pub(crate) fn header(tensors: &[Named]) -> (Map<String, Value>, u64) {
    let mut end = 0;
    let mut header = Map::new();
    for (name, shape) in tensors {
        let bytes = 2 * shape.iter().product::<u64>();
        header.insert(
            name.clone(),
            json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + bytes]}),
        );
        end += bytes;
    }
    (header, end)
}

/// Writes a safetensors file: `header` as it stands, then a hole of `data` bytes.
pub(crate) fn write_file(path: &Path, header: &str, data: u64) {
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + data).unwrap();
}

/// Writes `tensors` as one safetensors file.
pub(crate) fn write_tensors(path: &Path, tensors: &[Named]) {
    let (header, data) = header(tensors);
    write_file(path, &Value::from(header).to_string(), data);
}

/// A checkpoint in a folder of its own, which is removed in the end.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    root: TempDir,
    pub(crate) path: PathBuf,
}

impl Checkpoint {
    /// An empty folder.
    pub(crate) fn empty() -> Self {
        let root = TempDir::new().unwrap();
        let path = root.path().join("model");
        fs::create_dir(&path).unwrap();
        Self { root, path }
    }

    /// One file, and its configuration.
    pub(crate) fn new(dims: Dims, model_type: &str) -> Self {
        let checkpoint = Self::empty();
        write_tensors(&checkpoint.file("model.safetensors"), &dims.tensors());
        checkpoint.write_config(&dims.config(model_type));
        checkpoint
    }

    /// A tiny Llama in one file.
    pub(crate) fn tiny() -> Self {
        Self::new(TINY, "llama")
    }

    /// Several files with an index.
    pub(crate) fn sharded(dims: Dims, files: usize) -> Self {
        let checkpoint = Self::empty();
        let tensors = dims.tensors();
        let mut weight_map = Map::new();
        for number in 0..files {
            let part = &tensors[number * tensors.len() / files..(number + 1) * tensors.len() / files];
            let name = format!("model-{:05}-of-{files:05}.safetensors", number + 1);
            write_tensors(&checkpoint.file(&name), part);
            weight_map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), Value::from(name.clone()))));
        }
        checkpoint.write_index(&json!({ "metadata": {}, "weight_map": weight_map }));
        checkpoint.write_config(&dims.config("llama"));
        checkpoint
    }

    /// The path of a file of the checkpoint.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A path beside the checkpoint's folder, removed with it.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn write_config(&self, config: &Value) {
        fs::write(self.file("config.json"), config.to_string()).unwrap();
    }

    pub(crate) fn write_index(&self, index: &Value) {
        fs::write(self.file("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    /// Changes one entry of the configuration; `null` counts as absent.
    pub(crate) fn configure(&self, key: &str, value: impl Into<Value>) {
        let mut config = self.read_json("config.json");
        config[key] = value.into();
        self.write_config(&config);
    }

    /// Changes where the index says that a tensor lies.
    pub(crate) fn list(&self, tensor: &str, file: &str) {
        let mut index = self.read_json("model.safetensors.index.json");
        index["weight_map"][tensor] = file.into();
        self.write_index(&index);
    }

    fn read_json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.file(name)).unwrap()).unwrap()
    }
}
