"""What models are made of: for each `model_type` a function that gives the modules of one layer.

Names and shapes are those of the checkpoints on the hub. The order is mostly that of the model's code, as it decides in
which file a tensor ends up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from skeletons.storage import Config, Experts, Linear, Module, Parameter, Tensor, stored

# Gives the modules of the layer with this number.
LayerOf = Callable[[Config, int], Iterator[Module]]


def head_dim(config: Config) -> int:
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def norm(name: str, size: int) -> Parameter:
    return Parameter(f"{name}.weight", (size,))


def layer_norms(config: Config, layer: int) -> Iterator[Module]:
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield norm(f"model.layers.{layer}.{name}", config["hidden_size"])


def attention(config: Config, layer: int, *, qkv_bias: bool = False, o_bias: bool = False) -> Iterator[Linear]:
    """Query, key, value and output, with fewer key/value heads where the config says so."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    query = heads * head_dim(config)
    # The first LLaMA does not have the key.
    kv = config.get("num_key_value_heads", heads) * head_dim(config)
    prefix = f"model.layers.{layer}.self_attn"
    yield Linear(f"{prefix}.q_proj", query, hidden, qkv_bias)
    yield Linear(f"{prefix}.k_proj", kv, hidden, qkv_bias)
    yield Linear(f"{prefix}.v_proj", kv, hidden, qkv_bias)
    yield Linear(f"{prefix}.o_proj", hidden, query, o_bias)


def gated(prefix: str, hidden: int, intermediate: int, names: str = "gate_proj up_proj down_proj") -> Iterator[Linear]:
    """A gated feed-forward block. `names` are those of its gate, its other input and its output."""
    gate, up, down = names.split()
    yield Linear(f"{prefix}.{gate}", intermediate, hidden)
    yield Linear(f"{prefix}.{up}", intermediate, hidden)
    yield Linear(f"{prefix}.{down}", hidden, intermediate)


def llama(config: Config, layer: int) -> Iterator[Module]:
    yield from attention(config, layer)
    yield from gated(f"model.layers.{layer}.mlp", config["hidden_size"], config["intermediate_size"])
    yield from layer_norms(config, layer)


def qwen2(config: Config, layer: int) -> Iterator[Module]:
    # No key of the config tells of the biases: they come with the family.
    yield from attention(config, layer, qkv_bias=True)
    yield from gated(f"model.layers.{layer}.mlp", config["hidden_size"], config["intermediate_size"])
    yield from layer_norms(config, layer)


def normed_attention(config: Config, layer: int) -> Iterator[Module]:
    """Attention with a norm over each head of queries and keys."""
    yield from attention(config, layer)
    for name in ("q_norm", "k_norm"):
        yield norm(f"model.layers.{layer}.self_attn.{name}", head_dim(config))


def qwen3(config: Config, layer: int) -> Iterator[Module]:
    yield from normed_attention(config, layer)
    yield from gated(f"model.layers.{layer}.mlp", config["hidden_size"], config["intermediate_size"])
    yield from layer_norms(config, layer)


def qwen3_moe(config: Config, layer: int) -> Iterator[Module]:
    hidden, experts = config["hidden_size"], config["num_experts"]
    prefix = f"model.layers.{layer}"
    yield from normed_attention(config, layer)
    for expert in range(experts):
        yield from gated(f"{prefix}.mlp.experts.{expert}", hidden, config["moe_intermediate_size"])
    yield Parameter(f"{prefix}.mlp.gate.weight", (experts, hidden))
    yield from layer_norms(config, layer)


def mixtral(config: Config, layer: int) -> Iterator[Module]:
    hidden, experts = config["hidden_size"], config["num_local_experts"]
    prefix = f"model.layers.{layer}.block_sparse_moe"
    yield from attention(config, layer)
    yield Parameter(f"{prefix}.gate.weight", (experts, hidden))
    for expert in range(experts):
        w1, w3, w2 = gated(f"{prefix}.experts.{expert}", hidden, config["intermediate_size"], "w1 w3 w2")
        yield from (w1, w2, w3)
    yield from layer_norms(config, layer)


