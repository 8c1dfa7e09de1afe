//! Which GPU of this machine each rank loads into.

use crate::{
    cli::Load,
    failure::{Failure, Kind},
};
use shardwright_loader::{
    device::{
        CudaDevice, CudaOptions, Device,
        cuda::{Driver, Gpu},
    },
    load::LoadOptions,
};
use shardwright_planner::{plan::Plan, size::count};
use std::{collections::BTreeSet, path::Path, time::Duration};

/// How long NCCL may take to connect GPUs: on large machines it loads kernels for a minute.
const CONNECTING: Duration = Duration::from_secs(120);

/// The GPUs of this process.
pub(super) struct Gpus {
    driver: Driver,
    /// In the order in which a plan numbers them, or in that of `CUDA_VISIBLE_DEVICES`.
    gpus: Vec<Gpu>,
    /// `CUDA_VISIBLE_DEVICES`, where it is set: then its order counts.
    visible: Option<String>,
}

impl Gpus {
    /// Finds the GPUs.
    pub(super) fn find() -> Result<Self, Failure> {
        let driver = Driver::open().map_err(shardwright_loader::device::DeviceError::from)?;
        let mut gpus = driver.gpus().map_err(shardwright_loader::device::DeviceError::from)?;
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        if visible.is_none() {
            gpus.sort_by(|a, b| a.pci.cmp(&b.pci));
        }
        if gpus.is_empty() {
            let failure = Failure::new(Kind::Environment, "this process sees no GPU");
            return Err(failure.with_help(no_gpu_help(visible.as_deref())));
        }
        Ok(Self { driver, gpus, visible })
    }

    /// The GPU of `rank`, one of `here` that this process loads.
    fn of(&self, plan: &Plan, rank: u32, here: &[u32]) -> Result<&Gpu, Failure> {
        let Some(place) = plan.ranks.iter().find(|place| place.rank == rank) else {
            return Err(Failure::new(Kind::No, format!("the plan does not say where rank {rank} runs")));
        };
        // Whoever starts a process for each rank may show each of them its own GPU only.
        if let ([only], [_]) = (self.gpus.as_slice(), here) {
            return Ok(only);
        }
        let number = match &self.visible {
            // What is visible was put into the order of the node's ranks, as `shardwright placement` prints it.
            Some(_) => {
                plan.ranks.iter().filter(|other| other.node == place.node && other.rank < rank).count()
            }
            None => place.device as usize,
        };
        self.gpus.get(number).ok_or_else(|| {
            let message = format!(
                "rank {rank} runs on GPU {number} of its node, but this process sees {}",
                count(self.gpus.len() as u64, "GPU")
            );
            Failure::new(Kind::Environment, message).with_help(no_gpu_help(self.visible.as_deref()))
        })
    }

    /// The GPU that the driver has this number for.
    fn with_ordinal(&self, ordinal: u32) -> Result<&Gpu, Failure> {
        self.gpus.iter().find(|gpu| gpu.ordinal == ordinal).ok_or_else(|| {
            let message = format!("this process sees no GPU {ordinal}");
            Failure::new(Kind::Environment, message).with_help(no_gpu_help(self.visible.as_deref()))
        })
    }

    /// The devices of the ranks `here`, in their order; `ordinal` is the driver's number of the GPU of the only one, where it is not for
    /// the plan to say.
    pub(super) fn devices(
        &self,
        plan: &Plan,
        (here, ordinal): (&[u32], Option<u32>),
        args: &Load,
        options: &LoadOptions,
        nccl: Option<&nccl_rs::Library>,
    ) -> Result<Vec<Box<dyn Device>>, Failure> {
        let nodes: BTreeSet<u32> =
            plan.ranks.iter().filter(|place| here.contains(&place.rank)).map(|place| place.node).collect();
        if nodes.len() > 1 {
            let message = format!(
                "the plan is for GPUs of {} nodes, and one process reaches those of one",
                nodes.len()
            );
            let help =
                "start a process for each rank: with torchrun, mpirun, srun, or with --rank and --rendezvous";
            return Err(Failure::new(Kind::Usage, message).with_help(help.to_owned()));
        }
        here.iter()
            .map(|&rank| {
                let gpu = match ordinal {
                    Some(ordinal) => self.with_ordinal(ordinal)?,
                    None => self.of(plan, rank, here)?,
                };
                let options = CudaOptions {
                    staging_bytes: args.staging.bytes(),
                    registered: args.registered,
                    fingerprints: options.verify.is_some() || args.hold.is_some(),
                    // Less than the other ranks have: whose GPU hangs should say so itself.
                    patience: Duration::from_secs(args.patience) * 3 / 4,
                    connecting: args.meet_within.map_or(CONNECTING, Duration::from_secs),
                    rank,
                    tracer: options.tracer.clone(),
                };
                let device = CudaDevice::new(self.driver, gpu.clone(), options, nccl.cloned())?;
                Ok(Box::new(device) as Box<dyn Device>)
            })
            .collect()
    }
}

fn no_gpu_help(visible: Option<&str>) -> String {
    match visible {
        Some(visible) => {
            format!("CUDA_VISIBLE_DEVICES is {visible:?}: let it name a GPU for each rank of this node")
        }
        None => {
            "plan for the GPUs that there are, or load into this host's memory with --device host".to_owned()
        }
    }
}

/// NCCL, and what there is to say of how it was found.
pub(super) fn nccl(notes: &mut Vec<String>) -> Result<nccl_rs::Library, Failure> {
    let explicit = std::env::var_os("NCCL_LIBRARY");
    let library = nccl_rs::Library::open(explicit.as_deref().map(Path::new)).map_err(|error| {
        let help = "install NCCL (pip install nvidia-nccl-cu12, or libnccl2) and let LD_LIBRARY_PATH or NCCL_LIBRARY say where \
                    it is; or --verify off";
        Failure::of_text(Kind::Environment, &error.to_string()).with_help(help.to_owned())
    })?;
    if std::env::var_os("NCCL_COMM_BLOCKING").is_some_and(|value| value == "1") {
        notes.push("NCCL_COMM_BLOCKING=1 lets NCCL wait without an end for ranks that fail".to_owned());
    }
    notes.extend(library.refused().iter().map(|refusal| format!("{refusal}; using {}", library.name())));
    Ok(library)
}
