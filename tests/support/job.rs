//! A job of several processes, each of which loads its rank.

use super::{Outcome, finish, text};
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread::ScopedJoinHandle,
    time::{Duration, Instant},
};

/// How processes are told which rank they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Launcher {
    Torchrun,
    OpenMpi,
    Pmi,
    Slurm,
    Kubernetes,
    Arguments,
}

/// Makes a command of arguments.
type MakeCommand<'a> = dyn Fn(&[&str]) -> Command + 'a;

/// Processes that are started one by one, as a launcher would.
pub(crate) struct Job<'a> {
    pub(crate) plan: PathBuf,
    pub(crate) world: u32,
    pub(crate) launcher: Launcher,
    /// Seconds after which a rank is given up.
    pub(crate) patience: u64,
    port: u16,
    /// The binary with arguments, on whatever machine it is to run.
    command: Box<MakeCommand<'a>>,
}

impl<'a> Job<'a> {
    pub(crate) fn new(plan: &Path, world: u32, command: impl Fn(&[&str]) -> Command + 'a) -> Self {
        // The system names a port that nobody has; it is free again until rank 0 takes it.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self {
            plan: plan.to_owned(),
            world,
            launcher: Launcher::Torchrun,
            patience: 4,
            port,
            command: Box::new(command),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The command of one rank, not yet started.
    pub(crate) fn command(&self, rank: u32, args: &[&str]) -> Command {
        let patience = self.patience.to_string();
        let usual = ["load", text(&self.plan), "--patience", &patience, "--meet-within", &patience];
        let (rank, world, port) = (rank.to_string(), self.world.to_string(), self.port.to_string());
        let meet = format!("127.0.0.1:{port}");
        let own = match self.launcher {
            Launcher::Arguments => vec!["--rank", &rank, "--world-size", &world, "--rendezvous", &meet],
            _ => Vec::new(),
        };
        let mut command = (self.command)(&[&usual, own.as_slice(), args].concat());
        let variables: &[(&str, &str)] = match self.launcher {
            Launcher::Torchrun => &[
                ("RANK", &rank),
                ("WORLD_SIZE", &world),
                ("LOCAL_RANK", &rank),
                ("LOCAL_WORLD_SIZE", &world),
                ("MASTER_ADDR", "127.0.0.1"),
                // torchrun itself is at this one.
                ("MASTER_PORT", "1"),
                ("TORCHELASTIC_RUN_ID", "a job"),
                ("SHARDWRIGHT_PORT", &port),
            ],
            Launcher::OpenMpi => &[
                ("OMPI_COMM_WORLD_RANK", &rank),
                ("OMPI_COMM_WORLD_SIZE", &world),
                ("OMPI_COMM_WORLD_LOCAL_RANK", &rank),
                ("OMPI_COMM_WORLD_LOCAL_SIZE", &world),
                ("PMIX_NAMESPACE", "prterun-a-job@1"),
                ("SHARDWRIGHT_PORT", &port),
            ],
            Launcher::Pmi => &[
                ("PMI_RANK", &rank),
                ("PMI_SIZE", &world),
                ("MPI_LOCALRANKID", &rank),
                ("MPI_LOCALNRANKS", &world),
                ("SHARDWRIGHT_PORT", &port),
            ],
            Launcher::Slurm => &[
                ("SLURM_PROCID", &rank),
                ("SLURM_STEP_NUM_TASKS", &world),
                ("SLURM_LOCALID", &rank),
                ("SLURM_JOB_ID", "77"),
                ("SLURM_STEP_ID", "0"),
                ("SLURM_STEP_NODELIST", "localhost"),
                ("SHARDWRIGHT_PORT", &port),
            ],
            Launcher::Kubernetes => {
                &[("JOB_COMPLETION_INDEX", &rank), ("MASTER_ADDR", "127.0.0.1"), ("SHARDWRIGHT_PORT", &port)]
            }
            Launcher::Arguments => &[],
        };
        for (name, value) in variables {
            command.env(name, value);
        }
        command
    }

    pub(crate) fn start(&self, rank: u32, args: &[&str]) -> Child {
        self.command(rank, args).spawn().unwrap()
    }

    /// Starts all ranks, lets `meanwhile` do what it wants with them, and waits for all: no rank may outlast the others by much.
    pub(crate) fn run_with(&self, args: &[&str], meanwhile: impl FnOnce(&mut [Child])) -> Vec<Outcome> {
        let mut children: Vec<Child> = (0..self.world).map(|rank| self.start(rank, args)).collect();
        meanwhile(&mut children);
        all_end(children)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Vec<Outcome> {
        self.run_with(args, |_| ())
    }
}

/// Waits for all processes at once, so that none blocks on a pipe that nobody reads.
pub(crate) fn all_end(children: Vec<Child>) -> Vec<Outcome> {
    std::thread::scope(|scope| {
        let waiting: Vec<ScopedJoinHandle<'_, Outcome>> =
            children.into_iter().map(|child| scope.spawn(|| finish(child))).collect();
        waiting.into_iter().map(|outcome| outcome.join().unwrap()).collect()
    })
}

/// Sends a signal, as the shell does.
pub(crate) fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

/// Checks that what is measured from now to the end is less than `most`: whatever waits has an end.
pub(crate) struct Ends(Instant, Duration);

impl Ends {
    pub(crate) fn within(most: Duration) -> Self {
        Self(Instant::now(), most)
    }

    pub(crate) fn check(&self, what: impl std::fmt::Debug) {
        let Self(begin, most) = self;
        assert!(begin.elapsed() < *most, "took {:?}: {what:?}", begin.elapsed());
    }
}
