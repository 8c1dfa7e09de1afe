//! Machines whole and broken.

use super::*;

const HOST: HostFacts = HostFacts { devices: 4, memory_bytes: 1 << 30 };

fn parse(text: &str) -> Result<Topology, TopologyError> {
    Topology::parse(text, "test.yaml", None, None)
}

fn built_in(name: &str, nodes: Option<u32>) -> Topology {
    Topology::parse(builtin(name).unwrap(), name, nodes, None).unwrap()
}

fn error(text: &str) -> TopologyError {
    let error = parse(text).unwrap_err();
    assert!(error.to_string().starts_with("test.yaml: "), "{error}");
    assert!(error.help().is_some());
    error
}

fn problem(text: &str) -> TopologyProblem {
    error(text).problem
}

/// Two GPUs on one hub; `more` is appended.
fn small(more: &str) -> String {
    format!(
        "topology: small\nabout: x\ngpu: {{ kind: X, memory: 1 GiB }}\ngpus: 2\nhubs:\n  - {{ name: cpu0, kind: host-bridge, gpus: 0-1, bandwidth: 10 GB/s }}\n{more}"
    )
}

const GB: u64 = 1_000_000_000;

fn width(topology: &Topology, a: usize, b: usize) -> (u64, EdgeKind) {
    topology.widest_path(a, b).map(|path| (path.bytes_per_second / GB, path.kind)).unwrap()
}

fn ring(topology: &Topology, gpus: &[usize]) -> u64 {
    topology.ring(gpus).unwrap().bytes_per_second / GB
}

#[test]
fn the_built_in_topologies_are_read_and_whole() {
    for (name, text) in builtins() {
        let topology = Topology::parse(text, name, None, Some(HOST)).unwrap();
        assert_eq!(topology.name(), name);
        assert!(!topology.about().is_empty() && topology.least_memory_bytes() > 0);
        for kind in topology.kinds() {
            assert!(
                name == "host" || known_gpu(&kind.kind).is_some(),
                "{name}: {} is not in gpus.yaml",
                kind.kind
            );
        }
        assert!(text.lines().all(|line| line.chars().count() <= 128), "{name}: a line is too long");
        assert!(name == "host" || text.starts_with('#'), "{name}: its sources are missing");
        let all: Vec<usize> = (0..topology.gpus().len()).collect();
        assert_eq!(topology.ring(&all).is_some(), all.len() > 1, "{name}");
    }
}

#[test]
fn every_file_of_the_folder_is_built_in() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../topologies");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().into_string().unwrap().strip_suffix(".yaml").map(str::to_owned)
        })
        .filter(|name| name != "gpus")
        .collect();
    let mut names: Vec<&str> = builtins().map(|(name, _)| name).collect();
    files.sort();
    names.sort_unstable();
    assert_eq!(files, names);
}

#[test]
fn the_committed_schema_is_that_of_the_types() {
    let committed = include_str!("../../../topologies/topology.schema.json");
    let schema = serde_json::to_string_pretty(&json_schema()).unwrap();
    assert_eq!(committed.trim(), schema, "write it anew with `shardwright topology schema`");
}

#[test]
fn the_example_of_the_readme_is_a_machine() {
    let readme = include_str!("../../../topologies/README.md");
    let example = readme.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let machine = parse(example).unwrap();
    assert_eq!(machine.kinds_in_words(), "2 A100 PCIe 80GB and 1 L40S");
    assert_eq!(width(&machine, 0, 1), (300, EdgeKind::Nvlink));
}

#[test]
fn the_widest_path_is_found_over_hubs() {
    let dgx = built_in("dgx-h100", Some(2));
    assert_eq!(width(&dgx, 0, 7), (450, EdgeKind::Nvlink));
    assert_eq!(dgx.widest_path(0, 7).unwrap().latency_ns, 600);
    assert_eq!(width(&dgx, 0, 8), (50, EdgeKind::Network));
    assert_eq!(dgx.widest_path(3, 3), None);
    assert_eq!(dgx.gpus()[9].name, "node1/gpu1");

    let l40s = built_in("8xl40s-pcie", None);
    assert_eq!(l40s.widest_path(0, 3).unwrap().kind, EdgeKind::Pcie);
    assert_eq!(width(&l40s, 0, 4), (22, EdgeKind::Socket));
}

