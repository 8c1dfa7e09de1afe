//! `shardwright export`: every rank's slices into files, on any machine.

mod call;
mod folder;

use crate::{
    cli::{Export, ExportFormat},
    commands::load::extent,
    failure::{Failure, Kind},
    figures,
    inputs::{check_rank, plan_and_checkpoint},
    interrupt::Interrupts,
    output::{print_json, print_notes},
    progress,
};
pub use call::engine_tensors;
use folder::{Claim, Folder};
use serde_json::json;
use shardwright_loader::{
    collective::{Communicator, local_group},
    export::{Content, FileDevice, FileTensor, RankFiles},
    load::{LoadError, LoadOptions, LoadedRank, Seat, cores, load},
    schedule::{PlacedTensor, Schedule},
    source::{Io, open},
    verify::Verified,
};
use shardwright_planner::{
    checkpoint::Catalog,
    engine::{EngineContent, EngineNames, EngineTensor, HeldSlice},
    export::{CHECKPOINT_NAMES, RankRecord, export_id, is_export},
    plan::{FileIdentity, Plan},
    quote::quote,
    size::{Size, count},
};
use std::{
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

/// How long ranks wait for one another; they are threads of this process, and files may be slow.
const PATIENCE: Duration = Duration::from_secs(600);

/// Most wrong tensors that are named.
const MOST_NAMED: usize = 20;

/// What is written for one rank.
struct RankPart {
    record: RankRecord,
    device: FileDevice,
    bytes: u64,
}

/// What is exported, and whose names it gets.
struct Job {
    /// The plan that was given.
    given: Plan,
    /// What the ranks hold of it: an engine's may differ in little.
    plan: Plan,
    catalog: Catalog,
    /// The engine's names; the checkpoint's own without.
    names: Option<EngineNames>,
    /// Which export it is.
    id: String,
    most_file_bytes: u64,
}

pub(crate) fn run(args: &Export, out: &mut dyn Write) -> Result<(), Failure> {
    if is_export(&args.file.plan) {
        let message = format!("{} is an export already", args.file.plan.display());
        let help = "export the plan of the checkpoint".to_owned();
        return Err(Failure::new(Kind::Usage, message).with_help(help));
    }
    if args.format == ExportFormat::Shardwright && args.engine.is_some() {
        let failure = Failure::new(Kind::Usage, "--engine is for --format sharded-state");
        return Err(failure.with_help("leave one of them out, or give both".to_owned()));
    }
    let job = Job::new(args)?;
    let (plan, catalog) = (&job.plan, &job.catalog);
    let world = plan.mesh.world_size();
    if let Some(rank) = args.rank {
        check_rank(plan, rank)?;
    }
    let ranks: Vec<u32> = args.rank.map_or_else(|| (0..world).collect(), |rank| vec![rank]);
    let interrupts = Interrupts::listen()?;
    let (folder, notes) =
        Folder::claim(&Claim { output: &args.output, id: &job.id, rank: args.rank, world })?;
    print_notes(&notes);

    let begin = Instant::now();
    let parts =
        ranks.iter().map(|&rank| job.part(rank, folder.path())).collect::<Result<Vec<_>, Failure>>()?;
    folder.check_room(parts.iter().map(|part| part.bytes).fold(0, u64::saturating_add))?;
    let files = open(catalog, Io::Auto, false, cores()).map_err(LoadError::from)?;
    print_notes(&files.notes);
    let options =
        LoadOptions { verify: extent(args.verify), interrupted: interrupts.flag(), ..LoadOptions::default() };
    let written = progress::with_bar("exporting", plan, catalog, &ranks, |progress| {
        let alone = args.rank.is_some();
        let mut ends = local_group(if alone { 0 } else { world }, PATIENCE).into_iter();
        let seats = parts.iter().map(|part| {
            let end = ends.next().map(|end| Box::new(end) as Box<dyn Communicator>);
            Seat::new(part.record.rank, &part.device, end)
        });
        load(plan, catalog, files.source.as_ref(), seats.collect(), &options, progress)
    })?;
    let verified = verdict(&written)?.cloned();
    let records: Vec<&RankRecord> = parts.iter().map(|part| &part.record).collect();
    folder.publish(&job.given, catalog.folder(), &records)?;
    print(args, &parts, verified.as_ref(), begin.elapsed(), out)
}

impl Job {
    fn new(args: &Export) -> Result<Self, Failure> {
        let (given, catalog) = plan_and_checkpoint(&args.file)?;
        let engine = args.engine.as_ref();
        let names = engine.map(|engine| EngineNames::of(engine, &given.model.model_type)).transpose()?;
        let plan = names.as_ref().map_or_else(|| Ok(given.clone()), |names| names.adapted(&given, None))?;
        plan.check()?;
        let id = export_id(&given, names.as_ref().map_or(CHECKPOINT_NAMES, |names| &names.engine))?;
        Ok(Self { given, plan, catalog, names, id, most_file_bytes: args.max_file_size.bytes() })
    }

    /// Lays out the files of a rank.
    fn part(&self, rank: u32, folder: &Path) -> Result<RankPart, Failure> {
        let schedule = Schedule::new(&self.plan, &self.catalog, rank)?;
        let entries = self.catalog.tensors();
        let tensors = match &self.names {
            None => own_names(&schedule, &self.catalog),
            Some(names) => self.engine_names(&schedule, names)?,
        };
        let name_of = |number: usize| entries[number].name.to_string();
        let files = RankFiles::new(&schedule, tensors, self.most_file_bytes, &name_of)?;
        let file_names: Vec<String> = (0..files.count())
            .map(|part| match &self.names {
                None => {
                    format!("rank-{rank:05}-{:05}-of-{:05}.safetensors", part + 1, files.count())
                }
                Some(names) => names.file_name(self.plan.mesh, rank, part),
            })
            .collect();
        let identities: Vec<FileIdentity> = file_names
            .iter()
            .zip(files.files())
            .map(|(name, (bytes, digest))| FileIdentity::new(name.clone(), bytes, digest))
            .collect();
        let bytes = identities.iter().map(|file| file.bytes).sum();
        let paths = file_names.iter().map(|name| folder.join(name)).collect();
        let whose = self.names.as_ref().map_or(CHECKPOINT_NAMES, |names| &names.engine).to_owned();
        let record = RankRecord::new(self.id.clone(), whose, rank, self.plan.mesh.world_size(), identities);
        Ok(RankPart { record, device: FileDevice::new(files, paths), bytes })
    }

    fn engine_names(&self, schedule: &Schedule, names: &EngineNames) -> Result<Vec<FileTensor>, Failure> {
        let held = held(schedule, &self.catalog);
        let tensors = names.tensors(&self.plan, schedule.rank, &held)?;
        let file_tensor = |tensor: EngineTensor| FileTensor {
            name: tensor.name,
            dtype: tensor.dtype,
            shape: tensor.shape,
            content: match tensor.content {
                EngineContent::Slices(slices) => Content::Slices(slices),
                EngineContent::Constant(value) => Content::Constant(value.to_le_bytes().to_vec()),
            },
        };
        Ok(tensors.into_iter().map(file_tensor).collect())
    }
}

/// What the rank of `schedule` holds.
fn held<'a>(schedule: &'a Schedule, catalog: &'a Catalog) -> Vec<HeldSlice<'a>> {
    let slice = |placed: PlacedTensor<'a>| HeldSlice {
        name: &catalog.tensors()[placed.id].name,
        dtype: placed.held().dtype,
        shape: &placed.held().shape,
    };
    schedule.tensors().map(slice).collect()
}

