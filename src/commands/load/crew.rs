//! Who loads what, and into which device: the ranks of this process, and how they agree with all others.

use super::{
    call::Brought,
    gpus::{self, Gpus},
};
use crate::{
    cli::{DeviceChoice, IoChoice, Load},
    failure::{Failure, Kind},
    inputs::{check_rank, checkpoint_of},
    interrupt::Interrupts,
    output::escaped_line,
};
use shardwright_loader::{
    cast::Casts,
    collective::{Communicator, GroupCommunicator, Lifeline, TcpCommunicator, local_group},
    device::{Device, HostDevice},
    launch::{Address, Details, Launched, Rendezvous, launched},
    load::{Lent, LoadError, LoadOptions, Seat, cores},
    manifest::Manifest,
    numa::NumaNodes,
    source::{Io, Opened, open},
};
use shardwright_planner::{checkpoint::Catalog, plan::Plan};
use std::{cell::RefCell, sync::Arc, time::Duration};

/// The kind of GPU that a plan for host memory has.
const HOST_KIND: &str = "host";

/// Letters of a plan's digest that name a job whose launcher has no name for it.
const JOB_LETTERS: usize = 16;

/// The ranks of this process, each with its device and its end of the group.
pub(super) struct Crew {
    members: Vec<Member>,
    company: Company,
    /// What there is to say of how it came about.
    pub(super) notes: Vec<String>,
    /// The checkpoint, and its files.
    pub(super) catalog: Catalog,
    pub(super) files: Opened,
}

struct Member {
    rank: u32,
    device: Box<dyn Device>,
    /// Taken when loading begins.
    communicator: RefCell<Option<Box<dyn Communicator>>>,
    lent: Lent,
}

/// Where the other ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    /// There is one rank in this process, and no other takes part.
    Alone,
    /// All ranks are threads of this process.
    Threads,
    /// Each rank is a process.
    Processes,
}

/// Which ranks this process has, and how they meet the others.
enum Part {
    One {
        rank: u32,
    },
    All,
    OneOfMany {
        rank: u32,
        address: Address,
        job: String,
        /// Processes of the job on this host, where the launcher says.
        here: Option<u32>,
    },
}

impl Part {
    /// A rank that no other joins: all of them, where it is the only one.
    fn alone(plan: &Plan, rank: u32) -> Self {
        if plan.mesh.world_size() == 1 { Self::All } else { Self::One { rank } }
    }
}

impl Crew {
    /// Finds out who is to load what, opens the checkpoint, finds the devices, and meets the other processes, if there are any.
    pub(super) fn muster(
        args: &Load,
        (plan, exported): (&Plan, Option<Catalog>),
        brought: &Brought,
        options: &mut LoadOptions,
        interrupts: &Interrupts,
    ) -> Result<Self, Failure> {
        let patience = Duration::from_secs(args.patience);
        let part = part(args, plan)?;
        options.threads = threads(args, &part);
        let mut notes = Vec::new();
        let (company, here) = match part {
            Part::One { rank } => (Company::Alone, vec![rank]),
            Part::All => (Company::Threads, (0..plan.mesh.world_size()).collect()),
            Part::OneOfMany { rank, .. } => (Company::Processes, vec![rank]),
        };
        let gpus = gpus(args, plan);
        // A rank whose GPUs are amiss has its NCCL all the same: the others are to hear of the GPUs, not of a difference.
        let on_gpus = args.device == DeviceChoice::Cuda || matches!(gpus, Some(Ok(_)));
        let agrees = brought.group.is_none()
            && options.verify.is_some()
            && plan.mesh.world_size() > 1
            && company != Company::Alone;
        let nccl = if on_gpus && agrees { Some(gpus::nccl(&mut notes)) } else { None };
        let version = nccl.as_ref().and_then(|nccl| nccl.as_ref().ok()).map(nccl_rs::Library::version);
        let io = io(args)?;
        if args.manifest.is_some() && options.verify.is_none() {
            let failure = Failure::new(
                Kind::Usage,
                "a manifest says what to compare with, and --verify off compares nothing",
            );
            return Err(failure.with_help("leave one of them out".to_owned()));
        }
        if args.manifest.is_some() && company == Company::Alone {
            let failure = Failure::new(
                Kind::Usage,
                "a manifest has the sums of whole tensors, which one rank alone does not hold",
            );
            return Err(failure.with_help("load all ranks, or leave --manifest out".to_owned()));
        }
        let catalog = exported.map_or_else(|| checkpoint_of(plan, &args.file), Ok);
        let prepared = catalog.and_then(|catalog| {
            let devices = devices(args, plan, options, (&here, brought.gpu), (gpus, nccl), &mut notes)?;
            let shared = company == Company::Processes;
            if let Some(path) = &args.manifest {
                let casts = Casts::new(plan, &catalog)?;
                options.manifest = Some(Arc::new(Manifest::read(path, &catalog, &casts)?));
            }
            let files = open(&catalog, io, shared, options.threads).map_err(LoadError::from)?;
            Ok((catalog, files, devices))
        });
        let communicators: Vec<Option<Box<dyn Communicator>>> = match part {
            Part::One { .. } => vec![None],
            Part::All => {
                let ends = local_group(plan.mesh.world_size(), patience).into_iter();
                ends.map(|end| Some(Box::new(end) as Box<dyn Communicator>)).collect()
            }
            Part::OneOfMany { rank, address, job, .. } => {
                let device = prepared.as_ref().ok().and_then(|(_, _, devices)| devices.first());
                let details = Details {
                    nccl: version.map(|version| version.major * 10_000 + version.minor * 100 + version.patch),
                    host: host_name(),
                    device: device.map_or_else(|| "no device".to_owned(), |device| device.name()),
                    pid: std::process::id(),
                };
                let met = meet(plan, rank, address, job, details, args, interrupts);
                let mut end = match (met, &prepared) {
                    // What is wrong here is why, whatever came of the meeting.
                    (Err(_), Err(failure)) => return Err(failure.clone()),
                    (met, _) => met?,
                };
                notes.extend(end.notes().iter().cloned());
                if let Err(failure) = &prepared {
                    // The others wait for this rank: let them hear why it does not come.
                    end.abort(&failure.message);
                }
                let end: Box<dyn Communicator> = Box::new(end);
                vec![Some(match &brought.group {
                    Some(group) => Box::new(GroupCommunicator::new(end, Arc::clone(group))),
                    None => end,
                })]
            }
        };
        let (catalog, files, devices) = prepared?;
        notes.extend(files.notes.iter().cloned());
        let numa = NumaNodes::of_host();
        notes.extend(numa.in_words(&numa.of_devices(devices.iter().map(AsRef::as_ref))));
        let members = here
            .into_iter()
            .zip(devices)
            .zip(communicators)
            .map(|((rank, device), end)| {
                let lent = brought.lent.clone();
                Member { rank, device, communicator: RefCell::new(end), lent }
            })
            .collect();
        Ok(Self { members, company, notes, catalog, files })
    }

