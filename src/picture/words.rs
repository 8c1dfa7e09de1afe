//! The words that pictures and the terminal share.

use super::parts::{Fabric, Parts, Shape};
use shardwright_planner::{
    size::{Size, count},
    topology::{Edge, EdgeKind, HubKind, Topology, VertexKind, runs},
};

/// A bandwidth: `31.5 GB/s`.
#[allow(clippy::cast_precision_loss)]
pub(super) fn rate(bytes_per_second: u64) -> String {
    let figure = |unit: f64| {
        let figure = format!("{:.1}", bytes_per_second as f64 / unit);
        figure.strip_suffix(".0").unwrap_or(&figure).to_owned()
    };
    if bytes_per_second < 50_000_000 {
        return format!("{} MB/s", figure(1e6));
    }
    format!("{} GB/s", figure(1e9))
}

/// A bandwidth for a column of its own: `31.5`, of GB/s.
#[allow(clippy::cast_precision_loss)]
pub(super) fn gb_per_second(bytes_per_second: u64) -> String {
    format!("{:.1}", bytes_per_second as f64 / 1e9)
}

/// How fast a connection is: `18 × 25 GB/s`.
pub(super) fn rate_of(edge: &Edge) -> String {
    match edge.count {
        1 => rate(edge.each),
        count => format!("{count} × {}", rate(edge.each)),
    }
}

/// `NVLink 18 × 25 GB/s`.
pub(super) fn kind_and_rate(edge: &Edge) -> String {
    format!("{} {}", edge.kind, rate_of(edge))
}

/// A memory's size: `80 GiB`.
pub(super) fn size(bytes: u64) -> String {
    Size(bytes).to_string().replace(".00 ", " ")
}

/// A latency for a column of its own: `0.6`, of microseconds.
#[allow(clippy::cast_precision_loss)]
pub(super) fn microseconds(nanoseconds: u64) -> String {
    format!("{:.1}", nanoseconds as f64 / 1e3)
}

/// What a hub is.
pub(super) fn hub_kind(kind: VertexKind) -> &'static str {
    match kind {
        VertexKind::Hub(HubKind::Nvswitch) => "NVSwitch",
        VertexKind::Hub(HubKind::PcieSwitch) => "PCIe switch",
        VertexKind::Hub(HubKind::HostBridge) => "host bridge",
        VertexKind::Hub(HubKind::NumaNode) => "NUMA node",
        VertexKind::Hub(HubKind::Memory) => "memory",
        VertexKind::Gpu => "GPU",
        VertexKind::Nic => "network card",
        VertexKind::Network => "network",
    }
}

/// Names with runs of numbers at their ends written short: `pcie0-3,nic0`.
pub(super) fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let mut short: Vec<(&str, Vec<u32>)> = Vec::new();
    for name in names {
        let prefix = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
        // A number that would not be written the same is part of the name.
        let number = name[prefix.len()..]
            .parse::<u32>()
            .ok()
            .filter(|number| number.to_string() == name[prefix.len()..]);
        match (number, short.last_mut()) {
            (Some(number), Some((known, numbers)))
                if *known == prefix && numbers.last().is_some_and(|last| *last < number) =>
            {
                numbers.push(number);
            }
            (Some(number), _) => short.push((prefix, vec![number])),
            (None, _) => short.push((name, Vec::new())),
        }
    }
    let written: Vec<String> =
        short.iter().map(|(prefix, numbers)| format!("{prefix}{}", runs(numbers))).collect();
    written.join(", ")
}

/// The names of things of a node, short.
pub(super) fn names_of(parts: &Parts, things: &[usize]) -> String {
    names(things.iter().map(|&at| parts.things[at].name.as_str()))
}

/// What a fabric is, in a few words: `NVLink 18 × 25 GB/s from each GPU`.
pub(super) fn fabric(parts: &Parts, fabric: &Fabric) -> String {
    match &fabric.shape {
        Shape::Switched { hubs, edge, spans } => {
            let shared = if *spans > 1 { format!(", shared by {spans} nodes") } else { String::new() };
            let to = if hubs.len() > 1 { format!(" to each of {}", hubs.len()) } else { String::new() };
            format!("{}: {} from each GPU{to}{shared}", names_of(parts, hubs), kind_and_rate(edge))
        }
        Shape::EveryPair(edge) => format!("every pair: {}", kind_and_rate(edge)),
        Shape::Links(links) => {
            format!("{} direct between GPUs", count(links.len() as u64, &format!("{} link", links[0].2.kind)))
        }
    }
}

/// What kind of links a fabric consists of.
pub(super) fn fabric_kind(fabric: &Fabric) -> EdgeKind {
    match &fabric.shape {
        Shape::Switched { edge, .. } | Shape::EveryPair(edge) => edge.kind,
        Shape::Links(links) => links[0].2.kind,
    }
}

/// What leads out of a node: `InfiniBand NDR, 8 × 50 GB/s from each node`.
pub(super) fn network(machine: &Topology, parts: &Parts) -> Option<String> {
    let kind = machine.network()?;
    let doors: Vec<String> = parts
        .doors_by_rate()
        .iter()
        .map(|(count, edge)| match count {
            1 => rate_of(edge),
            _ => format!("{count} × {}", rate(edge.bytes_per_second())),
        })
        .collect();
    Some(format!("{kind}, {} from each node", doors.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_short() {
        assert_eq!(names(["gpu0", "gpu1", "gpu2", "gpu6"]), "gpu0-2,6");
        assert_eq!(names(["nic1", "nic0", "a", "x01", "x02"]), "nic1, nic0, a, x01, x02");
        assert_eq!(names([]), "");
    }

    #[test]
    fn rates_are_written_without_needless_zeros() {
        assert_eq!(rate(31_500_000_000), "31.5 GB/s");
        assert_eq!(rate(50_000_000_000), "50 GB/s");
        assert_eq!(rate(12_500_000), "12.5 MB/s");
    }
}