/// The slices under the names that the checkpoint has for their tensors.
fn own_names(schedule: &Schedule, catalog: &Catalog) -> Vec<FileTensor> {
    let tensor = |(place, placed): (usize, PlacedTensor<'_>)| FileTensor {
        name: catalog.tensors()[placed.id].name.to_string(),
        dtype: placed.held().dtype,
        shape: placed.held().shape.clone(),
        content: Content::Slices(vec![place]),
    };
    schedule.tensors().enumerate().map(tensor).collect()
}

/// What verification found, where it was asked for and all is right.
fn verdict(written: &[LoadedRank]) -> Result<Option<&Verified>, Failure> {
    let verified = written.first().and_then(|rank| rank.verified.as_ref());
    let wrong = verified.map_or(&[][..], |verified| &verified.mismatches);
    if wrong.is_empty() {
        return Ok(verified);
    }
    let mut message =
        format!("what was written is not what the checkpoint has: {}", count(wrong.len() as u64, "tensor"));
    for wrong in wrong.iter().take(MOST_NAMED) {
        let ranks: Vec<String> = wrong.ranks.iter().map(u32::to_string).collect();
        message.push_str(&format!("\n{}: rank {}", quote(&wrong.tensor), ranks.join(", ")));
    }
    let help = "nothing was kept; suspect the disk, or a checkpoint that changes".to_owned();
    Err(Failure::new(Kind::No, message).with_help(help))
}

fn print(
    args: &Export,
    parts: &[RankPart],
    verified: Option<&Verified>,
    elapsed: Duration,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
    let files: u64 = parts.iter().map(|part| part.record.files.len() as u64).sum();
    if args.json {
        let ranks: Vec<_> = parts
            .iter()
            .map(|part| json!({"rank": part.record.rank, "bytes": part.bytes, "files": part.record.files}))
            .collect();
        return print_json(
            out,
            &json!({
                "folder": args.output,
                "ranks": ranks,
                "bytes": bytes,
                "seconds": elapsed.as_secs_f64(),
                "verified": verified.map(|_| true),
                "verified_tensors": verified.map(|verified| verified.tensors),
            }),
        );
    }
    writeln!(
        out,
        "exported {} of {} into {}, {} in {:.2} s, {:.2} GB/s",
        count(parts.len() as u64, "rank"),
        Size(bytes),
        count(files, "file"),
        args.output.display(),
        elapsed.as_secs_f64(),
        figures::gb_per_second(bytes, elapsed),
    )?;
    let whose = match args.rank {
        Some(_) => "are those of this rank's boxes in the checkpoint",
        None => "add up to those of the checkpoint",
    };
    let Some(verified) = verified else {
        writeln!(out, "not verified: --verify off")?;
        return Ok(());
    };
    let tensors = match verified.left_out {
        0 => format!("all {}", count(verified.tensors, "tensor")),
        left_out => {
            format!("{} of {}", verified.tensors, count(verified.tensors + left_out, "tensor"))
        }
    };
    writeln!(out, "verified: the fingerprints of the written files {whose}, for {tensors}")?;
    Ok(())
}
