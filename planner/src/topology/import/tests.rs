//! Importers against whole texts: what the tools print, what is wrong with it, and machines made up at random.

use super::*;
use crate::topology::{EdgeKind, Path, VertexKind};
use proptest::prelude::*;
use std::fmt::Write;

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../../../tests/fixtures/topologies/", $name))
    };
}

fn request<'a>(text: &'a str, kind: Option<&'a str>) -> ImportRequest<'a> {
    let gpus = GpuChoice { kind, ..GpuChoice::default() };
    ImportRequest { name: "machine", source: Source { origin: "file", text }, matrix: None, gpus }
}

/// Imports `text` and reads what comes of it.
fn machine(text: &str, kind: Option<&str>) -> (Topology, Vec<String>) {
    let imported = import(&request(text, kind)).unwrap_or_else(|error| panic!("{error}\n{text}"));
    (Topology::parse(&imported.yaml, "imported", None, None).unwrap(), imported.notes)
}

fn problem(text: &str, kind: Option<&str>) -> ImportProblem {
    let error = import(&request(text, kind)).unwrap_err();
    assert!(error.to_string().starts_with("file: ") && error.help().is_some(), "{error}");
    error.problem
}

fn width(machine: &Topology, from: usize, to: usize) -> (String, EdgeKind) {
    let path = machine.widest_path(from, to).unwrap();
    (speeds::gigabytes(path.bytes_per_second), path.kind)
}

fn cards(machine: &Topology) -> Vec<&str> {
    machine.vertices().filter(|thing| thing.kind == VertexKind::Nic).map(|card| card.name.as_str()).collect()
}

#[test]
fn a_matrix_gives_switches_sockets_and_named_cards() {
    let (pcie, notes) = machine(fixture!("matrix-4xl40s.txt"), Some("L40S"));
    assert_eq!(pcie.kinds_in_words(), "4 L40S");
    assert_eq!(width(&pcie, 0, 1), ("31.5 GB/s".to_owned(), EdgeKind::Pcie));
    assert_eq!(width(&pcie, 1, 2), ("16 GB/s".to_owned(), EdgeKind::Socket));
    assert_eq!(cards(&pcie), ["mlx5_0", "mlx5_1"]);
    assert_eq!(notes.len(), 2, "{notes:?}");
}

#[test]
fn more_links_than_a_gpu_has_are_a_switch() {
    let (switched, _) = machine(fixture!("matrix-8xh100-tabs.txt"), Some("H100 SXM5 80GB"));
    assert_eq!(width(&switched, 0, 7), ("450 GB/s".to_owned(), EdgeKind::Nvlink));
    assert!(switched.vertices().any(|hub| hub.name == "nvswitch"));
    let (mesh, _) = machine(fixture!("matrix-8xp100-glued.txt"), Some("P100 SXM2 16GB"));
    assert_eq!(width(&mesh, 0, 4), ("20 GB/s".to_owned(), EdgeKind::Nvlink));
    assert_eq!(width(&mesh, 0, 5).1, EdgeKind::Socket);
    assert_eq!(cards(&mesh), ["mlx5_0", "mlx5_2"]);
    // The same counts on cards that have enough links: each pair has its own.
    let four = "GPU0 GPU1 GPU2\nGPU0 X NV6 NV6\nGPU1 NV6 X NV6\nGPU2 NV6 NV6 X\n";
    let (own, _) = machine(four, Some("A100 SXM4 40GB"));
    assert_eq!(width(&own, 0, 2), ("150 GB/s".to_owned(), EdgeKind::Nvlink));
    assert!(own.vertices().all(|hub| hub.name != "nvswitch"));
}

#[test]
fn more_links_than_a_gpu_has_and_no_switch_are_noted() {
    let text = "GPU0 GPU1 GPU2\nGPU0 X NV12 NV12\nGPU1 NV12 X PHB\nGPU2 NV12 PHB X\n";
    let (_, notes) = machine(text, Some("A100 SXM4 40GB"));
    assert_eq!(notes, ["GPU0 has 24 NVLinks in the matrix, but a `A100 SXM4 40GB` has 12"]);
}

