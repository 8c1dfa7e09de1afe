//! Finding what the arguments name: topologies, plans and their checkpoints, facts of this machine.

use crate::{
    cli::PlanFile,
    failure::{Failure, Kind},
};
use shardwright_loader::device::HostDevice;
use shardwright_planner::{
    checkpoint::{Catalog, CatalogError},
    export::{self, Exported, is_export},
    model::{CONFIG_NAME, Config},
    plan::Plan,
    quote::quote,
    topology::{HostFacts, Topology, builtin, builtins},
};
use std::path::{Path, PathBuf};

/// Longest topology file that is read, in bytes.
const MAX_TOPOLOGY_BYTES: u64 = 4 << 20;

/// The text of the topology `name`: built in, or a file.
pub(crate) fn topology_text(name: &str) -> Result<String, Failure> {
    if let Some(text) = builtin(name) {
        return Ok(text.to_owned());
    }
    let known = || {
        let names: Vec<&str> = builtins().map(|(name, _)| name).collect();
        format!("built-in topologies are {}; any other is given by the path of its file", names.join(", "))
    };
    let meta = std::fs::metadata(name).map_err(|error| {
        let message =
            format!("{} is no built-in topology, and no file can be read there: {error}", quote(name));
        Failure::new(Kind::BadInput, message).with_help(known())
    })?;
    if !meta.is_file() || meta.len() > MAX_TOPOLOGY_BYTES {
        let message = format!(
            "{} is no topology file: not a file, or longer than {MAX_TOPOLOGY_BYTES} bytes",
            quote(name)
        );
        return Err(Failure::new(Kind::BadInput, message).with_help(known()));
    }
    std::fs::read_to_string(name)
        .map_err(|error| Failure::new(Kind::BadInput, format!("cannot read {}: {error}", quote(name))))
}

/// The topology `name`, for `devices` devices where the machine at hand may have as many as are asked for.
pub(crate) fn topology(name: &str, nodes: Option<u32>, devices: u32) -> Result<Topology, Failure> {
    let host = HostFacts { devices, memory_bytes: HostDevice.total_bytes().unwrap_or(0) };
    Ok(Topology::parse(&topology_text(name)?, name, nodes, Some(host))?)
}

/// The model's configuration, from the `config.json` beside the weights.
pub(crate) fn config(catalog: &Catalog) -> Result<Config, Failure> {
    Ok(Config::read(&catalog.folder().join(CONFIG_NAME))?)
}

/// A plan and the catalog of its checkpoint, which is the one that was planned.
pub(crate) fn plan_and_checkpoint(file: &PlanFile) -> Result<(Plan, Catalog), Failure> {
    let (plan, exported) = plan_of(file)?;
    let catalog = exported.map_or_else(|| checkpoint_of(&plan, file), Ok)?;
    Ok((plan, catalog))
}

/// The plan; of an export its folder's, and its catalog, which is opened with it.
pub(crate) fn plan_of(file: &PlanFile) -> Result<(Plan, Option<Catalog>), Failure> {
    if !is_export(&file.plan) {
        return Ok((Plan::read(&file.plan)?, None));
    }
    if file.checkpoint.is_some() {
        let message = format!("{} is an export, which has the weights itself", file.plan.display());
        let failure = Failure::new(Kind::Usage, message);
        return Err(failure.with_help("leave --checkpoint out".to_owned()));
    }
    let Exported { plan, catalog } = export::open(&file.plan)?;
    Ok((plan, Some(catalog)))
}

/// Checks that the plan has the rank.
pub(crate) fn check_rank(plan: &Plan, rank: u32) -> Result<(), Failure> {
    let world = plan.mesh.world_size();
    if rank < world {
        return Ok(());
    }
    let message = format!("rank {rank} does not exist: the plan has ranks 0 to {}", world - 1);
    Err(Failure::new(Kind::Usage, message))
}

/// The catalog of the checkpoint that was planned.
pub(crate) fn checkpoint_of(plan: &Plan, file: &PlanFile) -> Result<Catalog, Failure> {
    let path = file.checkpoint.as_ref().unwrap_or(&plan.checkpoint.path);
    let catalog = Catalog::open(path).map_err(|error| {
        let moved = file.checkpoint.is_none() && matches!(error, CatalogError::Read { .. });
        let failure = Failure::from(error);
        match moved {
            true => {
                failure.with_help("if the checkpoint was moved, say where it is with --checkpoint".to_owned())
            }
            false => failure,
        }
    })?;
    plan.check_against(&catalog)?;
    Ok(catalog)
}

/// `path` from the root, so that a plan means the same checkpoint wherever it is used.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(Kind::BadInput, format!("cannot resolve {}: {error}", path.display())))
}
