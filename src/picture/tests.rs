//! Pictures of every built-in machine, and of hostile ones.

use super::{
    Overlay, layout,
    scene::{Item, Look, Rect},
    svg,
};
use roxmltree::Document;
use shardwright_planner::topology::{HostFacts, Topology, builtins};

fn machine(text: &str, name: &str, nodes: Option<u32>) -> Topology {
    let host = HostFacts { devices: 4, memory_bytes: 1 << 30 };
    Topology::parse(text, name, nodes, Some(host)).unwrap()
}

/// Width and height of the picture, which begins at 0, 0.
fn size(document: &Document<'_>) -> (f64, f64) {
    let view = document.root_element().attribute("viewBox").unwrap();
    let numbers: Vec<f64> = view.split_whitespace().map(|number| number.parse().unwrap()).collect();
    assert_eq!(&numbers[..2], [0.0, 0.0]);
    (numbers[2], numbers[3])
}

/// Checks that the picture is XML, and that nothing of it lies outside.
fn check(picture: &str, name: &str) {
    let document = Document::parse(picture).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (width, height) = size(&document);
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let number = |key| node.attribute(key).and_then(|value| value.parse::<f64>().ok());
        let (Some(x), Some(y)) = (number("x"), number("y")) else { continue };
        let (right, bottom) = (x + number("width").unwrap_or(0.0), y + number("height").unwrap_or(0.0));
        let inside = x >= 0.0 && y >= 0.0 && right <= width + 0.5 && bottom <= height + 0.5;
        assert!(
            inside,
            "{name}: {} at {x}, {y} to {right}, {bottom} of {width} × {height}",
            node.tag_name().name()
        );
    }
}

#[test]
fn every_built_in_machine_is_drawn_inside_its_picture() {
    for (name, text) in builtins() {
        check(&svg(&machine(text, name, None), None), name);
        if text.contains("\nnetwork:") {
            for nodes in [1, 2, 4, 20] {
                check(&svg(&machine(text, name, Some(nodes)), None), &format!("{nodes} × {name}"));
            }
        }
    }
}

#[test]
fn things_stand_beside_each_other() {
    for (name, text) in builtins() {
        let scene = layout::scene(&machine(text, name, None), None);
        let things: Vec<Rect> = scene
            .items()
            .filter_map(|item| match item {
                Item::Box { rect, look: Look::Gpu | Look::Hub | Look::Socket | Look::Nic, .. } => Some(*rect),
                _ => None,
            })
            .collect();
        assert!(!things.is_empty(), "{name}");
        for (at, a) in things.iter().enumerate() {
            assert!(things[at + 1..].iter().all(|b| !a.meets(b)), "{name}: something lies on {a:?}");
        }
    }
}

#[test]
fn no_words_are_cut_short_in_pictures_of_built_in_machines() {
    for (name, text) in builtins() {
        let networked = text.contains("\nnetwork:");
        for nodes in [1, 4, 20].into_iter().filter(|nodes| *nodes == 1 || networked) {
            let picture = svg(&machine(text, name, Some(nodes)), None);
            let document = Document::parse(&picture).unwrap();
            let texts = document.descendants().filter_map(|node| node.text());
            let cut: Vec<&str> = texts.filter(|text| text.contains('…')).collect();
            assert!(cut.is_empty(), "{nodes} × {name}: {cut:?}");
        }
    }
}

#[test]
fn names_from_files_are_escaped() {
    let text = "topology: '</svg><script>alert(1)</script>&amp;'\nabout: '\"<b>\\u0007'\ngpu: { kind: '<i>', memory: 1 GiB }\ngpus: 2\nhubs:\n  - { name: cpu, kind: host-bridge, gpus: 0-1, bandwidth: 1 GB/s }\n";
    let picture = svg(&machine(text, "hostile", None), None);
    check(&picture, "hostile");
    assert!(!picture.contains("<script") && !picture.contains("<b>") && !picture.contains("<i>"));
}

#[test]
fn pictures_of_large_machines_are_bounded() {
    let text = builtins().find(|(name, _)| *name == "dgx-h100").unwrap().1;
    for nodes in [128, 8192] {
        let picture = svg(&machine(text, "dgx-h100", Some(nodes)), None);
        check(&picture, "large");
        assert!(picture.len() < 400_000, "{}", picture.len());
    }
    let many = "topology: many\nabout: x\ngpu: { kind: X, memory: 1 GiB }\ngpus: 128\nhubs:\n  - { name: cpu0-31, kind: host-bridge, gpus: 0-127, bandwidth: 1 GB/s }\nlinks:\n  - { kind: socket, among: cpu0-31, bandwidth: 1 GB/s }\n  - { kind: nvlink, among: gpu0-63, bandwidth: 1 GB/s }\n";
    let picture = svg(&machine(many, "many", None), None);
    check(&picture, "many");
    assert!(picture.len() < 2_000_000, "{}", picture.len());
}

#[test]
fn a_machine_without_a_plan_has_no_ranks() {
    let text = builtins().find(|(name, _)| *name == "dgx-h100").unwrap().1;
    assert!(!svg(&machine(text, "dgx-h100", None), None::<&Overlay>).contains("rank"));
}
