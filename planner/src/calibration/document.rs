//! Measured points, as people write them down or as nccl-tests prints them.

use crate::yaml;
use serde::Deserialize;

/// Most points of a file.
const MOST_POINTS: usize = 10_000;

/// How much two measurements of the same thing may differ.
const MOST_APART: f64 = 1.5;

/// A measured point, written as `all-reduce: {…}`, `kv-tokens: {…}` or `tokens-per-second: {…}`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Form")]
pub enum Measurement {
    /// An all-reduce.
    AllReduce {
        /// Ranks.
        gpus: u32,
        /// Bytes on each of them.
        bytes: u64,
        /// Microseconds.
        us: f64,
    },
    /// Tokens that an engine has room for in its cache: vLLM's `GPU KV cache size`.
    KvTokens {
        /// Ranks that share each layer.
        tp: u32,
        /// Pipeline stages.
        pp: u32,
        /// What share of the memory it was given.
        utilization: f64,
        /// The tokens.
        tokens: u64,
    },
    /// Tokens that all sequences together got a second while decoding.
    TokensPerSecond {
        /// Ranks that share each layer.
        tp: u32,
        /// Pipeline stages.
        pp: u32,
        /// Copies of the model.
        dp: u32,
        /// Sequences at a time.
        concurrency: u64,
        /// Tokens that each had, on average.
        context_len: u64,
        /// What was measured.
        tokens_per_second: f64,
    },
}

