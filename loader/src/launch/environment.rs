//! What launchers tell a process of itself, in variables.
//!
//! In comes a way to look a variable up; out comes which rank this is, or none where nobody launched it. Of several launchers
//! the innermost counts: torchrun and mpirun are started by Slurm or in pods, not the other way round.
//!
//! Sources: "Environment Variables" of PyTorch's documentation of torchrun; "Environment variables set for MPI applications"
//! of Open MPI's (<https://docs.open-mpi.org/en/v5.0.x/tuning-apps/environment-var.html>); `PMI_RANK` and `PMI_SIZE` of
//! MPICH's Hydra, `MPI_LOCALRANKID` and `MPI_LOCALNRANKS` of Hydra and Intel MPI; "OUTPUT ENVIRONMENT VARIABLES" of Slurm's
//! srun (<https://slurm.schedmd.com/srun.html>); "Indexed Job" of Kubernetes' documentation.

use super::{
    Address, AddressError,
    hosts::{first_host, tasks_on},
};
use shardwright_planner::quote::quote;
use std::fmt;

/// Our own variable for the port at which ranks meet, whoever launched them.
const PORT: &str = "SHARDWRIGHT_PORT";

/// The port where the host is given, but neither a port nor a job to derive one from.
const DEFAULT_PORT: u16 = 29_401;

/// Ports derived from a job's name: the first, and how many. They end before those that Linux gives out by itself begin
/// (`net.ipv4.ip_local_port_range`, from 32768 on).
const DERIVED_PORTS: (u16, u16) = (20_000, 12_768);

/// Slurm's numbers of steps that are not srun's: interactive, batch script, pending, extern and so on.
const FIRST_SPECIAL_STEP: u32 = 0xffff_fff0;

/// Who starts processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Launcher {
    /// PyTorch's, or whatever sets the same variables.
    Torchrun,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// `mpiexec` of MPICH, Intel MPI and their like.
    Pmi,
    /// `srun`.
    Slurm,
    /// An indexed job.
    Kubernetes,
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI",
            Self::Pmi => "MPICH",
            Self::Slurm => "Slurm",
            Self::Kubernetes => "Kubernetes",
        })
    }
}

/// What a launcher said of this process. `rank` is below `world`, and `local_rank` below `local_world`, where they are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launched {
    /// Who said it.
    pub launcher: Launcher,
    /// This process's rank.
    pub rank: u32,
    /// Ranks of the job. One is alone, and meets nobody.
    pub world: Option<u32>,
    /// This process among those of its host.
    pub local_rank: Option<u32>,
    /// Processes of the job on this host.
    pub local_world: Option<u32>,
    /// The job's name, the same on all ranks.
    pub job: Option<String>,
    /// Where rank 0 listens, as far as it can be known.
    pub address: Option<Address>,
}

/// What launchers' variables cannot mean.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A variable's value is not of its kind.
    #[error("{variable} is {}, which is no {wanted}", quote(value))]
    Value {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// One of two variables that belong together is missing.
    #[error(
        "{given} is set, but {missing} is not\nhelp: {launcher} sets both; unset {given} if it did not start this process"
    )]
    HalfSet {
        /// Who sets them.
        launcher: Launcher,
        /// The one that is there.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// Two variables contradict each other.
    #[error("{small} is {is} and {large} is {below}, but the first should be {}", if *or_equal { "no more than the second" } else { "less than the second" })]
    Contradiction {
        /// The variable that should be the smaller.
        small: &'static str,
        /// Its value.
        is: u32,
        /// The other one.
        large: &'static str,
        /// Its value.
        below: u32,
        /// Whether the two may be equal.
        or_equal: bool,
    },
    /// A host or port makes no address.
    #[error("{variable}: {source}")]
    Address {
        /// Where the host is from.
        variable: &'static str,
        /// Why.
        source: AddressError,
    },
    /// Nothing says where rank 0 is.
    #[error(
        "{launcher} started this process as rank {rank}, but nothing says where rank 0 is\nhelp: give --rendezvous HOST:PORT, the same on all ranks, or set MASTER_ADDR; {PORT} is enough where all ranks are on one host"
    )]
    NoAddress {
        /// Who started it.
        launcher: Launcher,
        /// Its rank.
        rank: u32,
    },
}

impl Launched {
    /// Where rank 0 listens.
    ///
    /// # Errors
    /// [`LaunchError::NoAddress`] when it cannot be known.
    pub fn address(&self) -> Result<&Address, LaunchError> {
        self.address.as_ref().ok_or(LaunchError::NoAddress { launcher: self.launcher, rank: self.rank })
    }
}

