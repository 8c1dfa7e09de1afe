//! `shardwright layouts`: every way to put a model on a machine, best first.

mod calibrate;
mod html;
mod json;
mod show;

use crate::{
    cli::{self, CONCURRENCY, CacheDtype, GoalChoice, UTILIZATION},
    engines::{Command, Served, commands},
    failure::{Failure, Kind},
    inputs::{config, topology},
    output::{print_json, print_notes, write_whole},
};
use shardwright_planner::{
    calibration::Fitted,
    checkpoint::Catalog,
    layouts::{Goal, Judged, LayoutRequest, Layouts, Prices, layouts, longest_context},
    model::Config,
    plan::CastDtype,
    rules::{Families, UserRules},
    serving::{Assumptions, Workload},
    size::{Size, count},
    topology::Topology,
};
use std::{io::Write, path::Path};

/// A sequence, where nobody says how long it is.
const CONTEXT_LEN: u64 = 8192;

/// A prompt, where nobody says how long it is.
const PROMPT_LEN: u64 = 1024;

/// Longest file of prices or assumptions that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A machine, and how the model can be put on it.
pub(super) struct Found {
    pub(super) machine: Topology,
    pub(super) layouts: Layouts,
}

impl Found {
    /// The best layout that has room for a sequence.
    pub(super) fn best(&self) -> Option<&Judged> {
        self.layouts.judged.first().filter(|best| best.memory.lacks == 0 && best.memory.sequences > 0)
    }
}

pub(crate) fn run(args: &cli::Layouts, out: &mut dyn Write) -> Result<(), Failure> {
    let catalog = Catalog::open(&args.checkpoint)?;
    let config = config(&catalog)?;
    let user = args.rules.as_deref().map_or_else(|| Ok(UserRules::default()), UserRules::read)?;
    let user = user.with_replicated(&args.replicate)?;
    let families = Families::built_in()?;
    let mut assumptions = match &args.assumptions {
        Some(path) => Assumptions::parse(&text_of(path)?)
            .map_err(|error| Failure::new(Kind::BadInput, format!("{}: {error}", path.display())))?,
        None => assumptions()?,
    };
    let workload = workload(args, &config)?;
    let cast = args.dtype.map(CastDtype::from);
    let goal = match args.goal {
        GoalChoice::Latency => Goal::Latency,
        GoalChoice::Throughput => Goal::Throughput,
        GoalChoice::FewestGpus => Goal::FewestGpus,
    };
    let mut errors = Vec::new();
    let mut found = Vec::new();
    for name in std::iter::once(&args.topology).chain(&args.what_if) {
        let machine = topology(name, args.nodes, 1)?;
        let request = LayoutRequest {
            catalog: &catalog,
            config: &config,
            families: &families,
            user: &user,
            topology: &machine,
            cast,
            workload: &workload,
            assumptions: &assumptions,
            goal,
        };
        let fitted = match &args.calibrate {
            Some(path) => calibrate::calibrated(path, &text_of(path)?, &request)?,
            None => Fitted { assumptions: assumptions.clone(), errors: Vec::new() },
        };
        let layouts = layouts(&LayoutRequest { assumptions: &fitted.assumptions, ..request })?;
        (assumptions, errors) = (fitted.assumptions, fitted.errors);
        found.push(Found { machine, layouts });
    }
    if let Some(path) = &args.save_assumptions {
        write_whole(path, &assumptions.to_yaml().map_err(|error| Failure::new(Kind::Environment, error))?)?;
    }
    let machines: Vec<&Topology> = found.iter().map(|found| &found.machine).collect();
    let prices = match &args.prices {
        Some(path) => Prices::parse(&text_of(path)?, &machines).map_err(|error| {
            let message = format!("{}: {error}", path.display());
            Failure::new(Kind::BadInput, message).with_help(
                "write one line for each kind of GPU, like `H100 SXM5 80GB: 2.50`, in dollars an hour"
                    .to_owned(),
            )
        })?,
        None => Prices::default(),
    };
    let mut notes: Vec<&String> = found.iter().flat_map(|found| &found.layouts.notes).collect();
    notes.dedup();
    print_notes(&notes);
    if let (Some(path), Some(first)) = (&args.html, found.first()) {
        let request = LayoutRequest {
            catalog: &catalog,
            config: &config,
            families: &families,
            user: &user,
            topology: &first.machine,
            cast,
            workload: &workload,
            assumptions: &assumptions,
            goal,
        };
        write_whole(path, &html::page(args, first, &request, &prices, &errors)?)?;
    }
    if args.json {
        return print_json(out, &json::document(&found, &workload, &prices, &errors));
    }
    let Some(first) = found.first() else { return Ok(()) };
    if found.len() > 1 {
        return show::machines(&found, &workload, &prices, out);
    }
    calibrate::show(&errors, out)?;
    show::layouts(first, &workload, &prices, args.all, out)?;
    let Some(best) = first.best() else {
        page_written(args, out)?;
        return Err(nowhere(first, &catalog));
    };
    show::terms(best, out)?;
    show::engines(&engines(args, first, best, &workload), out)?;
    page_written(args, out)?;
    show::answer(first, best, &workload, &prices, out)
}

