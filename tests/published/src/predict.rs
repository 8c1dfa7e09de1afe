//! What is known of a point: the facts that it is predicted from.

use crate::points::{Kind, Point};
use shardwright_planner::{
    calibration,
    checkpoint::Catalog,
    layouts::{Goal, LayoutRequest, facts, group},
    mesh::Mesh,
    model::{CONFIG_NAME, Config},
    rules::{Families, UserRules},
    serving::{Assumptions, Deployment, Layout, Workload},
    topology::{Topology, builtin},
};
use std::{
    error::Error,
    path::{Path, PathBuf},
};

const GIB: f64 = (1u64 << 30) as f64;

/// The skeletons, and what all predictions have in common.
pub(crate) struct Library {
    skeletons: PathBuf,
    families: Families,
    user: UserRules,
    assumptions: Assumptions,
}

/// What a point is predicted from.
pub(crate) enum Known {
    /// What was published, and what follows from the model alone.
    Fixed { measured: f64, predicted: f64 },
    /// What depends on the assumptions.
    Assumed(calibration::Point),
}

impl Known {
    /// What `assumptions` predict, and what was published, in the same unit.
    pub(crate) fn both(&self, assumptions: &Assumptions) -> (f64, f64) {
        match self {
            Self::Fixed { measured, predicted } => (*predicted, *measured),
            Self::Assumed(point @ calibration::Point::TokensPerSecond { of, .. }) => {
                let step = |rate: f64| of.workload.concurrency as f64 * 1e3 / rate;
                let (predicted, measured) = point.predicted(assumptions);
                (step(predicted), step(measured))
            }
            Self::Assumed(point @ calibration::Point::AllReduce { .. }) => {
                let (predicted, measured) = point.predicted(assumptions);
                (predicted * 1e6, measured * 1e6)
            }
            Self::Assumed(point) => point.predicted(assumptions),
        }
    }
}

impl Library {
    pub(crate) fn new(skeletons: &Path) -> Result<Self, Box<dyn Error>> {
        let (families, assumptions) = (Families::built_in()?, Assumptions::built_in()?);
        Ok(Self { skeletons: skeletons.to_owned(), families, user: UserRules::default(), assumptions })
    }

    /// The assumptions that come with shardwright.
    pub(crate) fn assumptions(&self) -> &Assumptions {
        &self.assumptions
    }

    pub(crate) fn known(&self, point: &Point) -> Result<Known, Box<dyn Error>> {
        let topology = topology_of(point)?;
        if point.kind == Kind::AllReduce {
            let group = group(&topology, point.gpus)?.ok_or("one GPU reduces nothing")?;
            let bytes = point.message_bytes.ok_or("no message_bytes")?;
            return Ok(Known::Assumed(calibration::Point::AllReduce {
                group,
                bytes,
                seconds: point.value / 1e6,
            }));
        }
        let of = self.deployment(point, &topology)?;
        Ok(match point.kind {
            Kind::Weights => {
                let bytes = of.model.stages.iter().map(|stage| stage.weight_bytes).max().unwrap_or(0);
                Known::Fixed { measured: point.value, predicted: bytes as f64 / GIB }
            }
            Kind::KvLayout => {
                let budgets = of.budgets(&self.assumptions);
                let bytes = budgets.iter().map(|budget| budget.bytes_per_sequence).max().unwrap_or(0);
                let per_token = bytes as f64 / of.workload.context_len as f64;
                let available = point.available_gib.ok_or("no available_gib")? * GIB;
                Known::Fixed { measured: point.value, predicted: available / per_token }
            }
            Kind::KvTokens => {
                Known::Assumed(calibration::Point::KvTokens { of: Box::new(of), tokens: point.value })
            }
            Kind::Decode => {
                let tokens_per_second = of.workload.concurrency as f64 * 1e3 / point.value;
                Known::Assumed(calibration::Point::TokensPerSecond { of: Box::new(of), tokens_per_second })
            }
            Kind::AllReduce => return Err("predicted above".into()),
        })
    }

    fn deployment(&self, point: &Point, topology: &Topology) -> Result<Deployment, Box<dyn Error>> {
        let folder = self.skeletons.join(&point.model);
        let catalog = Catalog::open(&folder)?;
        let config = Config::read(&folder.join(CONFIG_NAME))?;
        let workload = Workload {
            context_len: point.context_len.unwrap_or(4096),
            prompt_len: 1,
            concurrency: point.concurrency.unwrap_or(256),
            cache_bits: point.kv_bits.unwrap_or(16),
            utilization: point.utilization.unwrap_or(0.9),
            batched_tokens: point.batched_tokens,
        };
        let request = LayoutRequest {
            catalog: &catalog,
            config: &config,
            families: &self.families,
            user: &self.user,
            topology,
            cast: None,
            workload: &workload,
            assumptions: &self.assumptions,
            goal: Goal::Throughput,
        };
        let (tp, pp, dp) = (point.tp.unwrap_or(point.gpus), point.pp.unwrap_or(1), point.dp.unwrap_or(1));
        let found = facts(&request, Mesh::new(dp, pp, tp)?, false, workload.context_len)?;
        let (model, machine) = found.ok_or("the modules do not divide by that many ranks")?;
        let layout = Layout { tp, pp, dp, expert_parallel: false };
        Ok(Deployment { model, layout, machine, workload })
    }
}

/// The topology that ships under the point's name for it, or a host with cards of that kind: enough for what they hold.
fn topology_of(point: &Point) -> Result<Topology, Box<dyn Error>> {
    let nodes = point.nodes.unwrap_or(1);
    let text = builtin(&point.topology).map_or_else(|| {
        format!(
            "topology: host\nabout: cards of one kind\ngpu: {{ kind: {} }}\ngpus: {}\nhubs:\n  - {{ name: cpu0, kind: host-bridge, gpus: 0-{}, bandwidth: 31.5 GB/s }}\n{}",
            point.topology,
            point.gpus / nodes,
            point.gpus / nodes - 1,
            if nodes > 1 { "nics:\n  - { name: nic0, on: cpu0, bandwidth: 100 Gb/s }\nnetwork: { kind: Ethernet RoCE }\n" } else { "" },
        )
    }, str::to_owned);
    Ok(Topology::parse(&text, &point.topology, point.nodes, None)?)
}