    /// Where the other ranks are.
    pub(super) fn company(&self) -> Company {
        self.company
    }

    pub(super) fn ranks(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.rank).collect()
    }

    /// The devices' names, in the order of the ranks.
    pub(super) fn places(&self) -> Vec<String> {
        self.members.iter().map(|member| member.device.name()).collect()
    }

    /// The ranks that have a lifeline, with theirs.
    pub(super) fn lifelines(&self) -> Vec<(u32, Lifeline)> {
        let lifeline =
            |member: &Member| member.communicator.borrow().as_ref().map(|end| (member.rank, end.lifeline()));
        self.members.iter().filter_map(lifeline).collect()
    }

    /// The seats for loading; the communicators are in them from then on.
    pub(super) fn seats(&self) -> Vec<Seat<'_>> {
        self.members.iter().map(Member::seat).collect()
    }
}

impl Member {
    fn seat(&self) -> Seat<'_> {
        Seat {
            rank: self.rank,
            device: self.device.as_ref(),
            communicator: self.communicator.take(),
            lent: self.lent.clone(),
        }
    }
}

/// What the arguments and the launcher say together.
fn part(args: &Load, plan: &Plan) -> Result<Part, Failure> {
    if let (true, Some(rank)) = (args.alone, args.rank) {
        check_rank(plan, rank)?;
        return Ok(Part::alone(plan, rank));
    }
    // Who is told both by name need not ask who started it.
    let is_told = args.rank.is_some() && args.rendezvous.is_some() && args.world_size.is_none();
    let launched = if is_told {
        None
    } else {
        launched(&|name| std::env::var(name).ok()).map_err(|error| usage(&error))?
    };
    let launched = launched.filter(|launched| launched.world != Some(1));
    if let Some(rank) = args.rank {
        check_rank(plan, rank)?;
    }
    let (rank, given) = match (&launched, args.rank) {
        (None, None) => {
            let option = args.rendezvous.as_ref().map(|_| "--rendezvous");
            let Some(option) = option.or(args.world_size.map(|_| "--world-size")) else {
                return Ok(Part::All);
            };
            let message = format!("{option} is for one rank of many, and nothing says which one this is");
            let failure = Failure::new(Kind::Usage, message);
            return Err(
                failure.with_help("give --rank as well, or let a launcher start the ranks".to_owned())
            );
        }
        (None, Some(rank)) if args.rendezvous.is_none() => {
            if args.world_size.is_some() {
                let failure =
                    Failure::new(Kind::Usage, "--world-size says nothing about where the ranks meet");
                return Err(failure.with_help("give --rendezvous HOST:PORT as well".to_owned()));
            }
            return Ok(Part::alone(plan, rank));
        }
        (None, Some(rank)) => (rank, None),
        (Some(launched), rank) => (rank.unwrap_or(launched.rank), launched.world),
    };
    check_world(args, plan, launched.as_ref(), given)?;
    check_rank(plan, rank)?;
    let address = match (&args.rendezvous, &launched) {
        (Some(address), _) => address.parse().map_err(|error| usage(&error))?,
        (None, Some(launched)) => launched.address().map_err(|error| usage(&error))?.clone(),
        (None, None) => return Ok(Part::alone(plan, rank)),
    };
    let here = launched.as_ref().and_then(|launched| launched.local_world);
    let job = match launched.and_then(|launched| launched.job) {
        Some(job) => job,
        None => plan.digest()?.chars().take(JOB_LETTERS).collect(),
    };
    Ok(Part::OneOfMany { rank, address, job, here })
}

