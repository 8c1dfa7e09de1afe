//! `explain`: why tensors are cut as they are, and who holds what.

use crate::{planned, support::shardwright, support::text};

fn explained(name: &str, args: &[&str], glob: &str) -> String {
    let (_folder, file) = planned(name, args);
    shardwright(&["explain", text(&file), glob]).succeeded()
}

#[test]
fn a_row_parallel_bias_is_held_by_the_first_rank_only() {
    insta::assert_snapshot!(explained("llama-odd-vocab-bf16", &["--tp", "4"], "*.o_proj.*"));
}

#[test]
fn a_padded_vocabulary_shows_its_rows_of_zeros() {
    insta::assert_snapshot!(explained(
        "llama-odd-vocab-bf16",
        &["--tp", "8"],
        "{lm_head,*.embed_tokens}.weight"
    ));
}

#[test]
fn key_value_heads_that_ranks_share_stand_together() {
    insta::assert_snapshot!(explained("llama-bf16", &["--tp", "8"], "*.k_proj.*"));
}

#[test]
fn norms_are_held_by_every_rank() {
    insta::assert_snapshot!(explained("qwen3-f32", &["--tp", "2", "--pp", "2"], "*norm*"));
}

#[test]
fn a_tied_embedding_is_held_at_both_ends() {
    insta::assert_snapshot!(explained("qwen2-bf16", &["--tp", "2", "--pp", "2"], "*embed*"));
}

#[test]
fn a_glob_may_match_one_tensor_of_a_group() {
    insta::assert_snapshot!(explained("mistral-f32", &["--tp", "2"], "model.layers.1.mlp.down_proj.weight"));
}

#[test]
fn a_glob_that_matches_nothing_is_no_answer() {
    let (_folder, file) = planned("mistral-f32", &["--tp", "2"]);
    shardwright(&["explain", text(&file), "*.w1.*"]).refused(1, &["`*.w1.*`", "\nhelp: "]);
    shardwright(&["explain", text(&file), "*.w1.*", "--json"]).refused(1, &["`*.w1.*`"]);
    shardwright(&["explain", text(&file), "[a"]).refused(2, &["`[a`", "no glob"]);
}
