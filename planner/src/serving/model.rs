//! The facts of a model, as it is laid out, that times and memory follow from.

/// How a model is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Ranks that share each layer.
    pub tp: u32,
    /// Pipeline stages.
    pub pp: u32,
    /// Copies of the model.
    pub dp: u32,
    /// Whether ranks hold whole experts.
    pub expert_parallel: bool,
}

/// A model, as the fullest rank of each pipeline stage holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The stages, in order. Never empty.
    pub stages: Vec<Stage>,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Rows of the embedding.
    pub vocabulary: u64,
    /// Query heads, all ranks together, and elements of each: what attention multiplies beside the matrices.
    pub query_heads: u64,
    /// Elements of a query head.
    pub head_size: u64,
    /// Routed experts of a layer, and how many of them a token goes to; 1 and 1 where there are none.
    pub experts: u64,
    /// Of those, how many a token goes to.
    pub experts_per_token: u64,
    /// Bytes of each number that a layer hands to the next.
    pub activation_bytes: u64,
}

/// What the fullest rank of a pipeline stage holds, does and sends.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stage {
    /// Repeated layers.
    pub layers: u64,
    /// Bytes of weights as they are placed in memory.
    pub weight_bytes: u64,
    /// Of these, those that every step reads: all but embeddings and routed experts.
    pub dense_bytes: u64,
    /// Those of routed experts.
    pub expert_bytes: u64,
    /// Multiplications and additions (two for each number of a matrix) for a token, but for routed experts.
    pub dense_flops: f64,
    /// The same of all routed experts that the rank holds any of, as if the token went to each.
    pub expert_flops: f64,
    /// Features inside the widest feed-forward layer, on this rank.
    pub features: u64,
    /// Whether the logits come from it.
    pub has_head: bool,
    /// Elements that its layers keep of a sequence of the length that is asked for.
    pub cache_per_sequence: u64,
    /// All-reduces of a pass over the tensor-parallel group, each with the bytes of a token.
    pub all_reduces: Vec<(u64, u64)>,
    /// All-gathers of a pass, each with the bytes that a rank has of a token.
    pub all_gathers: Vec<(u64, u64)>,
    /// All-to-alls of a pass, there and back, over all ranks that share experts.
    pub all_to_alls: u64,
}
