//! `shardwright demo`: a sample checkpoint, planned, checked, loaded and verified; and what a wrong byte looks like.

use crate::{
    cli::{Cli, Demo},
    failure::{Failure, Kind},
};
use clap::Parser;
use safetensors::{Dtype, tensor::View};
use serde_json::json;
use shardwright_planner::size::Size;
use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
};

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 2816;
const LAYERS: usize = 6;
const HEADS: usize = 16;
const KV_HEADS: usize = 4;
const VOCABULARY: usize = 32_000;
const FILES: usize = 4;
const RANKS: u32 = 4;

/// Marks a folder as the demo's own, which it may replace.
const MARK: &str = ".shardwright-demo";

pub(crate) fn run(args: &Demo, out: &mut dyn Write) -> Result<(), Failure> {
    let folder = args.dir.clone().unwrap_or_else(|| std::env::temp_dir().join("shardwright-demo"));
    let bytes = write_checkpoint(&folder)?;
    writeln!(
        out,
        "A Llama-shaped checkpoint with random weights: {} in {FILES} files in {}\n",
        Size(bytes),
        folder.display()
    )?;
    let checkpoint = shown(&folder)?;
    let plan = shown(&folder.join("plan.yaml"))?;
    step(out, "What is in it?", &["inspect", &checkpoint])?;
    let ranks = RANKS.to_string();
    let make = ["plan", &checkpoint, "--topology", "host", "--tp", &ranks, "-o", &plan];
    step(out, "Who holds what? Four ranks that are threads of this machine:", &make)?;
    step(
        out,
        "Does the plan hold together, and is the checkpoint still the one that was planned?",
        &["check", &plan],
    )?;
    step(out, "Why is a tensor cut the way it is?", &["explain", &plan, "*.k_proj.*"])?;
    step(out, "Load every rank, and prove that what arrived is what the files say:", &["load", &plan])?;

    let flipped = ["load", &plan, "--flip-byte", "2"];
    announce(out, "And can it fail? One flipped bit in the memory of rank 2:", &flipped)?;
    match carry_out(out, &flipped) {
        Err(failure) if failure.kind == Kind::No => {
            write!(out, "{failure}")?;
            writeln!(
                out,
                "\nThe flipped bit was caught and named. Everything above can be typed again as it stands."
            )?;
            Ok(())
        }
        Err(failure) => Err(failure),
        Ok(()) => {
            Err(Failure::new(Kind::No, "the flipped bit was not caught; this is a defect of shardwright"))
        }
    }
}

/// The path as an argument of a command that is shown.
fn shown(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::new(Kind::Usage, format!("{} is not UTF-8 text", path.display()))
            .with_help("give another folder with --dir".to_owned())
    })
}

fn announce(out: &mut dyn Write, why: &str, args: &[&str]) -> Result<(), Failure> {
    let program = std::env::args().next().unwrap_or_else(|| "shardwright".to_owned());
    let words: Vec<String> = args
        .iter()
        .map(|word| {
            if word.contains([' ', '*', '\'']) {
                format!("'{}'", word.replace('\'', "'\\''"))
            } else {
                (*word).to_owned()
            }
        })
        .collect();
    writeln!(out, "# {why}\n$ {program} {}", words.join(" "))?;
    Ok(())
}

fn step(out: &mut dyn Write, why: &str, args: &[&str]) -> Result<(), Failure> {
    announce(out, why, args)?;
    carry_out(out, args)?;
    writeln!(out)?;
    Ok(())
}

/// Parses and runs the very command that was shown.
fn carry_out(out: &mut dyn Write, args: &[&str]) -> Result<(), Failure> {
    let cli = Cli::try_parse_from(["shardwright"].iter().chain(args))
        .map_err(|error| Failure::new(Kind::Usage, error.render()))?;
    super::run(cli.command, out)
}

/// A tensor of bf16 numbers.
struct Weights {
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for Weights {
    fn dtype(&self) -> Dtype {
        Dtype::BF16
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

impl Weights {
    /// Finite numbers between 2^-8 and 2^-6, of either sign.
    fn random(shape: &[usize], random: &mut fastrand::Rng) -> Self {
        let mut bytes = vec![0; 2 * shape.iter().product::<usize>()];
        random.fill(&mut bytes);
        for high in bytes.iter_mut().skip(1).step_by(2) {
            *high = *high & 0x80 | 0x3c;
        }
        Self { shape: shape.to_vec(), bytes }
    }
}

/// Names and shapes in the order of the model.
fn tensors() -> Vec<(String, Vec<usize>)> {
    let head = HIDDEN / HEADS;
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN])];
    for layer in 0..LAYERS {
        let of_layer: [(&str, Vec<usize>); 9] = [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HEADS * head, HIDDEN]),
            ("self_attn.k_proj", vec![KV_HEADS * head, HIDDEN]),
            ("self_attn.v_proj", vec![KV_HEADS * head, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HEADS * head]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ];
        all.extend(of_layer.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    all.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    all.push(("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]));
    all
}

/// Writes the checkpoint aside and renames it to `folder`; returns its bytes.
fn write_checkpoint(folder: &Path) -> Result<u64, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Kind::Environment, format!("cannot write {}: {error}", folder.display()))
            .with_help("give another folder with --dir".to_owned())
    };
    let exists = folder.symlink_metadata().is_ok();
    if exists && !folder.join(MARK).is_file() {
        let message = format!("{} exists and was not made by the demo", folder.display());
        return Err(Failure::new(Kind::Usage, message).with_help("give another folder with --dir".to_owned()));
    }
    let parent = match folder.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    fs::create_dir_all(&parent).map_err(failed)?;
    let aside = tempfile::TempDir::with_prefix_in("shardwright-demo-", &parent).map_err(failed)?;

    let mut random = fastrand::Rng::with_seed(1);
    let mut weight_map = BTreeMap::new();
    let all = tensors();
    let total: usize = all.iter().map(|(_, shape)| 2 * shape.iter().product::<usize>()).sum();
    let mut files: Vec<Vec<(String, Vec<usize>)>> = vec![Vec::new(); FILES];
    let mut before = 0;
    for (name, shape) in all {
        let file = (before * FILES / total).min(FILES - 1);
        before += 2 * shape.iter().product::<usize>();
        files[file].push((name, shape));
    }
    for (number, tensors) in files.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{FILES:05}.safetensors", number + 1);
        let mut weights = Vec::with_capacity(tensors.len());
        for (name, shape) in tensors {
            weight_map.insert(name.clone(), file.clone());
            weights.push((name, Weights::random(&shape, &mut random)));
        }
        safetensors::serialize_to_file(weights, None, &aside.path().join(&file))
            .map_err(|error| failed(std::io::Error::other(error)))?;
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    let write = |name: &str, text: String| fs::write(aside.path().join(name), text).map_err(failed);
    write("model.safetensors.index.json", format!("{index:#}\n"))?;
    write("config.json", format!("{:#}\n", config()))?;
    write(MARK, "Made by `shardwright demo`, which may replace this folder.\n".to_owned())?;
    if exists {
        fs::remove_dir_all(folder).map_err(failed)?;
    }
    fs::rename(aside.keep(), folder).map_err(failed)?;
    Ok(total as u64)
}

fn config() -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false,
        "dtype": "bfloat16",
    })
}
