//! The kernel that is shipped, against the same sums in the loader's Rust: rows that begin and end anywhere.

use super::*;
use shardwright_loader::fingerprint::Fingerprint;

const SHIPPED: &str = include_str!("../../../../loader/kernels/fingerprint.ptx");

/// Bytes of the memory, which a row may reach on both sides: several blocks of 4 KiB.
const MEMORY: u64 = 32 << 10;

/// `Item` of `loader/kernels/fingerprint.cu`.
#[derive(Debug, Clone, Copy)]
struct Item {
    at: u64,
    at_stride: u64,
    in_tensor: u64,
    in_tensor_stride: u64,
    run_bytes: u64,
    seed: u64,
    runs: u32,
    sum: u32,
}

impl Item {
    /// One made of random numbers, inside the memory.
    fn random(words: &[u64], sums: u32) -> Self {
        let below = |at: usize, most: u64| words[at] % most;
        let runs = 1 + below(0, 5);
        let most = [20, 600, 600, 6000][usize::try_from(words[2] % 4).unwrap()];
        let run_bytes = 1 + below(1, most);
        let at_stride = run_bytes + below(3, 30);
        let span = (runs - 1) * at_stride + run_bytes;
        let at = match words[4] % 4 {
            0 => 0,
            1 => MEMORY - span,
            _ => below(5, MEMORY - span + 1),
        };
        Self {
            at,
            at_stride,
            // Beyond what 32 bits count, now and then.
            in_tensor: below(6, 100) + if words[6].is_multiple_of(2) { 1 << 37 } else { 0 },
            in_tensor_stride: run_bytes + below(7, 5000),
            run_bytes,
            seed: words[8],
            runs: u32::try_from(runs).unwrap(),
            sum: u32::try_from(below(9, sums.into())).unwrap(),
        }
    }

    fn words(self) -> [u64; 7] {
        let tail = u64::from(self.sum) << 32 | u64::from(self.runs);
        [self.at, self.at_stride, self.in_tensor, self.in_tensor_stride, self.run_bytes, self.seed, tail]
    }

    fn add_to(self, sum: &mut Fingerprint, memory: &[u8]) {
        for run in 0..u64::from(self.runs) {
            let at = usize::try_from(self.at + run * self.at_stride).unwrap();
            let bytes = &memory[at..at + usize::try_from(self.run_bytes).unwrap()];
            sum.add(self.seed, self.in_tensor + run * self.in_tensor_stride, bytes);
        }
    }
}

#[test]
fn the_shipped_kernel_sums_as_the_loader_does() {
    apart(name!(the_shipped_kernel_sums_as_the_loader_does), &[], || {
        start();
        let function = function(SHIPPED, "fingerprint");
        let content = random_words(7, usize::try_from(MEMORY / 8).unwrap());
        let memory: Vec<u8> = content.iter().flat_map(|word| word.to_le_bytes()).collect();
        let data = words_on_device(&content);
        for (round, (blocks, threads)) in (1u64..).zip([(1, 32), (1, 256), (3, 64), (40, 256)]) {
            let sums = 5;
            let random = random_words(100 + round, 10 * 80);
            let items: Vec<Item> = random.chunks(10).map(|words| Item::random(words, sums)).collect();
            let told: Vec<u64> = items.iter().flat_map(|item| item.words()).collect();
            let limbs = words_on_device(&[0; 5 * Fingerprint::LIMBS]);
            let parameters = vec![data, words_on_device(&told), items.len() as u64, limbs];
            ok(launch(function, [blocks, 1], [threads, 1], parameters));

            let found = words_of_device(limbs, 5 * Fingerprint::LIMBS);
            let found: Vec<Fingerprint> = found
                .as_chunks::<{ Fingerprint::LIMBS }>()
                .0
                .iter()
                .map(|limbs| Fingerprint::from_limbs(*limbs))
                .collect();
            let mut expected = vec![Fingerprint::default(); 5];
            items.iter().for_each(|item| item.add_to(&mut expected[item.sum as usize], &memory));
            assert_eq!(found, expected, "{blocks} blocks of {threads}: {items:?}");
        }
    });
}