#[test]
fn of_equally_wide_paths_the_nearest_is_taken() {
    let text = "topology: t\nabout: x\ngpu: { kind: X, memory: 1 GiB }\ngpus: 4\nhubs:\n  - { name: cpu, kind: host-bridge }\n  - { name: sw0-1, kind: pcie-switch, gpus: 0-3, bandwidth: 10 GB/s, on: cpu }\n";
    let topology = parse(text).unwrap();
    assert_eq!(topology.widest_path(0, 1).unwrap().latency_ns, 1000);
    assert_eq!(topology.widest_path(0, 2).unwrap().latency_ns, 2000);
    let slow = text.replace("bandwidth", "latency: 2 us, bandwidth");
    assert_eq!(parse(&slow).unwrap().widest_path(0, 1).unwrap().latency_ns, 4000);
}

#[test]
fn a_gpu_forwards_nothing() {
    let text = "topology: t\nabout: x\ngpu: { kind: X, memory: 1 GiB }\ngpus: 3\nhubs:\n  - { name: cpu0, kind: host-bridge, gpus: 0-2, bandwidth: 10 GB/s }\nlinks:\n  - { kind: nvlink, between: [gpu0, gpu1], bandwidth: 100 GB/s }\n  - { kind: nvlink, between: [gpu1, gpu2], bandwidth: 100 GB/s }\n";
    let topology = parse(text).unwrap();
    assert_eq!(width(&topology, 0, 1), (100, EdgeKind::Nvlink));
    assert_eq!(width(&topology, 0, 2), (10, EdgeKind::Pcie));
    assert_eq!(topology.fabric_domains(), [[0, 1, 2]]);
    // Not even for a cut: what leaves GPU 0 for GPU 2 goes over PCIe.
    assert_eq!(topology.bisection(&[0, 2]).unwrap().bytes_per_second, 10 * GB);
}

#[test]
fn rings_and_cuts_of_machines_in_use() {
    let dgx = built_in("dgx-h100", Some(4));
    let node: Vec<usize> = (0..8).collect();
    assert_eq!(ring(&dgx, &node), 450);
    // NVLink and PCIe together: four GPUs on either side.
    assert_eq!(dgx.bisection(&node).unwrap().bytes_per_second / GB, 4 * 450 + 22);
    assert!(dgx.bisection(&node).unwrap().exact);
    // Over the network: eight cards of 50 GB/s to a node; a GPU alone has the one beside it.
    assert_eq!(ring(&dgx, &(0..32).collect::<Vec<_>>()), 400);
    assert_eq!(ring(&dgx, &[0, 8]), 50);
    assert_eq!(ring(&dgx, &[0, 1, 8, 9]), 100);
    assert_eq!(dgx.bisection(&(0..32).collect::<Vec<_>>()).unwrap().bytes_per_second / GB, 800);
    assert_eq!(dgx.fabric_domains().len(), 4);
    assert!(dgx.ring(&[3]).is_none() && dgx.ring(&[]).is_none() && dgx.bisection(&[3]).is_none());

    let dgx1 = built_in("dgx-1-v100", None);
    assert_eq!((ring(&dgx1, &[0, 3]), ring(&dgx1, &[0, 1]), ring(&dgx1, &[0, 1, 2, 3])), (50, 25, 100));

    let l40s = built_in("8xl40s-pcie", None);
    assert_eq!(ring(&l40s, &[0, 1, 2, 3]), l40s.widest_path(0, 1).unwrap().bytes_per_second / GB);
    assert_eq!(ring(&l40s, &[0, 1, 4, 5]), 22);
}

