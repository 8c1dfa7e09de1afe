//! `layouts --calibrate`: what is assumed, fitted to what was measured.

use crate::{
    failure::{Failure, Kind},
    output::{print_table, table},
};
use shardwright_planner::{
    calibration::{self, Fitted, Measurement, Point, PointErrors, fit, measurements},
    layouts::{LayoutRequest, facts},
    mesh::Mesh,
    serving::{Deployment, Layout, Workload},
};
use std::{io::Write, path::Path};

/// Assumptions that predict the points of a file best.
pub(super) fn calibrated(path: &Path, text: &str, request: &LayoutRequest<'_>) -> Result<Fitted, Failure> {
    let help = "write a YAML list of points, like `- all-reduce: { gpus: 8, bytes: 8388608, us: 98 }`, `- kv-tokens: { tp: 8, \
                utilization: 0.9, tokens: 1234560 }` or `- tokens-per-second: { tp: 8, concurrency: 64, context-len: 2048, \
                tokens-per-second: 2500 }`, or give what nccl-tests prints";
    let bad = |error: &dyn std::fmt::Display| {
        Failure::new(Kind::BadInput, format!("{}: {error}", path.display())).with_help(help.to_owned())
    };
    let measured = measurements(text).map_err(|error| bad(&error))?;
    let mut points = Vec::with_capacity(measured.len());
    for (number, measurement) in (1..).zip(&measured) {
        let point = point(measurement, request)?;
        points.push(
            point.ok_or_else(|| {
                bad(&format!("point {number}: the modules do not divide by that many ranks"))
            })?,
        );
    }
    Ok(fit(request.assumptions, &points))
}

/// A measured point with the facts that it is predicted from; `None` where the modules do not divide.
fn point(measurement: &Measurement, request: &LayoutRequest<'_>) -> Result<Option<Point>, Failure> {
    Ok(match *measurement {
        Measurement::AllReduce { gpus, bytes, us } => {
            // How ranks reach each other does not depend on whether the model could be cut for them.
            let group = shardwright_planner::layouts::group(request.topology, gpus)?;
            group.map(|group| Point::AllReduce { group, bytes: bytes as f64, seconds: us / 1e6 })
        }
        Measurement::KvTokens { tp, pp, utilization, tokens } => {
            let workload = Workload { utilization, ..request.workload.clone() };
            let of = deployment(request, (tp, pp, 1), workload)?;
            of.map(|of| Point::KvTokens { of: Box::new(of), tokens: tokens as f64 })
        }
        Measurement::TokensPerSecond { tp, pp, dp, concurrency, context_len, tokens_per_second } => {
            let workload = Workload { concurrency, context_len, ..request.workload.clone() };
            let of = deployment(request, (tp, pp, dp), workload)?;
            of.map(|of| Point::TokensPerSecond { of: Box::new(of), tokens_per_second })
        }
    })
}

fn deployment(
    request: &LayoutRequest<'_>,
    (tp, pp, dp): (u32, u32, u32),
    workload: Workload,
) -> Result<Option<Deployment>, Failure> {
    let found = facts(request, Mesh::new(dp, pp, tp)?, false, workload.context_len)?;
    let layout = Layout { tp, pp, dp, expert_parallel: false };
    Ok(found.map(|(model, machine)| Deployment { model, layout, machine, workload }))
}

/// What a kind of point is of, in words.
pub(super) fn name(kind: calibration::Kind) -> &'static str {
    match kind {
        calibration::Kind::AllReduce => "all-reduce",
        calibration::Kind::KvTokens => "KV tokens",
        calibration::Kind::TokensPerSecond => "tokens/s",
    }
}

/// How far off points were before and are now.
pub(super) fn show(errors: &[PointErrors], out: &mut dyn Write) -> Result<(), Failure> {
    if errors.is_empty() {
        return Ok(());
    }
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    let rows = errors.iter().map(|errors| {
        [
            name(errors.kind).to_owned(),
            errors.points.to_string(),
            percent(errors.before),
            percent(errors.after),
        ]
    });
    print_table(out, &table(["measured", "points", "off % before", "after"], 1, rows))?;
    writeln!(out, "half of the points are less far off than that; fitted to these very points\n")?;
    Ok(())
}