#[test]
fn codes_of_terminals_and_padded_rows_are_read() {
    let (pair, _) = machine(fixture!("matrix-2xa100-colours.txt"), Some("NVIDIA A100 80GB PCIe"));
    assert_eq!(width(&pair, 0, 1), ("300 GB/s".to_owned(), EdgeKind::Nvlink));
    let numa: Vec<_> = pair.vertices().filter_map(|thing| thing.numa).collect();
    assert_eq!(numa, [0, 1]);
}

#[test]
fn a_matrix_that_is_no_tree_is_taken_nearer_and_noted() {
    let text = "GPU0 GPU1 GPU2\nGPU0 X PIX SYS\nGPU1 PIX X PIX\nGPU2 SYS PIX X\n";
    let (flat, notes) = machine(text, Some("L40S"));
    assert_eq!(width(&flat, 0, 2), width(&flat, 0, 1));
    assert_eq!(
        notes,
        [
            "the matrix is no tree; taken nearer than in it: 1 pair, first GPU0 and GPU2, SYS there and PIX here"
        ]
    );
}

#[test]
fn gpus_of_one_numa_node_that_are_far_apart_stay_so() {
    let text = "GPU0 GPU1 CPU Affinity NUMA Affinity\nGPU0 X SYS 0-7 0\nGPU1 SYS X 0-7 0\n";
    let (apart, notes) = machine(text, Some("L40S"));
    assert_eq!(width(&apart, 0, 1).1, EdgeKind::Socket);
    assert!(notes[1].starts_with("GPUs of NUMA node 0 are SYS apart"), "{notes:?}");
}

#[test]
fn gpus_are_named_by_a_list() {
    let text = "GPU0 GPU1\nGPU0 X PHB\nGPU1 PHB X\n";
    let named = |list: &str| {
        let mut request = request(text, None);
        request.gpus.list = Some(Source { origin: "list", text: list });
        import(&request).map(|imported| Topology::parse(&imported.yaml, "imported", None, None).unwrap())
    };
    let mixed =
        named("GPU 0: NVIDIA GeForce RTX 4090 (UUID: GPU-1)\nGPU 1: Tesla P40 (UUID: GPU-2)\n").unwrap();
    assert_eq!(mixed.kinds_in_words(), "1 RTX 4090 and 1 P40");
    // Slots of two speeds at one host bridge.
    assert_eq!(width(&mixed, 0, 1).0, "15.75 GB/s");
    let short = named("GPU 0: Tesla P40\n").unwrap_err();
    assert_eq!(short.problem, ImportProblem::GpuCounts { here: 2, there: 1, other: "list".to_owned() });
}