#[test]
fn hops_that_share_a_connection_share_its_width() {
    // Four GPUs in pairs behind two switches: the ring goes up each uplink once. Six in threes the same.
    let text = "topology: t\nabout: x\ngpu: { kind: X, memory: 1 GiB }\ngpus: 4\nhubs:\n  - { name: cpu, kind: host-bridge, gpus: '3', bandwidth: 10 GB/s }\n  - { name: sw, kind: pcie-switch, gpus: 0-2, bandwidth: 10 GB/s, on: cpu, uplink: 4 GB/s }\n";
    let topology = parse(text).unwrap();
    assert_eq!(ring(&topology, &[0, 1, 2, 3]), 4);
    // Of either half one GPU reaches one of the other behind the switch, and the uplink carries the rest.
    assert_eq!(topology.bisection(&[0, 1, 2, 3]).unwrap().bytes_per_second / GB, 10 + 4);
}

/// Eight GPUs on a bridge, every pair linked.
fn all_to_all(pcie: u64, link: u64, gpus: usize) -> Topology {
    let last = gpus - 1;
    parse(&format!("topology: t\nabout: x\ngpu: {{ kind: X, memory: 1 GiB }}\ngpus: {gpus}\nhubs:\n  - {{ name: cpu, kind: host-bridge, gpus: 0-{last}, bandwidth: {pcie} GB/s }}\nlinks:\n  - {{ kind: xgmi, among: gpu0-{last}, bandwidth: {link} GB/s }}\n")).unwrap()
}

#[test]
fn many_narrow_links_are_faster_than_one_wide_slot() {
    let eight: Vec<usize> = (0..8).collect();
    for pcie in [10, 12] {
        let ring = all_to_all(pcie, 10, 8).ring(&eight).unwrap();
        assert_eq!((ring.bytes_per_second / GB, ring.kind), (60, EdgeKind::Xgmi));
        assert_eq!(all_to_all(pcie, 10, 8).fabric_domains(), [eight.as_slice()]);
    }
    // Both ways round of each ring that goes once over every link.
    let five: Vec<usize> = (0..5).collect();
    assert_eq!(ring(&all_to_all(1, 10, 5), &five), 40);
}

#[test]
fn the_fastest_network_cards_are_used_before_the_nearest() {
    let text = "topology: t\nabout: x\ngpu: { kind: X, memory: 1 GiB }\ngpus: 1\nnodes: 2\nhubs:\n  - { name: cpu, kind: host-bridge }\n  - { name: sw, kind: pcie-switch, gpus: 0, bandwidth: 60 GB/s, on: cpu }\nnics:\n  - { name: eno1, on: sw, bandwidth: 1 Gb/s }\n  - { name: mlx5_0, on: cpu, bandwidth: 400 Gb/s }\nnetwork: { kind: x }\n";
    let machine = parse(text).unwrap();
    assert_eq!((ring(&machine, &[0, 1]), width(&machine, 0, 1).0), (50, 50));
    // A card has its own bandwidth, whatever hubs have.
    let via = text.replace("{ kind: x }", "{ kind: x, bandwidth: 900 GB/s, via: [mlx5_0] }");
    assert_eq!(ring(&parse(&via).unwrap(), &[0, 1]), 50);
    let twice = text.replace("{ kind: x }", "{ kind: x, via: [mlx5_0, mlx5_0] }");
    assert!(matches!(problem(&twice), TopologyProblem::NameTwice { .. }));
    let vain = text.replace("{ kind: x }", "{ kind: x, bandwidth: 1 GB/s }");
    assert!(matches!(problem(&vain), TopologyProblem::NetworkWithout { .. }));
}

