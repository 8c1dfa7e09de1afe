//! Machines whole and broken.

use super::*;
use crate::topology::builtins;

const HOST: HostFacts = HostFacts { devices: 4, memory_bytes: 1 << 30 };

fn parse(text: &str) -> Result<Topology, TopologyError> {
    Topology::parse(text, "test.yaml", None, None)
}

fn error(text: &str) -> TopologyError {
    let error = parse(text).unwrap_err();
    assert!(error.to_string().starts_with("test.yaml: "), "{error}");
    assert!(error.help().is_some());
    error
}

/// Two GPUs on one hub; `more` is appended.
fn small(more: &str) -> String {
    format!(
        "topology: small\nabout: x\ngpu: {{ kind: X, memory: 1 GiB }}\ngpus: 2\nhubs:\n  - {{ name: cpu0, kind: host-bridge, gpus: 0-1, bandwidth: 10 GB/s }}\n{more}"
    )
}

#[test]
fn the_built_in_topologies_are_read_and_whole() {
    for (name, text) in builtins() {
        let topology = Topology::parse(text, name, None, Some(HOST)).unwrap();
        assert_eq!(topology.name(), name);
        assert!(!topology.about().is_empty() && topology.memory_bytes() > 0);
        assert_eq!(topology.gpus().len(), if name == "host" { 4 } else { 8 });
    }
}

#[test]
fn the_widest_path_is_found_over_hubs() {
    let dgx = Topology::parse(crate::topology::builtin("dgx-h100").unwrap(), "x", Some(2), None).unwrap();
    assert_eq!(dgx.widest_path(0, 7), Some((450_000_000_000, EdgeKind::Nvlink)));
    // Over the network the way to the card, not the card, is the narrowest part.
    assert_eq!(dgx.widest_path(0, 8), Some((63_000_000_000, EdgeKind::Pcie)));
    assert_eq!(dgx.widest_path(3, 3), None);
    assert_eq!(dgx.gpus()[9].name, "node1/gpu1");

    let l40s = parse(crate::topology::builtin("8xl40s-pcie").unwrap()).unwrap();
    assert_eq!(l40s.widest_path(0, 3), Some((31_500_000_000, EdgeKind::Pcie)));
    assert_eq!(l40s.widest_path(0, 4), Some((22_000_000_000, EdgeKind::Socket)));
}

#[test]
fn a_gpu_forwards_nothing() {
    let text = "topology: t\nabout: x\ngpu: { kind: X, memory: 1 GiB }\ngpus: 3\nhubs:\n  - { name: cpu0, kind: host-bridge, gpus: 0-2, bandwidth: 10 GB/s }\nlinks:\n  - { kind: nvlink, between: [gpu0, gpu1], bandwidth: 100 GB/s }\n  - { kind: nvlink, between: [gpu1, gpu2], bandwidth: 100 GB/s }\n";
    let topology = parse(text).unwrap();
    assert_eq!(topology.widest_path(0, 1), Some((100_000_000_000, EdgeKind::Nvlink)));
    assert_eq!(topology.widest_path(0, 2), Some((10_000_000_000, EdgeKind::Pcie)));
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    assert!(parse(&small("")).is_ok());
    let unknown = error(&small("colour: red\n"));
    assert!(matches!(unknown, TopologyError::Malformed { line: 7, .. }), "{unknown}");
    assert!(unknown.to_string().contains("colour"));
    let figure = error(&small("").replace("10 GB/s", "-10 GB/s"));
    assert!(figure.to_string().contains("`-10 GB/s` is no bandwidth"), "{figure}");
    let hub = error(&small("links:\n  - { kind: pcie, between: [gpu0, cpu9], bandwidth: 1 GB/s }\n"));
    assert_eq!(hub.help().unwrap(), "did you mean `cpu0`");
    let twice = small("  - { name: cpu0, kind: nic }\n");
    assert!(matches!(error(&twice), TopologyError::NameTwice { .. }));
    assert!(matches!(
        error(&small("  - { name: a, kind: nic, gpus: '0' }\n")),
        TopologyError::HalfConnected { .. }
    ));
    let itself = small("links:\n  - { kind: pcie, between: [gpu0, gpu0], bandwidth: 1 GB/s }\n");
    assert!(matches!(error(&itself), TopologyError::SelfLink { .. }));
    assert!(matches!(error(&small("").replace("0-1", "0-9")), TopologyError::UnknownName { .. }));
    assert!(matches!(error(&small("").replace("0-1", "1-0")), TopologyError::Malformed { .. }));
    assert!(matches!(error(&small("nodes: 2\n")), TopologyError::NoNetwork { nodes: 2, .. }));
    for (gpus, nodes) in [(0, 1), (129, 1), (2, 4_000_000_000u32), (1, 0)] {
        let text = small(&format!("nodes: {nodes}\n")).replace("gpus: 2", &format!("gpus: {gpus}"));
        assert!(matches!(error(&text), TopologyError::Size { .. }));
    }
    assert!(matches!(error(&small("").replace("gpus: 2", "gpus: 3")), TopologyError::Unconnected { .. }));
    assert!(matches!(error(&small("").replace("1 GiB", "detected")), TopologyError::NotDetected { .. }));
    assert!(matches!(
        error(&small("").replace("gpus: 2", "gpus: detected")),
        TopologyError::NotDetected { .. }
    ));
    let many = "  - { name: a, kind: nic }\n".repeat(2000);
    assert!(matches!(error(&small(&many)), TopologyError::TooMany { .. }));
}