/// Finds out which rank this process was launched as; none if it was not, as in a batch script outside any step.
///
/// # Errors
/// [`LaunchError`] names the variable that is missing or wrong, and its value.
pub fn launched(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Option<Launched>, LaunchError> {
    let variables = Variables(lookup);
    let found = match variables.torchrun()? {
        None => variables.mpi()?,
        found => found,
    };
    let found = match found {
        None => variables.slurm()?,
        found => found,
    };
    let found = match found {
        None => variables.kubernetes()?,
        found => found,
    };
    found.map(|found| variables.located(found)).transpose()
}

/// What was found, and the host of rank 0 where the launcher knows it.
struct Found {
    launched: Launched,
    host: Option<(&'static str, String)>,
}

/// The variables of a rank, and of how many there are.
struct Names {
    launcher: Launcher,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static str,
    local_world: &'static str,
}

struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    /// A variable's value; an empty one is none.
    fn text(&self, variable: &str) -> Option<String> {
        (self.0)(variable).filter(|value| !value.is_empty())
    }

    fn number(&self, variable: &'static str) -> Result<Option<u32>, LaunchError> {
        let Some(value) = self.text(variable) else { return Ok(None) };
        match value.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(LaunchError::Value { variable, value, wanted: "number" }),
        }
    }

    fn port(&self, variable: &'static str) -> Result<Option<u16>, LaunchError> {
        let Some(value) = self.text(variable) else { return Ok(None) };
        match value.parse() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err(LaunchError::Value { variable, value, wanted: "port" }),
        }
    }

    fn torchrun(&self) -> Result<Option<Found>, LaunchError> {
        let found = self.counted(&Names {
            launcher: Launcher::Torchrun,
            rank: "RANK",
            world: "WORLD_SIZE",
            local_rank: "LOCAL_RANK",
            local_world: "LOCAL_WORLD_SIZE",
        })?;
        let job = self.text("TORCHELASTIC_RUN_ID");
        Ok(found.map(|launched| Found { launched: Launched { job, ..launched }, host: None }))
    }

    fn mpi(&self) -> Result<Option<Found>, LaunchError> {
        let open = self.counted(&Names {
            launcher: Launcher::OpenMpi,
            rank: "OMPI_COMM_WORLD_RANK",
            world: "OMPI_COMM_WORLD_SIZE",
            local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
            local_world: "OMPI_COMM_WORLD_LOCAL_SIZE",
        })?;
        if let Some(launched) = open {
            let job = self.text("PMIX_NAMESPACE");
            return Ok(Some(Found { launched: Launched { job, ..launched }, host: None }));
        }
        let pmi = self.counted(&Names {
            launcher: Launcher::Pmi,
            rank: "PMI_RANK",
            world: "PMI_SIZE",
            local_rank: "MPI_LOCALRANKID",
            local_world: "MPI_LOCALNRANKS",
        })?;
        let Some(launched) = pmi else { return Ok(None) };
        // srun sets these too, for programs that speak PMI; it knows more.
        if let Some(slurm) = self.slurm()?
            && (slurm.launched.rank, slurm.launched.world) == (launched.rank, launched.world)
        {
            return Ok(Some(slurm));
        }
        Ok(Some(Found { launched, host: None }))
    }

    fn slurm(&self) -> Result<Option<Found>, LaunchError> {
        let step = self.number("SLURM_STEP_ID")?;
        let Some(rank) = self.number("SLURM_PROCID")? else { return Ok(None) };
        if step.is_some_and(|step| step >= FIRST_SPECIAL_STEP) {
            return Ok(None);
        }
        let names = |world| Names {
            launcher: Launcher::Slurm,
            rank: "SLURM_PROCID",
            world,
            local_rank: "SLURM_LOCALID",
            local_world: "SLURM_STEP_TASKS_PER_NODE",
        };
        let (names, world) = match (self.number("SLURM_STEP_NUM_TASKS")?, step) {
            (Some(world), _) => (names("SLURM_STEP_NUM_TASKS"), Some(world)),
            (None, Some(_)) => (names("SLURM_NTASKS"), self.number("SLURM_NTASKS")?),
            // A batch script is process 0 of its allocation, but its tasks are only those of the steps that it starts.
            (None, None) => return Ok(None),
        };
        let local_world = match (self.text(names.local_world), self.number("SLURM_NODEID")?) {
            (Some(value), Some(node)) => match tasks_on(&value, node) {
                None => {
                    let wanted = "list of tasks for each node that includes this one";
                    return Err(LaunchError::Value { variable: names.local_world, value, wanted });
                }
                tasks => tasks,
            },
            _ => None,
        };
        // A batch script that was submitted from within a step inherits that step's variables, but not its tasks on this node.
        let tasks_here = self.text("SLURM_GTIDS").map(|tasks| tasks.split(',').count());
        if let (Some(tasks), Some(local_world)) = (tasks_here, local_world)
            && tasks != local_world as usize
        {
            return Ok(None);
        }
        let launched = checked(&names, rank, world, self.number(names.local_rank)?, local_world)?;
        let job = match (self.text("SLURM_JOB_ID"), step) {
            (Some(job), Some(step)) => Some(format!("{job}.{step}")),
            (job, _) => job,
        };
        let variable = "SLURM_STEP_NODELIST";
        let host = match self.text(variable) {
            None => None,
            Some(value) => match first_host(&value) {
                None => return Err(LaunchError::Value { variable, value, wanted: "list of hosts" }),
                Some(host) => Some((variable, host)),
            },
        };
        Ok(Some(Found { launched: Launched { job, ..launched }, host }))
    }

    /// An indexed job says which pod this is, but not how many there are: the plan does. A pod is a host of its own.
    fn kubernetes(&self) -> Result<Option<Found>, LaunchError> {
        let rank = self.number("JOB_COMPLETION_INDEX")?;
        Ok(rank.map(|rank| {
            let launched = Launched {
                launcher: Launcher::Kubernetes,
                rank,
                world: None,
                local_rank: Some(0),
                local_world: Some(1),
                job: None,
                address: None,
            };
            Found { launched, host: None }
        }))
    }

    /// A rank and how many there are: both or neither.
    fn counted(&self, names: &Names) -> Result<Option<Launched>, LaunchError> {
        let half = |given, missing| Err(LaunchError::HalfSet { launcher: names.launcher, given, missing });
        match (self.number(names.rank)?, self.number(names.world)?) {
            (None, None) => Ok(None),
            (Some(_), None) => half(names.rank, names.world),
            (None, Some(_)) => half(names.world, names.rank),
            (Some(rank), Some(world)) => {
                let (local_rank, local_world) =
                    (self.number(names.local_rank)?, self.number(names.local_world)?);
                checked(names, rank, Some(world), local_rank, local_world).map(Some)
            }
        }
    }

    /// Adds where rank 0 listens: a host that was given, or is known, or is this one; and a port that was given, or the one
    /// after torchrun's own, or one that goes with the job.
    fn located(&self, found: Found) -> Result<Launched, LaunchError> {
        let Found { launched, host } = found;
        let master = self.text("MASTER_ADDR").map(|host| ("MASTER_ADDR", host));
        let given = master.is_some();
        let together = launched.world.is_some() && launched.local_world == launched.world;
        let here = together.then(|| ("this host", "127.0.0.1".to_owned()));
        let own = self.port(PORT)?;
        let next = match self.port("MASTER_PORT")? {
            Some(port) => {
                let next = port.checked_add(1).ok_or_else(|| LaunchError::Value {
                    variable: "MASTER_PORT",
                    value: port.to_string(),
                    wanted: "port with one after it",
                });
                // Its own port is torchrun's store's; it does no harm where we need none.
                if own.is_none() { Some(next?) } else { None }
            }
            None => None,
        };
        let derived = launched.job.as_deref().map(port_of);
        let port = own.or(next).or(derived).or(given.then_some(DEFAULT_PORT));
        let address = match (master.or(here).or(host), port) {
            // A single rank meets nobody.
            _ if launched.world == Some(1) => None,
            (Some((variable, host)), Some(port)) => {
                let address = Address::new(&host, port);
                Some(address.map_err(|source| LaunchError::Address { variable, source })?)
            }
            _ => None,
        };
        Ok(Launched { address, ..launched })
    }
}

