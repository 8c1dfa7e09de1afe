//! The assumptions that predict measured points best.
//!
//! One figure after the other is moved to where the points are predicted best (golden-section search on a logarithmic scale, some
//! rounds of all figures): few figures, each of which has one best place while the others stay. Figures that no point tells of stay
//! as they are.

use crate::{
    serving::{Assumptions, Deployment, Group, nccl_all_reduce},
    topology::{Bytes, Latency},
};

/// How often all figures are gone through.
const ROUNDS: usize = 4;

/// Steps of each search: each leaves 0.618 of the range.
const STEPS: usize = 40;

/// What a point is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Times of all-reduces.
    AllReduce,
    /// Tokens that the cache has room for.
    KvTokens,
    /// Tokens a second.
    TokensPerSecond,
}

/// A measured point, with the facts that it is predicted from.
#[derive(Debug, Clone)]
pub enum Point {
    /// An all-reduce of NCCL's.
    AllReduce {
        /// The ranks.
        group: Group,
        /// Bytes on each.
        bytes: f64,
        /// What was measured, in seconds.
        seconds: f64,
    },
    /// Tokens that the cache has room for.
    KvTokens {
        /// What was served.
        of: Box<Deployment>,
        /// What was measured.
        tokens: f64,
    },
    /// Tokens a second of all sequences together.
    TokensPerSecond {
        /// What was served.
        of: Box<Deployment>,
        /// What was measured.
        tokens_per_second: f64,
    },
}

impl Point {
    /// What it is of.
    pub fn kind(&self) -> Kind {
        match self {
            Self::AllReduce { .. } => Kind::AllReduce,
            Self::KvTokens { .. } => Kind::KvTokens,
            Self::TokensPerSecond { .. } => Kind::TokensPerSecond,
        }
    }

    /// What `assumptions` predict, and what was measured.
    pub fn predicted(&self, assumptions: &Assumptions) -> (f64, f64) {
        match self {
            Self::AllReduce { group, bytes, seconds } => {
                (nccl_all_reduce(group, *bytes, assumptions).seconds, *seconds)
            }
            Self::KvTokens { of, tokens } => (of.budget(assumptions).tokens as f64, *tokens),
            Self::TokensPerSecond { of, tokens_per_second } => {
                (of.speed(assumptions).tokens_per_second, *tokens_per_second)
            }
        }
    }

    /// How far off that is: 0.1 for a tenth too much, or as much too little.
    fn off(&self, assumptions: &Assumptions) -> f64 {
        let (predicted, measured) = self.predicted(assumptions);
        (predicted.max(f64::MIN_POSITIVE) / measured).ln().abs()
    }
}

/// How far off points of one kind are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PointErrors {
    /// What they are of.
    pub kind: Kind,
    /// How many there are.
    pub points: usize,
    /// Half of them are less far off than this, as a share of what was measured, with the assumptions that came in.
    pub before: f64,
    /// The same with those that went out.
    pub after: f64,
}

/// Assumptions that were fitted.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// The assumptions.
    pub assumptions: Assumptions,
    /// How far off the points of each kind are.
    pub errors: Vec<PointErrors>,
}

/// A figure that can be moved.
struct Figure {
    /// Of which points it is told by.
    kind: Kind,
    from: f64,
    to: f64,
    set: fn(&mut Assumptions, f64),
    get: fn(&Assumptions) -> f64,
}

