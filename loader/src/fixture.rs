//! Plans of the checkpoints that the tests have.

use shardwright_planner::{
    checkpoint::Catalog,
    mesh::Mesh,
    model::{CONFIG_NAME, Config},
    plan::{CastDtype, Plan},
    planning::{PlanRequest, Sharing, build},
    rules::{Families, UserRules},
    topology::{HostFacts, Topology, builtin},
};
use std::path::PathBuf;

/// A plan of the checkpoint called `name`, for this host, and the checkpoint.
pub(crate) fn planned(name: &str, dp: u32, pp: u32, tp: u32) -> (Plan, Catalog) {
    planned_as(name, dp, pp, tp, None)
}

/// The same, to be loaded in another dtype.
pub(crate) fn planned_as(name: &str, dp: u32, pp: u32, tp: u32, cast: Option<CastDtype>) -> (Plan, Catalog) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints").join(name);
    let catalog = Catalog::open(&folder).unwrap();
    let config = Config::read(&folder.join(CONFIG_NAME)).unwrap();
    let mesh = Mesh::new(dp, pp, tp).unwrap();
    let facts = HostFacts { devices: mesh.world_size(), memory_bytes: 1 << 30 };
    let topology = Topology::parse(builtin("host").unwrap(), "host", None, Some(facts)).unwrap();
    let request = PlanRequest {
        catalog: &catalog,
        path: &folder,
        config: &config,
        families: &Families::built_in().unwrap(),
        user: &UserRules::default(),
        topology: &topology,
        mesh,
        sharing: &Sharing::default(),
        cast,
    };
    (build(&request).unwrap(), catalog)
}
