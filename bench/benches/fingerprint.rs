//! How fast a fingerprint is computed, against copying the same bytes: verification should cost little beside the load.

use criterion::{Criterion, Throughput};
use shardwright_loader::fingerprint::{Fingerprint, seed_of};
use std::{hint::black_box, time::Duration};

/// Larger than any cache's share of one core, so that both sides wait for memory.
const BYTES: usize = 64 << 20;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    let bytes: Vec<u8> =
        (0..BYTES as u64 / 8).flat_map(|word| word.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let mut copy = bytes.clone();
    let seed = seed_of("lm_head.weight");

    let mut group = criterion.benchmark_group("64 MiB");
    group.throughput(Throughput::BytesDecimal(BYTES as u64));
    group.bench_function("Fingerprint::add", |bencher| {
        bencher.iter(|| {
            let mut sum = Fingerprint::default();
            sum.add(seed, 0, black_box(&bytes));
            sum
        });
    });
    group.bench_function("memcpy", |bencher| {
        bencher.iter(|| black_box(&mut copy).copy_from_slice(black_box(&bytes)));
    });
    group.finish();
    criterion.final_summary();
}
