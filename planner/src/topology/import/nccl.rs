//! NCCL's topology file: XML of CPUs, with PCI devices in them, with GPUs and network cards in these.
//!
//! NCCL writes it (`NCCL_TOPO_DUMP_FILE`), and clouds ship it for machines that hide their PCI tree. The former names every
//! device; the latter leave out what NCCL would find by itself, GPUs and NVLinks above all. Elements and attributes that mean
//! nothing here are passed over, as NCCL does.

use super::{
    Cpu, GpuLink, ImportError, ImportProblem, LinkTarget, MAX_DEPTH, PciDevice, PciGpu, PciTree, Port,
    Source, speeds,
};
use crate::topology::{EdgeKind, schema::MAX_COUNT};
use roxmltree::{Document, Node, ParsingOptions};
use std::collections::BTreeSet;

/// Most elements, texts and comments: a node of 4096 devices has fewer.
const MAX_NODES: u32 = 100_000;

/// Most megabits per second of a port.
const MAX_MEGABITS: u64 = 10_000_000;

/// What stands for NVSwitches that a virtual machine does not see.
const UNSEEN_SWITCH: &str = "fffffff:ff:ff.0";

pub(super) fn parse(source: &Source<'_>) -> Result<PciTree, ImportError> {
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(source.bounded()?, options).map_err(|error| {
        let place = error.pos();
        // The parser appends the place to its text, and quotes what it found there.
        let text = error.to_string();
        let reason = text.rsplit_once(" at ").map_or(text.as_str(), |(reason, _)| reason);
        source.fails(ImportProblem::NotXml {
            line: place.row,
            column: place.col,
            reason: crate::quote::escaped(reason),
        })
    })?;
    tree(document.root_element()).map_err(|problem| source.fails(problem))
}

fn tree(root: Node<'_, '_>) -> Result<PciTree, ImportProblem> {
    if root.tag_name().name() != "system" {
        return Err(ImportProblem::NotNccl { line: line(root), element: root.tag_name().name().to_owned() });
    }
    let cpus = || children(root, "cpu");
    let hosts: BTreeSet<&str> = cpus().filter_map(|cpu| cpu.attribute("host_hash")).collect();
    if hosts.len() > 1 {
        return Err(ImportProblem::SeveralHosts { hosts: hosts.len() });
    }
    Ok(PciTree { cpus: cpus().map(cpu).collect::<Result<_, _>>()? })
}

fn cpu(node: Node<'_, '_>) -> Result<Cpu, ImportProblem> {
    let text = |name| node.attribute(name).unwrap_or_default().to_owned();
    let number = |name| node.attribute(name).and_then(|text| text.trim().parse().ok());
    let numa = match node.attribute("numaid").map(str::trim) {
        // Linux says so of machines without NUMA nodes.
        None | Some("-1" | "") => None,
        Some(_) => Some(figure(node, "cpu", "numaid", 0, 1023)?),
    };
    let mut devices = devices(node, 1)?;
    let ports = ports(node)?;
    if !ports.is_empty() {
        // Cards without a PCI device: those of virtual machines, or what NCCL's socket transport goes over.
        devices.push(PciDevice { ports, ..PciDevice::default() });
    }
    Ok(Cpu {
        numa: numa.and_then(|numa| u32::try_from(numa).ok()),
        arch: text("arch"),
        vendor: text("vendor"),
        family: number("familyid"),
        model: number("modelid"),
        devices,
    })
}

/// The PCI devices directly in `node`, which is `depth` levels below the system.
fn devices(node: Node<'_, '_>, depth: usize) -> Result<Vec<PciDevice>, ImportProblem> {
    let pci = || children(node, "pci");
    if let Some(first) = pci().next().filter(|_| depth > MAX_DEPTH) {
        return Err(ImportProblem::TooDeep { line: line(first) });
    }
    pci().map(|node| device(node, depth)).collect()
}

