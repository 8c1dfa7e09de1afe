//! Every model type that `transformers` has a tensor-parallel plan for, and many more: each is planned, and each decision
//! is compared with that plan. Where the two differ, `differences.yaml` says why; no difference goes without a reason.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod experts;
mod inferred;
mod kept;
mod loading;
mod pairs;
mod peer;
mod public;

use peer::Peer;
use serde::Deserialize;
use shardwright_planner::{
    checkpoint::Catalog,
    mesh::Mesh,
    model::{CONFIG_NAME, Config},
    partition::Partition,
    plan::{Plan, TensorGroup},
    planning::{PlanRequest, Sharing, build},
    rules::{Families, Role, UserRules},
    topology::{HostFacts, Topology, builtin},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::{Path, PathBuf},
};
use support::headers::Headers;

/// What is done with a tensor, in words that both sides share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cut {
    /// On the output features.
    Column,
    /// On the input features, the outputs summed.
    Row,
    /// On the rows of an embedding or a head.
    Vocabulary,
    /// Not at all.
    Whole,
    /// On the output features, which are gathered again.
    ColumnGathered,
    /// On the input features, which every rank has whole.
    RowOfWhole,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Column => "column",
            Self::Row => "row",
            Self::Vocabulary => "vocabulary",
            Self::Whole => "whole",
            Self::ColumnGathered => "column-gathered",
            Self::RowOfWhole => "row-of-whole",
        })
    }
}

/// Why decisions differ.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reason {
    /// The modules, by what follows the last number in their names.
    modules: Vec<String>,
    ours: Vec<Cut>,
    theirs: Vec<Cut>,
    /// Names of the checkpoints.
    types: Vec<String>,
    why: String,
}

fn zoo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/zoo")
}

/// The names and files of all checkpoints.
fn all() -> Vec<(String, PathBuf)> {
    let mut all: Vec<(String, PathBuf)> = fs::read_dir(zoo())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .collect();
    all.sort();
    all
}

fn planned(checkpoint: &Headers, families: &Families, tp: u32, sharing: &Sharing) -> Result<Plan, String> {
    let catalog = Catalog::open(&checkpoint.path()).unwrap();
    let facts = HostFacts { devices: tp, memory_bytes: 1 << 40 };
    let topology = Topology::parse(builtin("host").unwrap(), "host", None, Some(facts)).unwrap();
    let config = Config::read(&checkpoint.path().join(CONFIG_NAME)).map_err(|error| error.to_string())?;
    build(&PlanRequest {
        catalog: &catalog,
        path: &checkpoint.path(),
        config: &config,
        families,
        user: &UserRules::default(),
        topology: &topology,
        mesh: Mesh::new(1, 1, tp).unwrap(),
        sharing,
        cast: None,
    })
    .map_err(|error| error.to_string())
}

fn ours(group: &TensorGroup) -> Cut {
    match (&group.partition, group.role) {
        (Partition::Replicated, _) => Cut::Whole,
        (_, Role::RowParallel) => Cut::Row,
        (_, Role::VocabParallelEmbedding | Role::VocabParallelHead) => Cut::Vocabulary,
        _ => Cut::Column,
    }
}

/// What cannot be cut so often, with the numbers that say why.
const REFUSED: [(&str, u32, &str); 4] = [
    // Of each key/value head the query heads, key and value lie together: there are no smaller pieces.
    ("falcon-grouped", 4, "2 attended groups do not divide by 4"),
    // The query transformers have two heads, and so has the audio tower.
    (
        "granite4_vision",
        4,
        "qformer.encoder.layer.*.attention.attention.query` over tp 4: 2 query heads do not divide",
    ),
    (
        "voxtral_realtime",
        4,
        "audio_tower.layers.*.self_attn.q_proj` over tp 4: 2 query heads do not divide by 4",
    ),
    // The encoder has fewer heads than the decoder.
    ("whisper", 4, "encoder.layers.*.self_attn.k_proj` over tp 4: 2 encoder heads do not divide by 4"),
];

#[test]
fn every_type_is_planned_over_two_and_four_ranks() {
    let families = Families::built_in().unwrap();
    let mut failures = Vec::new();
    for (name, path) in all() {
        let checkpoint = Headers::read(&path);
        for tp in [1, 2, 4] {
            let refused = planned(&checkpoint, &families, tp, &Sharing::default()).err();
            let expected = REFUSED.iter().find(|(refused, at, _)| (*refused, *at) == (name.as_str(), tp));
            match (refused, expected) {
                (None, None) => {}
                (Some(error), Some((_, _, why))) if error.contains(why) => {}
                (error, _) => failures.push(format!("{name}, tp {tp}: {error:?}")),
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn decisions_differ_from_those_of_transformers_for_a_reason_only() {
    let table = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zoo/differences.yaml");
    let reasons: Vec<Reason> = serde_yaml::from_str(&fs::read_to_string(table).unwrap()).unwrap();
    assert!(reasons.iter().all(|reason| !reason.why.is_empty()));
    let families = Families::built_in().unwrap();
    let mut used = BTreeSet::new();
    let mut unexplained: BTreeMap<(String, Cut, Cut), BTreeSet<String>> = BTreeMap::new();
    let mut compared = 0;
    for (name, path) in all() {
        let checkpoint = Headers::read(&path);
        let peer = Peer::of(&checkpoint.fixture);
        if peer.is_empty() {
            continue;
        }
        let Ok(plan) = planned(&checkpoint, &families, 2, &Sharing::default()) else { continue };
        for group in &plan.tensors {
            let module = group.collapsed();
            let module = module.strip_suffix(".weight").unwrap_or(&module).to_owned();
            // A bias follows its weight on both sides.
            if group.is_bias() {
                continue;
            }
            let (ours, theirs) = (ours(group), peer.cut(&module));
            compared += 1;
            let same = ours == theirs
                || (ours, theirs) == (Cut::Vocabulary, Cut::ColumnGathered) && module.contains("head");
            if same {
                continue;
            }
            let explained = reasons.iter().position(|reason| {
                reason.ours.contains(&ours)
                    && reason.theirs.contains(&theirs)
                    && reason.types.contains(&name)
                    && reason.modules.contains(&leaf(&module))
            });
            match explained {
                Some(place) => {
                    used.insert(place);
                }
                None => {
                    unexplained.entry((leaf(&module), ours, theirs)).or_default().insert(name.clone());
                }
            }
        }
    }
    assert!(compared > 2000, "only {compared} decisions were compared");
    let said: Vec<String> = unexplained
        .iter()
        .map(|((module, ours, theirs), types)| {
            let types: Vec<&str> = types.iter().map(String::as_str).collect();
            format!("{module}: ours {ours}, theirs {theirs}: {}", types.join(" "))
        })
        .collect();
    assert!(said.is_empty(), "{} unexplained differences:\n{}", said.len(), said.join("\n"));
    let unused: Vec<&str> = (0..reasons.len())
        .filter(|place| !used.contains(place))
        .map(|place| reasons[place].why.as_str())
        .collect();
    assert!(unused.is_empty(), "reasons that explain nothing: {unused:#?}");
}

/// What follows the last number.
fn leaf(module: &str) -> String {
    module.rsplit_once("*.").map_or(module, |(_, leaf)| leaf).to_owned()
}