#[test]
fn nccl_tells_links_and_slots() {
    let (bridged, notes) = machine(fixture!("nccl-2xa6000-bridge.xml"), None);
    assert_eq!(bridged.kinds_in_words(), "2 RTX A6000");
    assert_eq!(width(&bridged, 0, 1), ("56.25 GB/s".to_owned(), EdgeKind::Nvlink));
    assert_eq!((cards(&bridged), notes.len()), (vec!["eno1"], 0));
    let (switched, _) = machine(fixture!("nccl-4xb200-unseen-switch.xml"), None);
    assert_eq!(width(&switched, 0, 3), ("900 GB/s".to_owned(), EdgeKind::Nvlink));
    assert_eq!(cards(&switched), ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3"]);
}

#[test]
fn what_a_cloud_leaves_out_is_noted_and_a_matrix_tells_it() {
    let text = fixture!("nccl-8-cloud.xml");
    assert!(matches!(problem(text, None), ImportProblem::NoKind { gpu: 0, pci: None }));
    let (bare, notes) = machine(text, Some("A100 SXM4 40GB"));
    assert_eq!(width(&bare, 0, 7), ("16 GB/s".to_owned(), EdgeKind::Socket));
    assert!(notes[0].starts_with("no links between GPUs for 8 GPUs (0-7)") && notes[0].contains("--matrix"));
    let matrix = fixture!("matrix-8xh100-tabs.txt").replace("NV18", "NV12");
    let beside = Some(Source { origin: "matrix", text: &matrix });
    let whole = import(&ImportRequest { matrix: beside, ..request(text, Some("A100 SXM4 40GB")) }).unwrap();
    let linked = Topology::parse(&whole.yaml, "imported", None, None).unwrap();
    assert_eq!(width(&linked, 0, 7), ("300 GB/s".to_owned(), EdgeKind::Nvlink));
    let small = Some(Source { origin: "matrix", text: fixture!("matrix-4xl40s.txt") });
    let error = import(&ImportRequest { matrix: small, ..request(text, Some("L40S")) }).unwrap_err();
    assert_eq!(error.to_string(), "file: 8 GPUs in it, but 4 in `matrix`");
}

#[test]
fn a_file_without_gpus_needs_a_matrix() {
    let text = fixture!("nccl-no-gpus.xml");
    assert_eq!(problem(text, Some("L40S")), ImportProblem::NoGpus { devices: 1 });
    let beside = Source { origin: "matrix\n.txt", text: fixture!("matrix-4xl40s.txt") };
    let imported = import(&ImportRequest { matrix: Some(beside), ..request(text, Some("L40S")) }).unwrap();
    assert_eq!(imported.notes[0], "`file` describes no GPUs: all is from `matrix\\n.txt`");
    let twice = import(&ImportRequest { source: beside, matrix: Some(beside), ..request(text, None) });
    assert_eq!(twice.unwrap_err().problem, ImportProblem::MatrixTwice);
}

#[test]
fn links_that_tell_nothing_are_left_out() {
    let own = fixture!("nccl-2xa6000-bridge.xml").replacen("target=\"0000:61", "target=\"0000:41", 1);
    let (half, notes) = machine(&own, None);
    // The other end tells of it.
    assert_eq!(width(&half, 0, 1).1, EdgeKind::Nvlink);
    assert!(notes[0].contains("lead to the GPU itself"), "{notes:?}");
    let (_, notes) = machine(&own.replace("target=\"0000:41", "target=\"0000:99"), None);
    assert!(notes[0].contains("not described") && notes[1].starts_with("no links between GPUs"), "{notes:?}");
    let unequal = fixture!("nccl-2xa6000-bridge.xml").replacen("count=\"4\"", "count=\"2\"", 1);
    assert_eq!(width(&machine(&unequal, None).0, 0, 1).0, "31.5 GB/s");
}

#[test]
fn an_unknown_kind_needs_its_memory() {
    let text = "GPU0\nGPU0 X\n";
    assert!(matches!(problem(text, None), ImportProblem::NoKind { .. }));
    let misspelt = ImportProblem::UnknownKind {
        kind: "H100 SXM5 80G".to_owned(),
        nearest: Some("H100 SXM5 80GB".to_owned()),
    };
    assert_eq!(problem(text, Some("H100 SXM5 80G")), misspelt);
    assert!(matches!(problem(text, Some("Banana")), ImportProblem::UnknownKind { nearest: None, .. }));
    let mut request = request(text, Some("Banana"));
    request.gpus.memory = Some("5 GiB".parse().unwrap());
    let imported = import(&request).unwrap();
    assert_eq!(imported.notes, ["the slot of a `Banana` is not known: 31.5 GB/s taken"]);
    let one = Topology::parse(&imported.yaml, "imported", None, None).unwrap();
    assert_eq!(one.least_memory_bytes(), 5 << 30);
}

#[test]
fn what_is_wrong_with_a_matrix_is_named() {
    use ImportProblem as P;
    let head = "GPU0 GPU1\n";
    let wrong = |rows: &str| problem(&format!("{head}{rows}"), Some("L40S"));
    assert!(matches!(wrong("GPU0 X PHB\nGPU1 PIX X\n"), P::Asymmetric { .. }));
    assert!(matches!(wrong("GPU0 X PHB\n"), P::RowMissing { rows: 1, devices: 2, .. }));
    assert!(matches!(wrong(""), P::RowMissing { rows: 0, .. }));
    assert!(matches!(wrong("GPU0 X PHB\nLegend:\n"), P::RowMissing { rows: 1, .. }));
    assert!(matches!(wrong("GPU0 X PHB\nGPU0 PHB X\n"), P::RowName { line: 3, .. }));
    assert!(matches!(wrong("GPU0 X\nGPU1 PHB X\n"), P::RowLength { line: 2, cells: 1, .. }));
    assert!(matches!(wrong("GPU0 X PHB PHB\nGPU1 PHB X\n"), P::RowLength { cells: 3, .. }));
    for word in ["ABC", "NV0", "NV257", "NV4294967296", "NV-1", "NV", "X", "N/A"] {
        let rows = format!("GPU0 X {word}\nGPU1 {word} X\n");
        assert!(matches!(wrong(&rows), P::LinkWord { .. } | P::RowLength { .. }), "{word}");
    }
    assert!(matches!(wrong("GPU0 PHB PHB\nGPU1 PHB X\n"), P::LinkWord { .. }));
    for head in
        ["GPU0 GPU2\n", "GPU0 NIC0 GPU1\n", "GPU0 GPU0\n", "GPU0 NIC0 NIC0\n", "GPU0 X PHB\n", "GPU0 GPU\n"]
    {
        assert!(matches!(problem(head, Some("L40S")), P::ColumnName { line: 1, .. }), "{head}");
    }
    assert_eq!(problem("", Some("L40S")), P::NeitherKind);
    let million: String = (0..300_000).map(|gpu| format!("GPU{gpu} ")).collect();
    assert!(matches!(problem(&million, Some("L40S")), P::TooMany { count: 129, what: "GPUs", .. }));
    let cards: String = (0..300_000).map(|nic| format!(" NIC{nic}")).collect();
    assert!(matches!(
        problem(&format!("GPU0{cards}"), Some("L40S")),
        P::TooMany { what: "network cards", .. }
    ));
    assert!(matches!(problem(&" ".repeat(MAX_BYTES + 1), None), P::TooLong { .. }));
}

#[test]
fn what_is_wrong_with_xml_is_named() {
    use ImportProblem as P;
    let wrong = |text: &str| problem(text, Some("L40S"));
    assert!(matches!(wrong("<system><cpu></system>"), P::NotXml { line: 1, .. }));
    assert!(matches!(wrong("\n<html/>"), P::NotNccl { line: 2, .. }));
    assert!(matches!(wrong("<system/>"), P::NoGpus { devices: 0 }));
    let bomb = "<!DOCTYPE s [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]>\n<system>&b;</system>";
    assert!(matches!(wrong(bomb), P::NotXml { .. }));
    let deep = |levels: usize| {
        let open: String = (0..levels).map(|at| format!("<pci busid=\"{at:x}\">")).collect();
        format!("<system><cpu>{open}{}</cpu></system>", "</pci>".repeat(levels))
    };
    assert!(matches!(wrong(&deep(MAX_DEPTH + 1)), P::TooDeep { line: 1 }));
    assert!(matches!(wrong(&deep(40_000)), P::TooDeep { .. }));
    assert!(matches!(wrong(&"<a>".repeat(1_000_000)), P::NotXml { .. }));
    let deepest = 99_000;
    assert!(matches!(
        wrong(&format!("{}{}", "<a>".repeat(deepest), "</a>".repeat(deepest))),
        P::NotNccl { .. }
    ));
    let device = |attributes: &str, inside: &str| {
        wrong(&format!("<system><cpu><pci class=\"0x030200\" {attributes}>{inside}</pci></cpu></system>"))
    };
    let attribute = |problem: ImportProblem| match problem {
        P::Attribute { attribute, .. } => attribute,
        other => panic!("{other}"),
    };
    assert_eq!(attribute(device("", "")), "busid");
    for speed in ["-16 GT/s", "17 GT/s", "1e9 GT/s", "16", "99999999999999999999 GT/s", "NaN GT/s"] {
        let text = format!("busid=\"1\" link_speed=\"{speed}\" link_width=\"16\"");
        assert_eq!(attribute(device(&text, "")), "link_speed");
    }
    for width in ["-16", "33", "x", "99999999999999999999"] {
        let text = format!("busid=\"1\" link_speed=\"16 GT/s\" link_width=\"{width}\"");
        assert_eq!(attribute(device(&text, "")), "link_width");
    }
    for count in ["-1", "0", "257", ""] {
        let inside = format!("<gpu><nvlink target=\"2\" count=\"{count}\"/></gpu>");
        assert_eq!(attribute(device("busid=\"1\"", &inside)), "count");
    }
    for speed in ["-1", "10000001", "fast"] {
        let inside = format!("<nic><net speed=\"{speed}\"/></nic>");
        assert_eq!(attribute(device("busid=\"1\"", &inside)), "speed");
    }
    assert_eq!(attribute(device("busid=\"1\"", "<gpu dev=\"-1\"/>")), "dev");
    assert_eq!(attribute(wrong("<system><cpu numaid=\"4000000000\"/></system>")), "numaid");
    assert!(matches!(device("busid=\"1\"", "<pci busid=\"1\"/>"), P::AddressTwice { .. }));
    let many: String = (0..30_000).map(|at| format!("<pci busid=\"{at:x}\" class=\"0x030200\"/>")).collect();
    let many = format!("<system><cpu>{many}</cpu></system>");
    assert!(matches!(wrong(&many), P::TooMany { count: 129, what: "GPUs", .. }));
    let hosts = "<system><cpu host_hash=\"0x1\"/><cpu host_hash=\"0x2\"/></system>";
    assert_eq!(wrong(hosts), P::SeveralHosts { hosts: 2 });
}

#[test]
fn the_tree_of_the_machine_at_hand_is_a_topology() {
    let gpu = |name: &str, memory_bytes| PciDevice {
        address: name.to_owned(),
        id: Some("10de:26b9".to_owned()),
        gpu: Some(PciGpu { name: Some(name.to_owned()), memory_bytes, ..PciGpu::default() }),
        ..PciDevice::default()
    };
    let tree = |devices| PciTree { cpus: vec![Cpu { devices, ..Cpu::default() }] };
    let one = |device| topology_of_tree("here", "this machine", &tree(vec![device]), &GpuChoice::default());
    // The name is not known, but the device is.
    let known = one(gpu("Some New Name", Some(5 << 30))).unwrap();
    assert!(known.yaml.contains("kind: L40S\n  memory: 5 GiB\n"), "{}", known.yaml);
    let unknown = PciDevice { id: None, ..gpu("Banana", Some(1 << 30)) };
    assert!(one(unknown).unwrap().yaml.contains("kind: Banana"));
    let nameless = one(PciDevice { id: None, ..gpu("Banana", None) }).unwrap_err();
    assert!(matches!(nameless.problem, ImportProblem::UnknownKind { .. }), "{nameless}");
    let mut deep = gpu("Banana", None);
    for _ in 0..MAX_DEPTH {
        deep = PciDevice { devices: vec![deep], ..PciDevice::default() };
    }
    assert_eq!(
        one(deep).unwrap_err().to_string(),
        "this machine: PCI devices are nested deeper than 16 levels"
    );
}

#[test]
fn the_largest_machine_is_imported() {
    let devices: Vec<String> = (0..MAX_GPUS)
        .map(|gpu| format!("GPU{gpu}"))
        .chain((0..MAX_NICS).map(|nic| format!("NIC{nic}")))
        .collect();
    let mut text = devices.join(" ");
    for (from, name) in devices.iter().enumerate() {
        let _ = write!(text, "\n{name}");
        for to in 0..devices.len() {
            text.push_str(if from == to {
                " X"
            } else if from / 8 == to / 8 {
                " PHB"
            } else {
                " NODE"
            });
        }
    }
    assert_eq!(machine(&text, Some("L40S")).0.gpus().len(), MAX_GPUS);
}

/// Where a device is: its NUMA node, host bridge, upper and lower switch, each within the one before.
type Place = [u8; 4];

fn relation(a: Place, b: Place) -> &'static str {
    let words = ["SYS", "NODE", "PHB", "PXB"];
    (0..4).find(|&level| a[level] != b[level]).map_or("PIX", |level| words[level])
}