fn device(node: Node<'_, '_>, depth: usize) -> Result<PciDevice, ImportProblem> {
    let address = node.attribute("busid").unwrap_or_default().trim().to_lowercase();
    if address.is_empty() {
        return Err(wrong(node, "pci", "busid", "an address like 0000:07:00.0"));
    }
    let hex = |name| {
        let text = node.attribute(name)?.trim();
        u32::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
    };
    // Clouds write 0 or ffff for what they hide.
    let real = |id: &u32| (1..0xffff).contains(id);
    let id = (hex("vendor").filter(real), hex("device").filter(real));
    Ok(PciDevice {
        address,
        class: hex("class"),
        id: id.0.zip(id.1).map(|(vendor, device)| format!("{vendor:04x}:{device:04x}")),
        bytes_per_second: slot(node)?,
        gpu: children(node, "gpu").next().map(gpu).transpose()?,
        ports: ports(node)?,
        devices: devices(node, depth + 1)?,
    })
}

/// Bytes per second of a device's slot, from `16.0 GT/s PCIe` and the number of its lanes; `None` where either is not told.
fn slot(node: Node<'_, '_>) -> Result<Option<u64>, ImportProblem> {
    let speed = node.attribute("link_speed").unwrap_or_default().trim();
    let width = node.attribute("link_width").unwrap_or_default().trim();
    if speed.is_empty() || speed.starts_with("Unknown") || matches!(width, "" | "0") {
        return Ok(None);
    }
    let wrong_speed = || wrong(node, "pci", "link_speed", "2.5, 5, 8, 16, 32 or 64 GT/s");
    let number = speed.trim_end_matches("PCIe").trim_end().strip_suffix("GT/s").ok_or_else(wrong_speed)?;
    let tenths = match number.trim().trim_end_matches(".0") {
        "2.5" => 25,
        whole => whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(10)).ok_or_else(wrong_speed)?,
    };
    let lanes = figure(node, "pci", "link_width", 1, 32)?;
    speeds::slot(tenths, lanes).map(Some).ok_or_else(wrong_speed)
}

fn gpu(node: Node<'_, '_>) -> Result<PciGpu, ImportProblem> {
    let number = match node.attribute("dev") {
        None => None,
        Some(_) => u32::try_from(figure(node, "gpu", "dev", 0, 1023)?).ok(),
    };
    let link = |element: &'static str, kind| {
        children(node, element).map(move |link| {
            let target = link.attribute("target").unwrap_or_default().trim().to_lowercase();
            let is_switch = target == UNSEEN_SWITCH || link.attribute("tclass") == Some("0x068000");
            Ok(GpuLink {
                kind,
                target: if is_switch { LinkTarget::Switch } else { LinkTarget::Device(target) },
                // No more than fits.
                count: u32::try_from(figure(link, element, "count", 1, MAX_COUNT.into())?)
                    .unwrap_or(MAX_COUNT),
            })
        })
    };
    let links = link("nvlink", EdgeKind::Nvlink).chain(link("xgmi", EdgeKind::Xgmi));
    Ok(PciGpu {
        number,
        sm: node.attribute("sm").and_then(|sm| sm.trim().parse().ok()),
        links: links.collect::<Result<_, _>>()?,
        ..PciGpu::default()
    })
}

/// The network ports directly in `node`.
fn ports(node: Node<'_, '_>) -> Result<Vec<Port>, ImportProblem> {
    let nets = children(node, "nic").flat_map(|nic| children(nic, "net"));
    nets.map(|net| {
        let megabits = match net.attribute("speed").map(str::trim) {
            None | Some("" | "0") => None,
            Some(_) => Some(figure(net, "net", "speed", 1, MAX_MEGABITS)?),
        };
        Ok(Port {
            name: net.attribute("name").unwrap_or_default().to_owned(),
            bytes_per_second: megabits.map(|megabits| megabits * 1_000_000 / 8),
        })
    })
    .collect()
}

fn children<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

/// The whole number of an attribute, which is from `least` to `most`.
fn figure(
    node: Node<'_, '_>,
    element: &'static str,
    attribute: &'static str,
    least: u64,
    most: u64,
) -> Result<u64, ImportProblem> {
    let number = node.attribute(attribute).and_then(|text| text.trim().parse().ok());
    number
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| wrong(node, element, attribute, &format!("a whole number from {least} to {most}")))
}

fn wrong(
    node: Node<'_, '_>,
    element: &'static str,
    attribute: &'static str,
    expected: &str,
) -> ImportProblem {
    let value = node.attribute(attribute).unwrap_or_default().to_owned();
    ImportProblem::Attribute { line: line(node), element, attribute, value, expected: expected.to_owned() }
}

fn line(node: Node<'_, '_>) -> u32 {
    node.document().text_pos_at(node.range().start).row
}
