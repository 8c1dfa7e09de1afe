use super::*;
use crate::rules::Families;
use std::path::Path;

fn read(json: &str) -> Result<ModelSpec, ConfigError> {
    ModelSpec::of(&config(json)?, Families::built_in().unwrap().vocabulary())
}

fn config(json: &str) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(CONFIG_NAME);
    std::fs::write(&path, json).unwrap();
    Config::read(&path)
}

const PLAIN: &str = r#"{"model_type":"llama","hidden_size":64,"intermediate_size":160,
    "num_hidden_layers":2,"num_attention_heads":8,"vocab_size":96}"#;

#[test]
fn absent_keys_have_their_defaults() {
    let spec = read(PLAIN).unwrap();
    assert_eq!((spec.kv_heads, spec.head_size, spec.tied_embeddings), (Some(8), Some(8), false));
    assert_eq!(spec.experts, None);
}

#[test]
fn a_decoder_under_text_config_is_found_and_the_outer_type_comes_first() {
    let json = format!(r#"{{"model_type":"llava","tie_word_embeddings":true,"text_config":{PLAIN}}}"#);
    let spec = read(&json).unwrap();
    assert_eq!((spec.model_type.as_str(), spec.hidden), ("llava", Some(64)));
    assert!(spec.tied_embeddings);
    assert_eq!(config(&json).unwrap().model_types().unwrap(), ["llava", "llama"]);
    // Inside another section, too.
    let deep = format!(r#"{{"model_type":"omni","thinker_config":{{"text_config":{PLAIN}}}}}"#);
    assert_eq!(read(&deep).unwrap().layers, 2);
}

#[test]
fn an_explicit_head_dim_wins_over_the_quotient() {
    let json = PLAIN.replace(r#""vocab_size""#, r#""head_dim":32,"num_key_value_heads":2,"vocab_size""#);
    let spec = read(&json).unwrap();
    assert_eq!((spec.head_size, spec.kv_heads), (Some(32), Some(2)));
}

#[test]
fn sizes_go_by_several_keys() {
    let gpt2 = r#"{"model_type":"gpt2","n_embd":48,"n_layer":3,"n_head":4,"vocab_size":96}"#;
    let spec = read(gpt2).unwrap();
    assert_eq!((spec.hidden, spec.layers, spec.head_size), (Some(48), 3, Some(12)));
    let mamba = r#"{"model_type":"mamba","hidden_size":48,"num_hidden_layers":1,"vocab_size":8}"#;
    assert_eq!(read(mamba).unwrap().query_heads, None);
}

#[test]
fn one_layers_entries_win_over_those_of_all() {
    let json = PLAIN.replace(r#""vocab_size""#, r#""per_layer_config":{"1":{"head_dim":28}},"vocab_size""#);
    let config = config(&json).unwrap();
    let words = Families::built_in().unwrap();
    let size =
        |layer| Measures::new(words.vocabulary(), config.text().of_layer(layer)).size("head size").unwrap();
    assert_eq!((size(0), size(1)), (Some(8), Some(28)));
}

#[test]
fn a_number_for_each_layer_counts_where_all_are_the_same() {
    let json = PLAIN.replace(r#""intermediate_size":160"#, r#""intermediate_size":[160,160]"#);
    assert_eq!(read(&json).unwrap().intermediate, Some(160));
    let json = PLAIN.replace(r#""intermediate_size":160"#, r#""intermediate_size":[160,80]"#);
    assert_eq!(read(&json).unwrap().intermediate, None);
}

#[test]
fn what_is_wrong_is_named_with_its_numbers() {
    let cases = [
        (PLAIN.replace("64", "0"), "`hidden_size` is 0"),
        (PLAIN.replace("64", "\"x\""), "`hidden_size` is \"x\""),
        (PLAIN.replace("64", "9999999999"), "`hidden_size` is 9999999999"),
        (PLAIN.replace(r#":8,"#, r#":7,"#), "hidden_size 64 is no multiple of 7"),
        (
            PLAIN.replace(r#""vocab"#, r#""num_key_value_heads":3,"vocab"#),
            "8 attention heads are no multiple of 3",
        ),
        (PLAIN.replace("\"llama\"", "7"), "`model_type` is not a name"),
        (PLAIN.replace("\"model_type\"", "\"type\""), "has no `model_type`"),
        ("[1]".to_owned(), "not the JSON"),
    ];
    for (json, expected) in cases {
        let error = read(&json).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.help().is_some());
    }
    let missing = Config::read(Path::new("/nowhere/config.json")).unwrap_err();
    assert!(matches!(missing, ConfigError::Missing { .. }));
}

#[test]
fn pieces_that_cannot_be_dealt_are_named() {
    let words = Families::built_in().unwrap();
    let config = config(&PLAIN.replace(r#""vocab"#, r#""num_key_value_heads":3,"vocab"#)).unwrap();
    let error = Measures::new(words.vocabulary(), config.text()).dimension("query heads").unwrap_err();
    assert!(
        error.to_string().contains("8 query heads of 8 cannot be dealt by 8 units in 3 groups"),
        "{error}"
    );
}