const FIGURES: [Figure; 7] = [
    Figure {
        kind: Kind::AllReduce,
        from: 0.05,
        to: 1.0,
        set: |assumptions, value| assumptions.speed.links = value,
        get: |assumptions| assumptions.speed.links,
    },
    Figure {
        kind: Kind::AllReduce,
        from: 0.05,
        to: 1.0,
        set: |assumptions, value| assumptions.speed.network = value,
        get: |assumptions| assumptions.speed.network,
    },
    Figure {
        kind: Kind::AllReduce,
        from: 5e2,
        to: 1e6,
        set: |assumptions, value| assumptions.speed.collective = Latency::new(whole(value)),
        get: |assumptions| assumptions.speed.collective.nanoseconds() as f64,
    },
    Figure {
        kind: Kind::KvTokens,
        from: (16u64 << 20) as f64,
        to: (64u64 << 30) as f64,
        set: |assumptions, value| assumptions.memory.runtime = Bytes::new(whole(value)),
        get: |assumptions| assumptions.memory.runtime.bytes() as f64,
    },
    Figure {
        kind: Kind::TokensPerSecond,
        from: 0.02,
        to: 1.0,
        set: |assumptions, value| assumptions.speed.memory = value,
        get: |assumptions| assumptions.speed.memory,
    },
    Figure {
        kind: Kind::TokensPerSecond,
        from: 1e2,
        to: 1e6,
        set: |assumptions, value| assumptions.speed.layer = Latency::new(whole(value)),
        get: |assumptions| assumptions.speed.layer.nanoseconds() as f64,
    },
    Figure {
        kind: Kind::TokensPerSecond,
        from: 1e4,
        to: 1e8,
        set: |assumptions, value| assumptions.speed.step = Latency::new(whole(value)),
        get: |assumptions| assumptions.speed.step.nanoseconds() as f64,
    },
];

