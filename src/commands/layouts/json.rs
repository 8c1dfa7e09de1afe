//! Layouts for programs.

use super::{Found, calibrate::name, show::dollars};
use serde_json::{Value, json};
use shardwright_planner::{calibration::PointErrors, layouts::Prices, serving::Workload};

/// All machines, each with its layouts.
pub(super) fn document(all: &[Found], workload: &Workload, prices: &Prices, errors: &[PointErrors]) -> Value {
    json!({
        "model": all.first().map(|found| &found.layouts.model),
        "context_len": workload.context_len,
        "prompt_len": workload.prompt_len,
        "concurrency": workload.concurrency,
        "calibration": errors.iter().map(of_kind).collect::<Vec<_>>(),
        "machines": all.iter().map(|found| machine(found, prices)).collect::<Vec<_>>(),
    })
}

fn of_kind(errors: &PointErrors) -> Value {
    json!({
        "what": name(errors.kind),
        "points": errors.points,
        "median_error_before": errors.before,
        "median_error_after": errors.after,
    })
}

fn machine(found: &Found, prices: &Prices) -> Value {
    let layouts = &found.layouts;
    let judged = layouts.judged.iter().map(|judged| {
        let memory = judged.memory;
        json!({
            "tp": judged.layout.tp,
            "pp": judged.layout.pp,
            "dp": judged.layout.dp,
            "expert_parallel": judged.layout.expert_parallel,
            "gpus": judged.gpus(),
            "serves": judged.serves(),
            "pareto": judged.pareto,
            "memory": {
                "total_bytes": memory.total,
                "reserved_bytes": memory.reserved,
                "weight_bytes": memory.weights,
                "activation_bytes": memory.activations,
                "runtime_bytes": memory.runtime,
                "communicator_bytes": memory.communicators,
                "graph_bytes": memory.graphs,
                "cache_bytes": memory.cache,
                "lacking_bytes": memory.lacks,
                "stage": memory.stage,
                "bytes_per_sequence": memory.bytes_per_sequence,
            },
            "kv_tokens": memory.tokens,
            "sequences": memory.sequences,
            "dollars_per_hour": prices.of(&found.machine, judged.gpus()),
            "dollars_per_million_tokens": dollars(found, judged, prices),
            "speed": judged.speed.map(|speed| json!({
                "sequences": judged.running,
                "seconds_per_token": speed.seconds_per_token,
                "tokens_per_second": speed.tokens_per_second,
                "first_token_seconds": speed.first_token,
                "decode_step": {
                    "weights": speed.decode.weights,
                    "cache": speed.decode.cache,
                    "compute": speed.decode.compute,
                    "collectives": speed.decode.collectives,
                    "experts": speed.decode.experts,
                    "send": speed.decode.send,
                    "overhead": speed.decode.overhead,
                    "total": speed.decode.total(),
                },
            })),
        })
    });
    json!({
        "topology": found.machine.name(),
        "layouts": judged.collect::<Vec<_>>(),
        "out": layouts.out.iter().map(|out| json!({"tp": out.tp, "ep": out.ep, "reason": out.reason})).collect::<Vec<_>>(),
        "notes": layouts.notes,
    })
}