/// Says where the page is, if there is one.
fn page_written(args: &cli::Layouts, out: &mut dyn Write) -> Result<(), Failure> {
    let Some(path) = &args.html else { return Ok(()) };
    Ok(writeln!(out, "page written to {}", path.display())?)
}

/// How engines are told to run a layout.
fn engines(args: &cli::Layouts, found: &Found, judged: &Judged, workload: &Workload) -> [Command; 3] {
    let per_node = u32::try_from(found.machine.gpus_per_node()).unwrap_or(u32::MAX);
    commands(&Served {
        checkpoint: &args.checkpoint.to_string_lossy(),
        layout: judged.layout,
        nodes: judged.gpus().div_ceil(per_node.max(1)),
        context_len: workload.context_len,
        sequences: judged.running,
        utilization: workload.utilization,
        cache_bits: workload.cache_bits,
        batched_tokens: workload.batched_tokens,
        cast: args.dtype.map(CastDtype::from),
    })
}

/// What is asked of a model where nobody says.
pub(super) fn default_workload(config: &Config) -> Workload {
    let most = longest_context(config).map_or(u64::MAX, |(_, most)| most.max(1));
    let context_len = CONTEXT_LEN.min(most);
    Workload {
        context_len,
        prompt_len: PROMPT_LEN.min(context_len.div_ceil(2)),
        concurrency: CONCURRENCY,
        cache_bits: 16,
        utilization: UTILIZATION,
        batched_tokens: None,
    }
}

/// The assumptions that come with the planner.
pub(super) fn assumptions() -> Result<Assumptions, Failure> {
    let built_in = Assumptions::built_in();
    built_in.map_err(|error| {
        Failure::new(Kind::Environment, format!("the assumptions that are built in: {error}"))
    })
}

fn workload(args: &cli::Layouts, config: &Config) -> Result<Workload, Failure> {
    let usual = default_workload(config);
    let context_len = args.context_len.unwrap_or(usual.context_len);
    let prompt_len = args.prompt_len.unwrap_or_else(|| PROMPT_LEN.min(context_len.div_ceil(2)));
    if prompt_len > context_len {
        let message = format!("a prompt of {prompt_len} tokens does not go into a context of {context_len}");
        return Err(Failure::new(Kind::Usage, message));
    }
    Ok(Workload {
        context_len,
        prompt_len,
        concurrency: args.concurrency,
        cache_bits: match args.kv_cache_dtype {
            CacheDtype::Fp8 => 8,
            CacheDtype::Auto | CacheDtype::Bf16 => 16,
            CacheDtype::F32 => 32,
        },
        utilization: args.gpu_memory_utilization,
        batched_tokens: args.batched_tokens,
    })
}

/// The text of a file that is not long.
fn text_of(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Kind::BadInput, format!("cannot read {}: {error}", path.display()))
    };
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() || meta.len() > MAX_FILE_BYTES {
        let message = format!("{}: not a file, or longer than {MAX_FILE_BYTES} bytes", path.display());
        return Err(Failure::new(Kind::BadInput, message));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// Nothing fits: what would.
fn nowhere(found: &Found, catalog: &Catalog) -> Failure {
    let (machine, judged) = (&found.machine, &found.layouts.judged);
    let message = match judged.first() {
        Some(best) if best.memory.lacks > 0 => format!(
            "does not fit: {} of weights, and the best layout on {} lacks {} on each GPU",
            Size(catalog.tensor_bytes()),
            machine.name(),
            Size(best.memory.lacks)
        ),
        Some(best) => format!(
            "does not fit: with the weights on {}, no layout has room for one sequence of {}",
            machine.name(),
            Size(best.memory.bytes_per_sequence)
        ),
        None => format!("no layout: no number of ranks that {} has divides every module", machine.name()),
    };
    let each = machine.least_memory_bytes().max(1);
    let help = format!(
        "weights alone need at least {} of {}: more nodes (--nodes), larger GPUs (`shardwright topology list`), a checkpoint in \
         fewer bits, or a shorter --context-len",
        count(catalog.tensor_bytes().div_ceil(each), "GPU"),
        Size(each)
    );
    Failure::new(Kind::No, message).with_help(help)
}
