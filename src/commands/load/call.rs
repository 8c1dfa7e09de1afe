//! Loading one rank for a caller in this process.

use super::{crew::Crew, extent, report};
use crate::{CallError, cli, failure::Failure, inputs::plan_of, interrupt::Interrupts, output::print_notes};
use clap::Parser;
use shardwright_loader::{
    collective::Group,
    load::{Lent, LoadOptions, OnReady, Progress, load},
};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

/// What to load, and how: the words are those of the command line.
pub struct LoadRequest {
    /// A plan, or the folder of an export.
    pub plan: PathBuf,
    /// Where the checkpoint lies, if not where it was planned.
    pub checkpoint: Option<PathBuf>,
    /// The rank. It is loaded alone, and verified against its own boxes of the files, unless it meets the others.
    pub rank: u32,
    /// Where it meets the other ranks, `HOST:PORT` of rank 0's host: then they share the reading, and verify together.
    pub rendezvous: Option<String>,
    /// `auto`, `host` or `cuda`.
    pub device: String,
    /// `full`, `sample` or `off`.
    pub verify: String,
    /// `auto`, `mmap`, `read` or `direct`.
    pub io: String,
    /// Threads that read; 0 for as many as there are cores.
    pub threads: usize,
    /// Ends the load when it becomes true.
    pub interrupted: Arc<AtomicBool>,
    /// What the caller has already.
    pub brought: Brought,
    /// Seconds that ranks wait for one that shows no sign.
    pub patience: Option<u64>,
    /// Hears what is ready. Whoever keeps the memory keeps the weights.
    pub on_ready: OnReady,
}

/// What a caller in this process has already.
#[derive(Clone, Default)]
pub struct Brought {
    /// Memory that some of the tensors are to be loaded into, on the device that is asked for.
    pub lent: Lent,
    /// The GPU, by the number that the CUDA driver has for it in this process; the plan's for the rank otherwise.
    pub gpu: Option<u32>,
    /// What connects the ranks: they verify over it, where they meet.
    pub group: Option<Arc<dyn Group>>,
}

/// What loading a rank came to.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Bytes that were copied from files.
    pub bytes: u64,
    /// Seconds from the first byte to the last verified one.
    pub seconds: f64,
    /// Tensors that are verified, where that was asked for.
    pub verified_tensors: Option<u64>,
    /// How the files were read, and why so.
    pub how: String,
}

impl LoadRequest {
    /// Checks the words.
    ///
    /// # Errors
    /// [`CallError`] as the command line would say it.
    pub fn check(&self) -> Result<(), CallError> {
        self.arguments().map(drop)
    }

    fn arguments(&self) -> Result<cli::Load, CallError> {
        let mut arguments = vec!["shardwright".into(), "load".into()];
        let option = |name: &str, value: &str| [name.into(), value.into()];
        match &self.rendezvous {
            None => arguments.push("--alone".into()),
            Some(address) => arguments.extend(option("--rendezvous", address)),
        }
        arguments.extend(option("--rank", &self.rank.to_string()));
        arguments.extend(option("--device", &self.device));
        arguments.extend(option("--verify", &self.verify));
        arguments.extend(option("--io", &self.io));
        if let Some(patience) = self.patience {
            arguments.extend(option("--patience", &patience.to_string()));
        }
        if self.threads > 0 {
            arguments.extend(option("--threads", &self.threads.to_string()));
        }
        if let Some(checkpoint) = &self.checkpoint {
            arguments.extend(["--checkpoint".into(), checkpoint.clone().into_os_string()]);
        }
        // Whatever it begins with, it is no option.
        arguments.extend(["--".into(), self.plan.clone().into_os_string()]);
        match cli::Cli::try_parse_from(arguments) {
            Ok(cli::Cli { command: cli::Command::Load(load) }) => Ok(load),
            Ok(_) => Err(CallError { code: 2, message: "nothing to load".to_owned() }),
            Err(error) => Err(CallError { code: 2, message: error.render().to_string() }),
        }
    }
}

/// Loads the rank that is asked for, and tells what is ready meanwhile.
///
/// # Errors
/// [`CallError`] with what the program would have said on stderr; tensors that do not verify among them.
pub fn load_rank(request: &LoadRequest, progress: &Progress) -> Result<Loaded, CallError> {
    let args = request.arguments()?;
    load_alone(&args, request, progress).map_err(CallError::from)
}

fn load_alone(args: &cli::Load, request: &LoadRequest, progress: &Progress) -> Result<Loaded, Failure> {
    let (plan, exported) = plan_of(&args.file)?;
    let interrupts = Interrupts::of(&request.interrupted);
    let mut options = LoadOptions {
        verify: extent(args.verify),
        interrupted: Arc::clone(&request.interrupted),
        on_ready: request.on_ready.clone(),
        ..LoadOptions::default()
    };
    let crew = Crew::muster(args, (&plan, exported), &request.brought, &mut options, &interrupts)?;
    print_notes(&crew.notes);
    let begin = Instant::now();
    let ranks = load(&plan, &crew.catalog, crew.files.source.as_ref(), crew.seats(), &options, progress)?;
    let elapsed = begin.elapsed();
    let loaded = report::Loaded {
        ranks,
        elapsed,
        places: crew.places(),
        company: crew.company(),
        how: crew.files.how.clone(),
        by_manifest: false,
    };
    loaded.print_notes();
    loaded.verdict()?;
    let first = loaded.ranks.first();
    Ok(Loaded {
        bytes: first.map_or(0, |rank| rank.figures().bytes),
        seconds: elapsed.as_secs_f64(),
        verified_tensors: first.and_then(|rank| rank.verified.as_ref()).map(|verified| verified.tensors),
        how: loaded.how,
    })
}
