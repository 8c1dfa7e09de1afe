//! What is asked of a model that is served.

/// What is asked of a model that is served.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    /// Tokens of each sequence, prompt and answer together.
    pub context_len: u64,
    /// Of these, those of the prompt.
    pub prompt_len: u64,
    /// Sequences at a time, over all copies of the model.
    pub concurrency: u64,
    /// Bits of each number that is kept of tokens.
    pub cache_bits: u64,
    /// What share of a GPU's memory may be used.
    pub utilization: f64,
    /// Tokens of the longest batch of a prefill, where it is not what is assumed.
    pub batched_tokens: Option<u64>,
}
