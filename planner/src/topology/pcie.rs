//! How fast a PCI Express link is.

/// Rates of a lane, generation by generation: thousandths of a GT/s, and the share of the bits that carry data.
///
/// Source: PCI Express base specification. 8b/10b up to generation 2, 128b/130b up to 5, from 6 on flits of 256 bytes of which
/// 242 are for transactions and links.
const RATES: [(u64, u64, u64); 6] = [
    (2_500, 8, 10),
    (5_000, 8, 10),
    (8_000, 128, 130),
    (16_000, 128, 130),
    (32_000, 128, 130),
    (64_000, 242, 256),
];

/// Thousandths of a GT/s of a lane of `generation`, from 1 to 6.
pub fn pcie_rate(generation: u32) -> Option<u64> {
    let index = usize::try_from(generation).ok()?.checked_sub(1)?;
    RATES.get(index).map(|(rate, ..)| *rate)
}

/// Bytes per second in one direction of `lanes` lanes, of which no link has more than 32, at so many thousandths of a GT/s.
/// `None` for what no link is.
pub fn pcie_bytes_per_second(rate: u64, lanes: u64) -> Option<u64> {
    let (_, data, bits) = *RATES.iter().find(|known| known.0 == rate)?;
    (1..=32).contains(&lanes).then(|| rate * 1_000_000 * lanes * data / bits / 8)
}