/// How near: the nearest is 0.
fn rank(word: &str) -> usize {
    ["PIX", "PXB", "PHB", "NODE", "SYS"].iter().position(|known| *known == word).unwrap()
}

prop_compose! {
    /// Places of GPUs and cards, and links that no GPU has more than six of.
    fn machines()(
        gpus in prop::collection::vec(prop::array::uniform4(0u8..3), 1..8),
        cards in prop::collection::vec(prop::array::uniform4(0u8..3), 0..4),
        links in prop::collection::vec((0usize..8, 0usize..8, 1u32..4), 0..8),
        tabs in any::<bool>(),
    ) -> (Vec<Place>, Vec<Place>, Vec<(usize, usize, u32)>, bool) {
        let mut left = [6; 8];
        let mut kept: Vec<(usize, usize, u32)> = Vec::new();
        for (a, b, count) in links {
            let (from, to) = (a.min(b), a.max(b));
            let is_new = kept.iter().all(|link| (link.0, link.1) != (from, to));
            if from < to && to < gpus.len() && is_new && left[from] >= count && left[to] >= count {
                left[from] -= count;
                left[to] -= count;
                kept.push((from, to, count));
            }
        }
        (gpus, cards, kept, tabs)
    }
}

fn written(gpus: &[Place], cards: &[Place], links: &[(usize, usize, u32)], tabs: bool) -> String {
    let places = [gpus, cards].concat();
    let names: Vec<String> = (0..places.len())
        .map(|at| at.checked_sub(gpus.len()).map_or(format!("GPU{at}"), |card| format!("NIC{card}")))
        .collect();
    let separator = if tabs { "\t" } else { "    " };
    let mut text =
        format!("{separator}{}{separator}CPU Affinity{separator}NUMA Affinity", names.join(separator));
    for (from, name) in names.iter().enumerate() {
        let cell = |to: usize| {
            let link = links.iter().find(|link| (link.0, link.1) == (from.min(to), from.max(to)));
            match link {
                _ if from == to => " X ".to_owned(),
                Some((_, _, count)) => format!("NV{count}"),
                None => relation(places[from], places[to]).to_owned(),
            }
        };
        let cells: Vec<String> = (0..names.len()).map(cell).collect();
        let _ = write!(text, "\n{name}{separator}{}", cells.join(separator));
        if from < gpus.len() {
            let _ = write!(text, "{separator}0-7{separator}{}", places[from][0]);
        }
    }
    text
}