/// Fits `assumptions` to `points`.
pub fn fit(assumptions: &Assumptions, points: &[Point]) -> Fitted {
    let mut fitted = assumptions.clone();
    for _ in 0..ROUNDS {
        for figure in &FIGURES {
            let of_kind: Vec<&Point> = points.iter().filter(|point| point.kind() == figure.kind).collect();
            if of_kind.is_empty() {
                continue;
            }
            let off = |value: f64| {
                let mut moved = fitted.clone();
                (figure.set)(&mut moved, value);
                of_kind.iter().map(|point| point.off(&moved)).sum::<f64>()
            };
            let best = lowest(figure.from, figure.to, &off);
            // Where a search ends in another valley than the one it began in, the better one counts.
            let before = (figure.get)(&fitted);
            let better = if off(best) < off(before) { best } else { before };
            (figure.set)(&mut fitted, better);
        }
    }
    let mut kinds: Vec<Kind> = points.iter().map(Point::kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let errors = kinds.into_iter().map(|kind| {
        let of_kind = || points.iter().filter(move |point| point.kind() == kind);
        let half = |assumptions: &Assumptions| {
            median(of_kind().map(|point| {
                let (predicted, measured) = point.predicted(assumptions);
                (predicted - measured).abs() / measured
            }))
        };
        PointErrors { kind, points: of_kind().count(), before: half(assumptions), after: half(&fitted) }
    });
    let errors = errors.collect();
    Fitted { assumptions: fitted, errors }
}

/// Where `of` is lowest between two places, by golden-section search on a logarithmic scale.
fn lowest(from: f64, to: f64, of: &dyn Fn(f64) -> f64) -> f64 {
    const GOLDEN: f64 = 0.618_033_988_749_894_8;
    let (mut low, mut high) = (from.ln(), to.ln());
    let inner = |low: f64, high: f64| (high - GOLDEN * (high - low), low + GOLDEN * (high - low));
    let (mut a, mut b) = inner(low, high);
    let (mut at_a, mut at_b) = (of(a.exp()), of(b.exp()));
    for _ in 0..STEPS {
        if at_a <= at_b {
            (high, b, at_b) = (b, a, at_a);
            a = inner(low, high).0;
            at_a = of(a.exp());
        } else {
            (low, a, at_a) = (a, b, at_b);
            b = inner(low, high).1;
            at_b = of(b.exp());
        }
    }
    ((low + high) / 2.0).exp().clamp(from, to)
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => 0.0,
        (count, middle) if count % 2 == 1 => sorted[middle],
        (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn whole(value: f64) -> u64 {
    value.round().max(1.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serving::{Layout, Machine, Model, Stage, Workload};

    fn group(ranks: u32) -> Group {
        Group {
            ranks,
            nodes: 1,
            ring: 300e9,
            between: f64::INFINITY,
            hop: 5e-7,
            network_hop: 0.0,
            direct: false,
            in_switch: false,
        }
    }

    /// Points that another set of assumptions predicts, each off by up to a share.
    fn points(truth: &Assumptions, off: f64) -> Vec<Point> {
        let mut points = Vec::new();
        for (number, power) in (10..32).enumerate() {
            let wrong = 1.0 + off * if number % 2 == 0 { 1.0 } else { -1.0 };
            let (group, bytes) = (group(8), f64::from(1u32 << power.min(31)));
            let seconds = nccl_all_reduce(&group, bytes, truth).seconds * wrong;
            points.push(Point::AllReduce { group, bytes, seconds });
        }
        let machine = Machine {
            memory_bytes: 80 << 30,
            memory_bytes_per_second: 2e12,
            flops_per_second: 300e12,
            tensor: None,
            expert: None,
            pipeline: None,
        };
        let layout = Layout { tp: 1, pp: 1, dp: 1, expert_parallel: false };
        for billions in [1u64, 3, 8, 14, 30] {
            let bytes = billions * 2_000_000_000;
            let stage = Stage {
                layers: 20 + billions,
                weight_bytes: bytes,
                dense_bytes: bytes,
                dense_flops: bytes as f64,
                cache_per_sequence: 2048 * 20 * 2048,
                ..Stage::default()
            };
            let model = Model {
                stages: vec![stage],
                hidden: 4096,
                vocabulary: 0,
                query_heads: 32,
                head_size: 128,
                experts: 1,
                experts_per_token: 1,
                activation_bytes: 2,
            };
            for concurrency in [1, 16] {
                let workload = Workload {
                    context_len: 2048,
                    prompt_len: 1024,
                    concurrency,
                    cache_bits: 16,
                    utilization: 0.9,
                    batched_tokens: None,
                };
                let (model, machine) = (model.clone(), machine.clone());
                let of = Box::new(Deployment { model, layout, machine, workload });
                let tokens_per_second = of.speed(truth).tokens_per_second;
                points.push(Point::TokensPerSecond { of, tokens_per_second });
            }
            let workload = Workload {
                context_len: 2048,
                prompt_len: 1024,
                concurrency: 1,
                cache_bits: 16,
                utilization: 0.9,
                batched_tokens: None,
            };
            let of = Box::new(Deployment { model, layout, machine: machine.clone(), workload });
            let tokens = of.budget(truth).tokens as f64;
            points.push(Point::KvTokens { of, tokens });
        }
        points
    }

    fn truth() -> Assumptions {
        let mut truth = Assumptions::built_in().unwrap();
        truth.speed.links = 0.6;
        truth.speed.collective = Latency::new(25_000);
        truth.speed.memory = 0.5;
        truth.speed.layer = Latency::new(40_000);
        truth.speed.step = Latency::new(2_000_000);
        truth.memory.runtime = Bytes::new(3 << 30);
        truth
    }

    #[test]
    fn what_points_were_made_with_is_found_again() {
        let (built_in, truth) = (Assumptions::built_in().unwrap(), truth());
        let fitted = fit(&built_in, &points(&truth, 0.0));
        for errors in &fitted.errors {
            assert!(errors.before > 0.02 && errors.after < 0.02, "{errors:?}");
        }
        let (found, truth) = (&fitted.assumptions.speed, &truth.speed);
        assert!((found.links / truth.links - 1.0).abs() < 0.05, "{found:?}");
        assert!((found.memory / truth.memory - 1.0).abs() < 0.1, "{found:?}");
        // Of what no point tells, nothing is changed.
        assert_eq!(found.compute, built_in.speed.compute);
        assert!(Assumptions::parse(&crate::yaml::to_string(&fitted.assumptions).unwrap()).is_ok());
    }

    #[test]
    fn noise_does_not_lead_far_away() {
        let fitted = fit(&Assumptions::built_in().unwrap(), &points(&truth(), 0.1));
        assert!((fitted.assumptions.speed.links / 0.6 - 1.0).abs() < 0.25, "{:?}", fitted.assumptions.speed);
        assert!(fitted.errors.iter().all(|errors| errors.after < 0.12), "{:?}", fitted.errors);
    }

    #[test]
    fn nothing_measured_changes_nothing() {
        let built_in = Assumptions::built_in().unwrap();
        assert_eq!(fit(&built_in, &[]), Fitted { assumptions: built_in.clone(), errors: Vec::new() });
    }
}