#[test]
fn a_shared_hub_joins_those_that_reach_it() {
    let text = "topology: t\nabout: x\ngpu: { kind: X, memory: 1 GiB }\ngpus: 4\nnodes: 2\nhubs:\n  - { name: nvs, kind: nvswitch, gpus: 2-3, bandwidth: 400 GB/s, spans: 2 }\n  - { name: cpu, kind: host-bridge, gpus: 0-3, bandwidth: 60 GB/s }\nnetwork: { kind: x, bandwidth: 20 GB/s, via: [cpu] }\n";
    let machine = parse(text).unwrap();
    assert_eq!(machine.fabric_domains(), [[2, 3, 6, 7]]);
    assert_eq!(ring(&machine, &[2, 3, 6, 7]), 400);
    assert_eq!(ring(&machine, &[0, 4]), 20);
    let overlap = text.replace("nodes: 2", "nodes: 6").replace(
        "spans: 2 }",
        "spans: 2 }\n  - { name: nvt, kind: nvswitch, gpus: 2-3, bandwidth: 1 GB/s, spans: 3 }",
    );
    assert!(matches!(problem(&overlap), TopologyProblem::Spans { smaller: 2, larger: 3 }));
}

#[test]
fn devices_that_are_not_there_leave_the_others_where_they_are() {
    let text = "topology: t\nabout: x\ngpu: { kind: X, memory: 1 GiB }\ngpus: detected\nhubs:\n  - { name: cpu, kind: host-bridge }\n  - { name: sw0-1, kind: pcie-switch, gpus: 0-7, bandwidth: 60 GB/s, on: cpu }\n";
    for devices in 1..8 {
        let host = HostFacts { devices, memory_bytes: 1 << 30 };
        let machine = Topology::parse(text, "t", None, Some(host)).unwrap();
        let to_switch = machine.edges().filter(|(from, to, _)| from.min(to) < &(devices as usize));
        assert_eq!(to_switch.count(), devices as usize);
    }
}

#[test]
fn figures_that_are_wrong_are_found_at_their_own_place() {
    let text = small("").replace("10 GB/s", "10 GBs/s");
    let TopologyProblem::Malformed { line, column, .. } = problem(&text) else { panic!("{text}") };
    assert_eq!((line, column), (6, 60));
}

#[test]
fn several_kinds_of_gpus_are_told_apart() {
    let kinds = "gpu:\n  - { kind: L4, gpus: 0 }\n  - { kind: X, memory: 1 GiB, gpus: 1 }\n";
    let text = small("").replace("gpu: { kind: X, memory: 1 GiB }\n", kinds);
    let topology = parse(&text).unwrap();
    assert_eq!(topology.kinds_in_words(), "1 L4 and 1 X");
    assert_eq!(topology.kind_of(0).memory_bytes, known_gpu("L4").unwrap().memory.bytes());
    assert_eq!(topology.least_memory_bytes(), 1 << 30);
    for wrong in ["gpus: 1", "gpus: 0-1"] {
        assert!(matches!(
            problem(&text.replace("gpus: 0 ", &format!("{wrong} "))),
            TopologyProblem::KindOfGpu { .. }
        ));
    }
    assert!(matches!(problem(&text.replace(", gpus: 0 ", " ")), TopologyProblem::KindOfGpu { .. }));
    let unknown = error(&small("").replace("kind: X, memory: 1 GiB", "kind: H100 SXM5 80G"));
    assert_eq!(unknown.help().unwrap(), "did you mean `H100 SXM5 80GB`");
}