/// A made-up slot, as the file writes it.
fn slots() -> impl Strategy<Value = (&'static str, u8)> {
    (
        prop::sample::select(vec!["2.5 GT/s", "5.0 GT/s PCIe", "8 GT/s", "16.0 GT/s PCIe", "32.0 GT/s PCIe"]),
        1u8..17,
    )
}

/// A CPU's devices: switches with GPUs, one level or two deep. Each with its slot.
type Switch = ((&'static str, u8), Vec<(&'static str, u8)>);

fn cpus() -> impl Strategy<Value = Vec<Vec<(Switch, Vec<Switch>)>>> {
    let switch = || (slots(), prop::collection::vec(slots(), 0..3));
    let upper = (switch(), prop::collection::vec(switch(), 0..3));
    prop::collection::vec(prop::collection::vec(upper, 0..3), 1..4)
}

proptest! {
    #[test]
    fn a_matrix_comes_back((gpus, cards, links, tabs) in machines()) {
        let text = written(&gpus, &cards, &links, tabs);
        let (found, notes) = machine(&text, Some("V100 SXM2 16GB"));
        let no_tree = notes.iter().any(|note| note.contains("no tree"));
        prop_assert!(!no_tree, "{notes:?}\n{text}");
        for from in 0..gpus.len() {
            let mut near: Vec<(usize, Path)> = Vec::new();
            for to in (0..gpus.len()).filter(|&to| to != from) {
                let link = links.iter().find(|link| (link.0, link.1) == (from.min(to), from.max(to)));
                let counts: Vec<u32> = found
                    .edges()
                    .filter(|edge| (edge.0, edge.1) == (from, to) || (edge.1, edge.0) == (from, to))
                    .map(|(_, _, edge)| edge.count)
                    .collect();
                prop_assert_eq!(counts, link.iter().map(|link| link.2).collect::<Vec<_>>());
                let path = found.widest_path(from, to).unwrap();
                match link {
                    Some((_, _, count)) => {
                        prop_assert_eq!(path.kind, EdgeKind::Nvlink);
                        prop_assert_eq!(path.bytes_per_second, u64::from(*count) * 25_000_000_000);
                    }
                    None => {
                        let word = relation(gpus[from], gpus[to]);
                        prop_assert_eq!(path.kind == EdgeKind::Socket, word == "SYS");
                        near.push((rank(word), path));
                    }
                }
            }
            let in_order = |a: &(usize, Path), b: &(usize, Path)| a.0 >= b.0 || a.1.order() >= b.1.order();
            prop_assert!(near.iter().all(|a| near.iter().all(|b| in_order(a, b))), "{from} {near:?}\n{text}");
        }
    }

    #[test]
    fn the_paths_of_a_tree_are_as_wide_as_its_slots(cpus in cpus()) {
        let mut text = String::from("<system>");
        // Of each GPU: its CPU, and the slots from it up to the CPU with where each is.
        let mut ways: Vec<(usize, Vec<(String, u64)>)> = Vec::new();
        let mut number = 0;
        let mut open = |text: &mut String, (speed, lanes): (&str, u8), class: &str| {
            number += 1;
            let address = format!("{number:04x}:00:00.0");
            let _ = write!(text, "<pci busid=\"{address}\" class=\"{class}\" link_speed=\"{speed}\" link_width=\"{lanes}\">");
            // `2.5 GT/s PCIe` or `16 GT/s` as tenths.
            let (whole, tenths) = speed.split(' ').next().map(|rate| rate.split_once('.').unwrap_or((rate, "0"))).unwrap();
            let tenths = whole.parse::<u64>().unwrap() * 10 + tenths.parse::<u64>().unwrap();
            (address, speeds::slot(tenths, lanes.into()).unwrap())
        };
        for (cpu, uppers) in cpus.iter().enumerate() {
            let _ = write!(text, "<cpu numaid=\"{cpu}\">");
            for ((slot, gpus), lowers) in uppers {
                let upper = open(&mut text, *slot, "0x060400");
                for gpu in gpus {
                    let own = open(&mut text, *gpu, "0x030200");
                    text.push_str("</pci>");
                    ways.push((cpu, vec![upper.clone(), own]));
                }
                for (slot, gpus) in lowers {
                    let lower = open(&mut text, *slot, "0x060400");
                    for gpu in gpus {
                        let own = open(&mut text, *gpu, "0x030200");
                        text.push_str("</pci>");
                        ways.push((cpu, vec![upper.clone(), lower.clone(), own]));
                    }
                    text.push_str("</pci>");
                }
                text.push_str("</pci>");
            }
            text.push_str("</cpu>");
        }
        text.push_str("</system>");
        if ways.is_empty() {
            let empty = matches!(problem(&text, Some("X")), ImportProblem::NoGpus { .. });
            prop_assert!(empty);
            return Ok(());
        }
        let mut request = request(&text, Some("X"));
        request.gpus.memory = Some("1 GiB".parse().unwrap());
        let imported = import(&request).unwrap();
        prop_assert_eq!(&imported, &import(&request).unwrap());
        let found = Topology::parse(&imported.yaml, "imported", None, None).unwrap();
        for (a, (cpu_a, way_a)) in ways.iter().enumerate() {
            for (b, (cpu_b, way_b)) in ways.iter().enumerate().filter(|(b, _)| *b != a) {
                let shared = |slot: &&(String, u64)| !(way_a.contains(slot) && way_b.contains(slot));
                let slots = way_a.iter().chain(way_b).filter(shared).map(|(_, bytes)| *bytes).min().unwrap();
                let expected = if cpu_a == cpu_b { slots } else { slots.min(16_000_000_000) };
                prop_assert_eq!(found.widest_path(a, b).unwrap().bytes_per_second, expected, "{} {}\n{}", a, b, text);
            }
        }
    }

    #[test]
    fn no_text_panics(text in "(GPU[0-3]{0,2}|NIC[01]|X|NV[0-9]{1,3}|PIX|SYS|PHB|N/A|[ \t\n]|\u{1b}|CPU Affinity|.){0,40}") {
        let _ = import(&request(&text, Some("L40S")));
    }

    #[test]
    fn no_xml_panics(
        text in "<system>(<(cpu|pci busid='[0-3]'|pci busid='1' class='0x0[23]0200'|gpu|gpu dev='[0-9]'|nic|net speed='[0-9]{1,9}')/?>|</(cpu|pci|gpu|nic)>|.){0,20}</system>"
    ) {
        let _ = import(&request(&text, Some("L40S")));
    }

    #[test]
    fn no_mutation_of_a_file_panics(at in any::<prop::sample::Index>(), cut in 0usize..40, put in ".{0,3}") {
        for text in [fixture!("nccl-2xa6000-bridge.xml"), fixture!("matrix-4xl40s.txt"), fixture!("matrix-8xh100-tabs.txt")] {
            let start = at.index(text.len());
            let end = (start + cut).min(text.len());
            let mutated = format!("{}{put}{}", &text[..start], &text[end..]);
            let _ = import(&request(&mutated, Some("L40S")));
        }
    }
}
