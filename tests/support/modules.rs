//! Checkpoints made module by module, plain or quantised, as headers of real sizes over holes.

use super::headers::Headers;
use serde_json::{Map, Value, json};

/// How a linear layer's weights are stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    Bf16,
    /// 4 bit, packed along the inputs, with a scale for that many.
    Gptq(u64),
    /// 4 bit, packed along the outputs, with a scale for that many inputs.
    Awq(u64),
    /// A scale for each block of that many outputs and inputs.
    Fp8(u64),
}

/// A checkpoint in the making.
#[derive(Debug, Default)]
pub(crate) struct Modules {
    tensors: Map<String, Value>,
}

impl Modules {
    /// Adds a tensor.
    pub(crate) fn tensor(&mut self, name: &str, dtype: &str, shape: &[u64]) {
        self.tensors.insert(name.to_owned(), json!([dtype, shape]));
    }

    /// Adds a linear layer.
    pub(crate) fn linear(&mut self, name: &str, form: Form, out: u64, input: u64) {
        let mut add = |parameter: &str, dtype: &str, shape: [u64; 2]| {
            self.tensors.insert(format!("{name}.{parameter}"), json!([dtype, shape]));
        };
        match form {
            Form::Bf16 => add("weight", "BF16", [out, input]),
            Form::Gptq(group) => {
                add("qweight", "I32", [input / 8, out]);
                add("qzeros", "I32", [input / group, out / 8]);
                add("scales", "F16", [input / group, out]);
                self.tensor(&format!("{name}.g_idx"), "I32", &[input]);
            }
            Form::Awq(group) => {
                add("qweight", "I32", [input, out / 8]);
                add("qzeros", "I32", [input / group, out / 8]);
                add("scales", "F16", [input / group, out]);
            }
            Form::Fp8(block) => {
                add("weight", "F8_E4M3", [out, input]);
                add("weight_scale_inv", "F32", [out.div_ceil(block), input.div_ceil(block)]);
            }
        }
    }

    /// Adds the attention of a Llama in layer `layer`.
    pub(crate) fn attention(&mut self, layer: u64, form: Form, hidden: u64, [heads, kv, size]: [u64; 3]) {
        let of = |module: &str| format!("model.layers.{layer}.self_attn.{module}");
        self.linear(&of("q_proj"), form, heads * size, hidden);
        self.linear(&of("k_proj"), form, kv * size, hidden);
        self.linear(&of("v_proj"), form, kv * size, hidden);
        self.linear(&of("o_proj"), form, hidden, heads * size);
        self.tensor(&format!("model.layers.{layer}.input_layernorm.weight"), "BF16", &[hidden]);
        self.tensor(&format!("model.layers.{layer}.post_attention_layernorm.weight"), "BF16", &[hidden]);
    }

    /// Adds a gated feed-forward layer.
    pub(crate) fn feed_forward(&mut self, name: &str, form: Form, hidden: u64, inner: u64) {
        self.linear(&format!("{name}.gate_proj"), form, inner, hidden);
        self.linear(&format!("{name}.up_proj"), form, inner, hidden);
        self.linear(&format!("{name}.down_proj"), form, hidden, inner);
    }

    /// Adds embedding, last norm and head.
    pub(crate) fn ends(&mut self, vocabulary: u64, hidden: u64) {
        self.tensor("model.embed_tokens.weight", "BF16", &[vocabulary, hidden]);
        self.tensor("model.norm.weight", "BF16", &[hidden]);
        self.tensor("lm_head.weight", "BF16", &[vocabulary, hidden]);
    }

    /// The checkpoint, with this configuration.
    pub(crate) fn with(self, config: &Value) -> Headers {
        Headers::of(json!({ "config": config, "tensors": self.tensors }))
    }
}

/// The configuration of a Llama-like model of two layers.
pub(crate) fn llama_like(
    model_type: &str,
    hidden: u64,
    inner: u64,
    [heads, kv, size]: [u64; 3],
    vocabulary: u64,
) -> Value {
    json!({
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": size,
        "vocab_size": vocabulary,
        "tie_word_embeddings": false,
    })
}

/// A Llama-like model of two layers, all of whose linear layers are stored in `form`.
pub(crate) fn two_layers(form: Form, config: &Value) -> Headers {
    let number = |key: &str| config[key].as_u64().unwrap();
    let hidden = number("hidden_size");
    let heads = ["num_attention_heads", "num_key_value_heads", "head_dim"].map(number);
    let mut modules = Modules::default();
    for layer in 0..2 {
        modules.attention(layer, form, hidden, heads);
        modules.feed_forward(&format!("model.layers.{layer}.mlp"), form, hidden, number("intermediate_size"));
    }
    modules.ends(number("vocab_size"), hidden);
    modules.with(config)
}