def deepseek_v3(config: Config, layer: int) -> Iterator[Module]:
    hidden, prefix = config["hidden_size"], f"model.layers.{layer}"
    yield from latent_attention(config, f"{prefix}.self_attn")
    if layer < config["first_k_dense_replace"]:
        yield from gated(f"{prefix}.mlp", hidden, config["intermediate_size"])
    else:
        experts, intermediate = config["n_routed_experts"], config["moe_intermediate_size"]
        for expert in range(experts):
            yield from gated(f"{prefix}.mlp.experts.{expert}", hidden, intermediate)
        yield Parameter(f"{prefix}.mlp.gate.weight", (experts, hidden))
        yield Parameter(f"{prefix}.mlp.gate.e_score_correction_bias", (experts,), "F32")
        yield from gated(f"{prefix}.mlp.shared_experts", hidden, config["n_shared_experts"] * intermediate)
    yield from layer_norms(config, layer)


def latent_attention(config: Config, prefix: str) -> Iterator[Module]:
    """Multi-head latent attention: queries, and keys with values, go through a narrow projection each."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    q_rank, kv_rank = config["q_lora_rank"], config["kv_lora_rank"]
    yield Linear(f"{prefix}.q_a_proj", q_rank, hidden)
    yield norm(f"{prefix}.q_a_layernorm", q_rank)
    yield Linear(f"{prefix}.q_b_proj", heads * (nope + rope), q_rank)
    yield Linear(f"{prefix}.kv_a_proj_with_mqa", kv_rank + rope, hidden)
    yield norm(f"{prefix}.kv_a_layernorm", kv_rank)
    yield Linear(f"{prefix}.kv_b_proj", heads * (nope + value), kv_rank)
    yield Linear(f"{prefix}.o_proj", hidden, heads * value)


def deepseek_v3_nextn(config: Config, layer: int) -> Iterator[Module]:
    """A multi-token prediction layer: one layer more with its own copies of the embedding and the head."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    prefix = f"model.layers.{layer}"
    yield Parameter(f"{prefix}.embed_tokens.weight", (vocabulary, hidden))
    yield norm(f"{prefix}.enorm", hidden)
    yield norm(f"{prefix}.hnorm", hidden)
    # Never quantised, unlike the projections of the layer itself.
    yield Parameter(f"{prefix}.eh_proj.weight", (hidden, 2 * hidden))
    yield from deepseek_v3(config, layer)
    yield norm(f"{prefix}.shared_head.norm", hidden)
    yield Parameter(f"{prefix}.shared_head.head.weight", (vocabulary, hidden))


def gpt_oss(config: Config, layer: int) -> Iterator[Module]:
    hidden, intermediate, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    prefix = f"model.layers.{layer}"
    yield Parameter(f"{prefix}.self_attn.sinks", (config["num_attention_heads"],))
    yield from attention(config, layer, qkv_bias=True, o_bias=True)
    yield Parameter(f"{prefix}.mlp.router.weight", (experts, hidden))
    yield Parameter(f"{prefix}.mlp.router.bias", (experts,))
    # Rows of gate and up take turns.
    yield Experts(f"{prefix}.mlp.experts.gate_up_proj", experts, 2 * intermediate, hidden)
    yield Experts(f"{prefix}.mlp.experts.down_proj", experts, hidden, intermediate)
    yield from layer_norms(config, layer)


LAYERS: dict[str, LayerOf] = {
    "llama": llama,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "qwen3_moe": qwen3_moe,
    "mixtral": mixtral,
    "deepseek_v3": deepseek_v3,
    "gpt_oss": gpt_oss,
}


def modules_of(config: Config, inv_freq: bool) -> Iterator[Module]:
    hidden, vocabulary, layers = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    layer_of = LAYERS[config["model_type"]]
    yield Parameter("model.embed_tokens.weight", (vocabulary, hidden))
    for layer in range(layers):
        yield from layer_of(config, layer)
        if inv_freq:
            yield Parameter(f"model.layers.{layer}.self_attn.rotary_emb.inv_freq", (head_dim(config) // 2,), "F32")
    yield norm("model.norm", hidden)
    if not config["tie_word_embeddings"]:
        yield Parameter("lm_head.weight", (vocabulary, hidden))
    for layer in range(layers, layers + config.get("num_nextn_predict_layers", 0)):
        yield from deepseek_v3_nextn(config, layer)


def tensors_of(config: Config, *, inv_freq: bool = False) -> Iterator[Tensor]:
    """The model's tensors in the order of its modules, which is the order that deals them to files.

    With `inv_freq` each layer has the frequencies of its rotary embedding too, which no config tells.
    """
    return stored(modules_of(config, inv_freq), config)