/// A point as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Form {
    all_reduce: Option<AllReduce>,
    kv_tokens: Option<KvTokens>,
    tokens_per_second: Option<TokensPerSecond>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AllReduce {
    gpus: u32,
    bytes: u64,
    us: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KvTokens {
    tp: u32,
    #[serde(default = "one")]
    pp: u32,
    utilization: f64,
    tokens: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct TokensPerSecond {
    tp: u32,
    #[serde(default = "one")]
    pp: u32,
    #[serde(default = "one")]
    dp: u32,
    concurrency: u64,
    context_len: u64,
    tokens_per_second: f64,
}

impl TryFrom<Form> for Measurement {
    type Error = &'static str;

    fn try_from(form: Form) -> Result<Self, &'static str> {
        match (form.all_reduce, form.kv_tokens, form.tokens_per_second) {
            (Some(AllReduce { gpus, bytes, us }), None, None) => Ok(Self::AllReduce { gpus, bytes, us }),
            (None, Some(KvTokens { tp, pp, utilization, tokens }), None) => {
                Ok(Self::KvTokens { tp, pp, utilization, tokens })
            }
            (None, None, Some(point)) => {
                let TokensPerSecond { tp, pp, dp, concurrency, context_len, tokens_per_second } = point;
                Ok(Self::TokensPerSecond { tp, pp, dp, concurrency, context_len, tokens_per_second })
            }
            _ => Err("a point is one of `all-reduce`, `kv-tokens` and `tokens-per-second`"),
        }
    }
}

fn one() -> u32 {
    1
}

/// Why points cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    /// Neither YAML of points nor what nccl-tests prints.
    #[error("line {line}, column {column}: {reason}")]
    NotYaml {
        /// Line.
        line: usize,
        /// Column.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// No point in it.
    #[error("there is no measured point in it")]
    Empty,
    /// More points than anybody measures.
    #[error("there are more than {most} points in it")]
    TooMany {
        /// How many may be.
        most: usize,
    },
    /// A number that was not measured.
    #[error("point {number}: `{key}` is {found}, which nobody can have measured")]
    Absurd {
        /// Which point, from 1.
        number: usize,
        /// Which of its numbers.
        key: &'static str,
        /// What stands there.
        found: String,
    },
    /// Two points of the same thing that cannot both be right.
    #[error("points {first} and {second} are of the same thing and contradict each other: {values}")]
    Contradiction {
        /// One, from 1.
        first: usize,
        /// The other.
        second: usize,
        /// What they say.
        values: String,
    },
}

impl Measurement {
    /// What was measured, in its unit.
    fn value(&self) -> f64 {
        match self {
            Self::AllReduce { us, .. } => *us,
            Self::KvTokens { tokens, .. } => *tokens as f64,
            Self::TokensPerSecond { tokens_per_second, .. } => *tokens_per_second,
        }
    }

    /// The same with nothing measured: what it is of.
    fn subject(&self) -> Self {
        let mut subject = self.clone();
        match &mut subject {
            Self::AllReduce { us, .. } => *us = 0.0,
            Self::KvTokens { tokens, .. } => *tokens = 0,
            Self::TokensPerSecond { tokens_per_second, .. } => *tokens_per_second = 0.0,
        }
        subject
    }

    fn check(&self, number: usize) -> Result<(), CalibrationError> {
        let absurd = |key, found: String| Err(CalibrationError::Absurd { number, key, found });
        let positive = |value: f64| value > 0.0 && value < 1e15;
        let ranks = |ranks: u32| (1..=65_536).contains(&ranks);
        match *self {
            Self::AllReduce { gpus, bytes, us } => match () {
                () if !(2..=65_536).contains(&gpus) => absurd("gpus", gpus.to_string()),
                () if bytes == 0 || bytes > 1 << 50 => absurd("bytes", bytes.to_string()),
                () if !positive(us) => absurd("us", us.to_string()),
                () => Ok(()),
            },
            Self::KvTokens { tp, pp, utilization, tokens } => match () {
                () if !ranks(tp) => absurd("tp", tp.to_string()),
                () if !ranks(pp) => absurd("pp", pp.to_string()),
                () if !(0.01..=1.0).contains(&utilization) => absurd("utilization", utilization.to_string()),
                () if tokens == 0 || tokens > 1 << 50 => absurd("tokens", tokens.to_string()),
                () => Ok(()),
            },
            Self::TokensPerSecond { tp, pp, dp, concurrency, context_len, tokens_per_second } => match () {
                () if !ranks(tp) => absurd("tp", tp.to_string()),
                () if !ranks(pp) => absurd("pp", pp.to_string()),
                () if !ranks(dp) => absurd("dp", dp.to_string()),
                () if concurrency == 0 || concurrency > 1_000_000 => {
                    absurd("concurrency", concurrency.to_string())
                }
                () if context_len == 0 || context_len > 1 << 32 => {
                    absurd("context-len", context_len.to_string())
                }
                () if !positive(tokens_per_second) => {
                    absurd("tokens-per-second", tokens_per_second.to_string())
                }
                () => Ok(()),
            },
        }
    }
}

/// The points of a text: a YAML list, or what `all_reduce_perf` of nccl-tests prints.
///
/// # Errors
/// [`CalibrationError`] names the place, or the points and the numbers.
pub fn measurements(text: &str) -> Result<Vec<Measurement>, CalibrationError> {
    let all = match nccl_tests(text) {
        Some(points) => points,
        None => yaml::from_str(text).map_err(|error| CalibrationError::NotYaml {
            line: error.line,
            column: error.column,
            reason: error.message,
        })?,
    };
    if all.is_empty() {
        return Err(CalibrationError::Empty);
    }
    if all.len() > MOST_POINTS {
        return Err(CalibrationError::TooMany { most: MOST_POINTS });
    }
    for (point, number) in all.iter().zip(1..) {
        point.check(number)?;
    }
    for (second, point) in all.iter().enumerate() {
        let same = |other: &&Measurement| other.subject() == point.subject();
        let Some(first) = all[..second].iter().position(|other| same(&other)) else { continue };
        let (a, b) = (all[first].value(), point.value());
        if a.max(b) > a.min(b) * MOST_APART {
            let values = format!("{a} and {b}");
            return Err(CalibrationError::Contradiction { first: first + 1, second: second + 1, values });
        }
    }
    Ok(all)
}

/// The out-of-place times of a table of `all_reduce_perf`; `None` where it is none.
///
/// Source: the columns of nccl-tests: size, count, type, redop, root, time (us), algbw, busbw, #wrong.
fn nccl_tests(text: &str) -> Option<Vec<Measurement>> {
    let is_table = text.lines().any(|line| line.starts_with('#') && line.contains("out-of-place"));
    if !is_table {
        return None;
    }
    let ranks = text.lines().filter(|line| {
        let mut words = line.trim_start_matches('#').split_whitespace();
        line.starts_with('#')
            && words.next() == Some("Rank")
            && words.next().is_some_and(|word| word.parse::<u32>().is_ok())
    });
    let gpus = u32::try_from(ranks.count()).ok()?;
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let bytes = words.first()?.parse().ok().filter(|&bytes: &u64| bytes > 0)?;
        Some(Measurement::AllReduce { gpus, bytes, us: words.get(5)?.parse().ok()? })
    };
    Some(text.lines().filter(|line| !line.starts_with('#')).filter_map(of_line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_from_yaml() {
        let text = "
- all-reduce: { gpus: 8, bytes: 8388608, us: 98.5 }
- kv-tokens: { tp: 8, utilization: 0.9, tokens: 1234560 }
- tokens-per-second: { tp: 4, dp: 2, concurrency: 64, context-len: 2048, tokens-per-second: 2500 }
";
        let points = measurements(text).unwrap();
        assert_eq!(points[0], Measurement::AllReduce { gpus: 8, bytes: 8_388_608, us: 98.5 });
        assert_eq!(points[1], Measurement::KvTokens { tp: 8, pp: 1, utilization: 0.9, tokens: 1_234_560 });
        assert!(matches!(points[2], Measurement::TokensPerSecond { tp: 4, pp: 1, dp: 2, .. }));
    }

    #[test]
    fn a_table_of_nccl_tests_is_read_as_it_is_printed() {
        let text = "\
# nThread 1 nGpus 2 minBytes 8 maxBytes 134217728 step: 2(factor) warmup iters: 5 iters: 20 agg iters: 1 validation: 1 graph: 0
#
# Using devices
#  Rank  0 Group  0 Pid 100 on      host device  0 [0x1b] NVIDIA A100-SXM4-80GB
#  Rank  1 Group  0 Pid 100 on      host device  1 [0x1c] NVIDIA A100-SXM4-80GB
#
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
           0             0     float     sum      -1     0.11    0.00    0.00      0     0.11    0.00    0.00      0
        1024           256     float     sum      -1    11.20    0.09    0.09      0    11.10    0.09    0.09      0
   134217728      33554432     float     sum      -1    700.1  191.71  191.71      0    699.0  192.01  192.01      0
# Out of bounds values : 0 OK
# Avg bus bandwidth    : 95.9
";
        let points = measurements(text).unwrap();
        assert_eq!(
            points,
            [
                Measurement::AllReduce { gpus: 2, bytes: 1024, us: 11.2 },
                Measurement::AllReduce { gpus: 2, bytes: 134_217_728, us: 700.1 },
            ]
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_number() {
        let of = |text: &str| measurements(text).unwrap_err();
        assert!(matches!(of("- banana: { gpus: 8 }"), CalibrationError::NotYaml { .. }));
        assert_eq!(of("[]"), CalibrationError::Empty);
        for (point, key) in [
            ("all-reduce: { gpus: 1, bytes: 8, us: 1 }", "gpus"),
            ("all-reduce: { gpus: 2, bytes: 0, us: 1 }", "bytes"),
            ("all-reduce: { gpus: 2, bytes: 8, us: .nan }", "us"),
            ("kv-tokens: { tp: 1, utilization: 9, tokens: 1 }", "utilization"),
            ("kv-tokens: { tp: 0, utilization: 0.9, tokens: 1 }", "tp"),
            (
                "tokens-per-second: { tp: 1, concurrency: 0, context-len: 1, tokens-per-second: 1 }",
                "concurrency",
            ),
            (
                "tokens-per-second: { tp: 1, concurrency: 1, context-len: 1, tokens-per-second: -1 }",
                "tokens-per-second",
            ),
        ] {
            let text = format!("- all-reduce: {{ gpus: 2, bytes: 8, us: 1 }}\n- {point}\n");
            assert!(
                matches!(of(&text), CalibrationError::Absurd { number: 2, key: found, .. } if found == key),
                "{point}"
            );
        }
    }

    #[test]
    fn points_of_one_thing_must_agree() {
        let text = |us: f64| {
            format!(
                "- all-reduce: {{ gpus: 2, bytes: 8, us: 10 }}\n- all-reduce: {{ gpus: 4, bytes: 8, us: 99 }}\n- all-reduce: {{ gpus: 2, bytes: 8, us: {us} }}\n"
            )
        };
        assert!(measurements(&text(14.0)).is_ok());
        let error = measurements(&text(30.0)).unwrap_err();
        assert!(matches!(error, CalibrationError::Contradiction { first: 1, second: 3, .. }), "{error}");
    }
}
