//! How fast a fingerprint is computed, against copying the same bytes: verification should cost little beside the load.

use criterion::{BenchmarkId, Criterion, Throughput};
use shardwright_loader::fingerprint::{Fingerprint, Form, seed_of};
use std::{hint::black_box, time::Duration};

/// Larger than any cache's share of one core, so that both sides wait for memory.
const MEMORY: usize = 64 << 20;

/// What lies in a core's own cache: how fast the arithmetic is.
const CACHED: usize = 256 << 10;

/// Lengths of runs, as rows of a matrix that is cut; none begins at a multiple of 8, in memory or in the tensor.
const RUNS: [usize; 3] = [256, 2 << 10, 8 << 10];

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let bytes: Vec<u8> =
        (0..MEMORY as u64 / 8).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let mut copy = bytes.clone();
    let seed = seed_of("lm_head.weight");

    let mut group = criterion.benchmark_group("64 MiB");
    group.throughput(Throughput::BytesDecimal(MEMORY as u64));
    for form in Form::all() {
        group.bench_function(BenchmarkId::new("Fingerprint::add", form), |bencher| {
            bencher.iter(|| {
                let mut sum = Fingerprint::default();
                sum.add_with(form, seed, 0, black_box(&bytes));
                sum
            });
        });
    }
    group.bench_function("memcpy", |bencher| {
        bencher.iter(|| black_box(&mut copy).copy_from_slice(black_box(&bytes)));
    });
    group.finish();

    let mut group = criterion.benchmark_group("256 KiB");
    group.throughput(Throughput::BytesDecimal(CACHED as u64));
    for form in Form::all() {
        group.bench_function(BenchmarkId::new("Fingerprint::add", form), |bencher| {
            bencher.iter(|| {
                let mut sum = Fingerprint::default();
                sum.add_with(form, seed, 0, black_box(&bytes[..CACHED]));
                sum
            });
        });
        for run in RUNS {
            let runs = CACHED / run;
            group.bench_function(BenchmarkId::new(format!("in runs of {run} B"), form), |bencher| {
                bencher.iter(|| {
                    let mut sum = Fingerprint::default();
                    for (number, bytes) in (0u64..).zip(bytes[5..].chunks_exact(run).take(runs)) {
                        sum.add_with(form, seed, 3 + 8 * run as u64 * number, black_box(bytes));
                    }
                    sum
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
}