#[test]
fn what_is_wrong_is_named_with_its_place() {
    use TopologyProblem as P;
    assert!(parse(&small("")).is_ok());
    let unknown = error(&small("colour: red\n"));
    assert!(matches!(unknown.problem, P::Malformed { line: 7, .. }), "{unknown}");
    assert!(unknown.to_string().contains("colour"));
    assert_eq!(error(&small("network_: {}\n")).help().unwrap(), "did you mean `network`");
    let kind = error(&small("").replace("host-bridge", "host-bridg"));
    assert_eq!(kind.help().unwrap(), "did you mean `host-bridge`");
    let figure = error(&small("").replace("10 GB/s", "-10 GB/s"));
    assert!(figure.to_string().contains("`-10 GB/s` is no bandwidth"), "{figure}");
    let hub = error(&small("links:\n  - { kind: pcie, between: [gpu0, cpu9], bandwidth: 1 GB/s }\n"));
    assert_eq!(hub.help().unwrap(), "did you mean `cpu0`");
    assert!(matches!(problem(&small("  - { name: cpu0, kind: host-bridge }\n")), P::NameTwice { .. }));
    assert!(matches!(problem(&small("  - { name: a, kind: nvswitch, gpus: 0 }\n")), P::NoBandwidth { .. }));
    assert!(matches!(
        problem(&small("  - { name: a, kind: pcie-switch, on: cpu0 }\n")),
        P::NoBandwidth { .. }
    ));
    let itself = small("links:\n  - { kind: pcie, between: [gpu0, gpu0], bandwidth: 1 GB/s }\n");
    assert!(matches!(problem(&itself), P::SelfLink { .. }));
    for ends in ["", "among: gpu0-1, between: [gpu0, gpu1], "] {
        let link = small(&format!("links:\n  - {{ kind: pcie, {ends}bandwidth: 1 GB/s }}\n"));
        assert!(matches!(problem(&link), P::LinkEnds { .. }));
    }
    let cycle = "  - { name: a, kind: pcie-switch, on: b, bandwidth: 1 GB/s }\n  - { name: b, kind: pcie-switch, on: a, bandwidth: 1 GB/s }\n";
    assert!(matches!(problem(&small(cycle)), P::Cycle { .. }));
    let dealt =
        small("").replace("gpus: 2", "gpus: 3").replace("cpu0", "cpu0-1").replace("gpus: 0-1", "gpus: 0-2");
    assert!(matches!(problem(&dealt), P::NotDealt { dealt: (3, 2), .. }));
    for count in [0, 257] {
        let link = small(&format!(
            "links:\n  - {{ kind: pcie, among: gpu0-1, count: {count}, bandwidth: 1 GB/s }}\n"
        ));
        assert!(matches!(problem(&link), P::Connections { .. }));
    }
    assert!(matches!(problem(&small("").replace("0-1", "0-9")), P::UnknownName { .. }));
    assert!(matches!(problem(&small("").replace("0-1", "1-0")), P::Malformed { .. }));
    assert!(matches!(problem(&small("nodes: 2\n")), P::NoNetwork { nodes: 2, .. }));
    for network in ["{ kind: x }", "{ kind: x, via: [cpu0] }"] {
        assert!(matches!(problem(&small(&format!("network: {network}\n"))), P::NetworkWithout { .. }));
    }
    for (gpus, nodes) in [(0, 1), (129, 1), (2, 4_000_000_000u32), (1, 0), (1_000_000, 1)] {
        let text = small(&format!("nodes: {nodes}\n")).replace("gpus: 2", &format!("gpus: {gpus}"));
        assert!(matches!(problem(&text), P::Size { .. }));
    }
    assert!(matches!(problem(&small("").replace("gpus: 2", "gpus: two")), P::Malformed { .. }));
    assert!(matches!(problem(&small("").replace("gpus: 2", "gpus: 99999999999")), P::Malformed { .. }));
    assert!(matches!(problem(&small("").replace("gpus: 2", "gpus: 3")), P::Unconnected { .. }));
    assert!(matches!(problem(&small("").replace("1 GiB", "detected")), P::NotDetected { .. }));
    assert!(matches!(problem(&small("").replace("gpus: 2", "gpus: detected")), P::NotDetected { .. }));
    let many = "  - { name: a, kind: numa-node }\n".repeat(2000);
    assert!(matches!(problem(&small(&many)), P::TooMany { .. }));
    let full = small("").replace("gpus: 2", "gpus: 128").replace("0-1", "0-127").replace("cpu0", "a0")
        + &(1..40)
            .map(|at| format!("  - {{ name: a{at}, kind: host-bridge, gpus: 0-127, bandwidth: 1 GB/s }}\n"))
            .collect::<String>();
    assert!(matches!(problem(&full), P::TooManyConnections));
    assert!(matches!(problem(&small("").replace("cpu0,", "cpu0, spans: 0,")), P::SpansNothing { .. }));
    assert!(matches!(problem(&small("").replace("gpu: {", "gpu: [] #")), P::Malformed { .. }));
}