fn checked(
    names: &Names,
    rank: u32,
    world: Option<u32>,
    local_rank: Option<u32>,
    local_world: Option<u32>,
) -> Result<Launched, LaunchError> {
    let pairs = [
        ((names.rank, Some(rank)), (names.world, world), false),
        ((names.local_rank, local_rank), (names.local_world, local_world), false),
        ((names.local_rank, local_rank), (names.world, world), false),
        ((names.local_world, local_world), (names.world, world), true),
    ];
    for ((small, is), (large, below), or_equal) in pairs {
        if let (Some(is), Some(below)) = (is, below)
            && (is > below || (is == below && !or_equal))
        {
            return Err(LaunchError::Contradiction { small, is, large, below, or_equal });
        }
    }
    let launcher = names.launcher;
    Ok(Launched { launcher, rank, world, local_rank, local_world, job: None, address: None })
}

/// A port that goes with a job: the same on all its ranks, and most likely another for another job. FNV-1a.
fn port_of(job: &str) -> u16 {
    let hash = job.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, letter| {
        (hash ^ u64::from(letter)).wrapping_mul(0x0100_0000_01b3)
    });
    let (first, count) = DERIVED_PORTS;
    // The low bits of the product depend on the low bits of the letters only: fold the high ones in.
    let at = u16::try_from((hash ^ hash >> 32) % u64::from(count)).unwrap_or_default();
    first + at
}

#[cfg(test)]
mod tests;