/// How files are read.
fn io(args: &Load) -> Result<Io, Failure> {
    match args.io {
        IoChoice::Auto | IoChoice::Mmap if args.registered => Ok(Io::Mmap),
        IoChoice::Read | IoChoice::Direct if args.registered => {
            let failure = Failure::new(Kind::Usage, "--registered copies from mapped files");
            Err(failure.with_help("leave --io out, or give --io mmap".to_owned()))
        }
        IoChoice::Auto => Ok(Io::Auto),
        IoChoice::Mmap => Ok(Io::Mmap),
        IoChoice::Read => Ok(Io::Read),
        IoChoice::Direct => Ok(Io::Direct),
    }
}

/// Threads that read in this process: all cores', or this process's share of them; 0 for as many as there are.
fn threads(args: &Load, part: &Part) -> usize {
    if let Some(threads) = args.threads {
        return threads as usize;
    }
    let cores = cores();
    match part {
        Part::OneOfMany { here: Some(processes), .. } => (cores / (*processes).max(1) as usize).max(1),
        _ => cores,
    }
}

/// Checks that there are as many ranks as the plan has.
fn check_world(
    args: &Load,
    plan: &Plan,
    launched: Option<&Launched>,
    given: Option<u32>,
) -> Result<(), Failure> {
    let world = plan.mesh.world_size();
    let (who, found) = match (args.world_size, given, launched) {
        (Some(found), _, _) => ("--world-size says".to_owned(), found),
        (None, Some(found), Some(launched)) => (format!("{} started", launched.launcher), found),
        _ => return Ok(()),
    };
    if found == world {
        return Ok(());
    }
    let message = format!("{who} {found} ranks, but the plan has {world}");
    let help = format!("start {world} processes, or plan for {found} ranks");
    Err(Failure::new(Kind::Usage, message).with_help(help))
}

fn usage(error: &impl ToString) -> Failure {
    Failure::of_text(Kind::Usage, &error.to_string())
}

fn meet(
    plan: &Plan,
    rank: u32,
    address: Address,
    job: String,
    details: Details,
    args: &Load,
    interrupts: &Interrupts,
) -> Result<TcpCommunicator, Failure> {
    let rendezvous = Rendezvous {
        address,
        rank,
        world: plan.mesh.world_size(),
        job,
        plan_digest: plan.digest()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        details,
        progress_within: Some(Duration::from_secs(args.patience)),
    };
    let within = Duration::from_secs(args.meet_within.unwrap_or(args.patience));
    Ok(rendezvous.join(within, &|| interrupts.is_interrupted())?)
}

/// This host's name, for messages on other hosts.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "unknown".to_owned(),
        name => escaped_line(name),
    }
}

/// What was looked for and found or not; `None` where nothing was.
type Sought<T> = Option<Result<T, Failure>>;

/// The GPUs to load into, or why there are none; `None` where this host's memory is what was asked for.
fn gpus(args: &Load, plan: &Plan) -> Sought<Gpus> {
    match args.device {
        DeviceChoice::Host => None,
        DeviceChoice::Auto if !is_for_gpus(plan) => None,
        DeviceChoice::Auto | DeviceChoice::Cuda => Some(Gpus::find()),
    }
}

fn is_for_gpus(plan: &Plan) -> bool {
    plan.ranks.iter().any(|place| place.kind != HOST_KIND)
}

/// The devices of the ranks `here`, in their order, from the GPUs and the NCCL that were found.
fn devices(
    args: &Load,
    plan: &Plan,
    options: &LoadOptions,
    (here, gpu): (&[u32], Option<u32>),
    (gpus, nccl): (Sought<Gpus>, Sought<nccl_rs::Library>),
    notes: &mut Vec<String>,
) -> Result<Vec<Box<dyn Device>>, Failure> {
    let host = || here.iter().map(|_| Box::new(HostDevice) as Box<dyn Device>).collect();
    let gpus = match gpus {
        None => return Ok(host()),
        Some(Err(failure)) if args.device == DeviceChoice::Auto => {
            notes.push(format!("loading into host memory: {}", failure.message));
            return Ok(host());
        }
        // What is wrong with the GPUs comes first.
        Some(gpus) => gpus?,
    };
    let nccl = nccl.transpose()?;
    gpus.devices(plan, (here, gpu), args, options, nccl.as_ref())
}