#[test]
fn a_wrong_name_is_found_in_the_text() {
    let place = |text: &str| error(text).place;
    assert_eq!(
        place(&small("links:\n  - { kind: pcie, between: [gpu0, cpu9], bandwidth: 1 GB/s }\n")),
        Some((8, 35))
    );
    // In a run, in a list of GPUs, and not where a comment has it.
    assert_eq!(
        place(&small("links:\n  - { kind: pcie, among: gpu0-3, bandwidth: 1 GB/s }\n")),
        Some((8, 26))
    );
    assert_eq!(place(&small("").replace("0-1", "0-9").replace("about: x", "about: x # gpu2")), Some((6, 44)));
    assert_eq!(place(&small("  - { name: cpu0, kind: host-bridge }\n")), Some((7, 13)));
    let unknown = small("").replace("kind: X, memory: 1 GiB", "kind: H100 SXM5 80G");
    assert_eq!(place(&unknown), Some((3, 14)));
    assert_eq!(place(&small("nodes: 2\n")), None);
}

#[test]
fn names_of_gpus_are_short() {
    let dgx = built_in("dgx-h100", None);
    assert_eq!(dgx.names_of(&[3, 0, 1, 5]), "gpu0-1,3,5");
    let two = built_in("dgx-h100", Some(2));
    assert_eq!(two.names_of(&(4..12).collect::<Vec<_>>()), "node0/gpu4-7 node1/gpu0-3");
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    /// Two switches on a bridge, and links between some GPUs.
    fn machine(gpus: u32, links: &[(u32, u32, u32)]) -> Topology {
        let mut text = format!(
            "topology: t\nabout: x\ngpu: {{ kind: X, memory: 1 GiB }}\ngpus: {gpus}\nhubs:\n  - {{ name: cpu, kind: host-bridge, gpus: 0-{}, bandwidth: 10 GB/s }}\nlinks:\n",
            gpus - 1
        );
        for (a, b, width) in links.iter().filter(|(a, b, _)| a != b && *a < gpus && *b < gpus) {
            text.push_str(&format!(
                "  - {{ kind: nvlink, between: [gpu{a}, gpu{b}], bandwidth: {width} GB/s }}\n"
            ));
        }
        parse(&text).unwrap()
    }

    proptest! {
        #[test]
        fn paths_are_the_same_both_ways_and_rings_no_faster_than_their_gpus(
            gpus in 2u32..7, links in prop::collection::vec((0u32..7, 0u32..7, 1u32..400), 0..12),
        ) {
            let topology = machine(gpus, &links);
            let all: Vec<usize> = (0..gpus as usize).collect();
            for &a in &all {
                for &b in &all {
                    prop_assert_eq!(
                        topology.widest_path(a, b).map(|path| (path.bytes_per_second, path.latency_ns)),
                        topology.widest_path(b, a).map(|path| (path.bytes_per_second, path.latency_ns))
                    );
                }
            }
            let ring = topology.ring(&all).unwrap();
            prop_assert!(ring.bytes_per_second <= topology.ring_bound());
            let mut order = ring.order.clone();
            order.sort_unstable();
            prop_assert_eq!(&order, &all);
            // Two GPUs are a ring as wide as the way between them, or wider where they have several ways.
            let pair = topology.ring(&all[..2]).unwrap().bytes_per_second;
            prop_assert!(pair >= topology.widest_path(0, 1).unwrap().bytes_per_second);
            // A cut in halves lets through what a ring needs: every ring crosses it.
            let cut = topology.bisection(&all).unwrap().bytes_per_second;
            prop_assert!(cut * 2 >= ring.bytes_per_second, "{cut} {}", ring.bytes_per_second);
        }

        #[test]
        fn no_text_panics(text in "(topology|about|gpu|gpus|hubs|nics|links|network|: |\\{ |\\}|\\[|\\]|kind|name|0-3|\n|  - |GB/s|[0-9a-z]{1,4}){0,40}") {
            let _ = parse(&text);
        }
    }
}
