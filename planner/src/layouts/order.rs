//! Which of two layouts is the better one, and which are worse than another in every respect.

use super::judged::Judged;
use std::cmp::Ordering;

/// What is wanted most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Goal {
    /// Each sequence's next token as soon as can be.
    Latency,
    /// As many tokens a second as can be, of all sequences together.
    #[default]
    Throughput,
    /// As few GPUs as can be.
    FewestGpus,
}

/// Best first: what serves all sequences, by the goal, then by the other things in turn.
pub(super) fn order(goal: Goal, a: &Judged, b: &Judged) -> Ordering {
    let serves = |judged: &Judged| judged.serves();
    let fits = |judged: &Judged| judged.memory.lacks == 0 && judged.memory.sequences > 0;
    let wait = |judged: &Judged| judged.speed.map_or(f64::INFINITY, |speed| speed.seconds_per_token);
    let rate = |judged: &Judged| judged.speed.map_or(0.0, |speed| speed.tokens_per_second);
    let by_latency = || wait(a).total_cmp(&wait(b));
    let by_rate = || rate(b).total_cmp(&rate(a));
    let by_gpus = || a.gpus().cmp(&b.gpus());
    let by_goal = match goal {
        Goal::Latency => by_latency().then_with(by_rate).then_with(by_gpus),
        Goal::Throughput => by_rate().then_with(by_latency).then_with(by_gpus),
        Goal::FewestGpus => by_gpus().then_with(by_rate).then_with(by_latency),
    };
    serves(b)
        .cmp(&serves(a))
        .then(fits(b).cmp(&fits(a)))
        .then_with(|| if fits(a) { by_goal } else { a.memory.lacks.cmp(&b.memory.lacks) })
        .then_with(|| b.memory.tokens.cmp(&a.memory.tokens))
        .then_with(|| simpler(a).cmp(&simpler(b)))
}

/// Of what is alike otherwise: fewer stages, fewer copies.
fn simpler(judged: &Judged) -> (bool, u32, u32, u32) {
    let layout = judged.layout;
    (layout.expert_parallel, layout.pp, layout.dp, layout.tp)
}

/// Marks those than which no other is at least as good in GPUs, latency and tokens a second, and better in one.
pub(super) fn mark_pareto(all: &mut [Judged]) {
    let points: Vec<Option<[f64; 3]>> = all
        .iter()
        .map(|judged| {
            let speed = judged.speed.filter(|_| judged.serves())?;
            Some([f64::from(judged.gpus()), speed.seconds_per_token, -speed.tokens_per_second])
        })
        .collect();
    for (judged, point) in all.iter_mut().zip(&points) {
        let Some(point) = point else { continue };
        let beats = |other: &[f64; 3]| {
            let pairs = || other.iter().zip(point);
            pairs().all(|(other, own)| other <= own) && pairs().any(|(other, own)| other < own)
        };
        judged.pareto = !points.iter().flatten().any(beats);
    }
}
