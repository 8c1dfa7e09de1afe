//! `shardwright topology detect`: which machine this is, as a topology.

use crate::{
    cli,
    failure::Failure,
    output::{escaped_line, print_notes, write_whole},
};
use shardwright_loader::detect::{Sources, detect};
use shardwright_planner::{
    quote::escaped,
    topology::import::{GpuChoice, LinkTarget, PciDevice, PciTree, topology_of_tree},
};
use std::{fmt::Write as _, io::Write};

pub(crate) fn run(args: cli::Detect, out: &mut dyn Write) -> Result<(), Failure> {
    let usual = Sources::default();
    let sources =
        Sources { sysfs: args.sysfs.unwrap_or(usual.sysfs), cpuinfo: args.cpuinfo.unwrap_or(usual.cpuinfo) };
    let found = detect(&sources)?;
    if args.tree {
        print_notes(&found.notes);
        return Ok(out.write_all(drawn(&found.tree).as_bytes())?);
    }
    let imported = topology_of_tree(&args.name, "NVML and sysfs", &found.tree, &GpuChoice::default())?;
    print_notes(&found.notes);
    print_notes(&imported.notes);
    let comments = found.notes.iter().map(|note| format!("# {}\n", escaped_line(&note.to_string())));
    let yaml = comments.collect::<String>() + &imported.yaml;
    match args.output {
        Some(file) => {
            write_whole(&file, &yaml)?;
            writeln!(out, "topology written to {}", file.display())?;
        }
        None => out.write_all(yaml.as_bytes())?,
    }
    Ok(())
}

/// What was found, one line a thing, indented by what it is plugged into.
fn drawn(tree: &PciTree) -> String {
    let mut text = String::new();
    for cpu in &tree.cpus {
        let numa = cpu.numa.map_or("unknown".to_owned(), |numa| numa.to_string());
        let mut words = vec![format!("numa {numa}")];
        words.extend(
            [&cpu.arch, &cpu.vendor].into_iter().filter(|word| !word.is_empty()).map(|word| escaped(word)),
        );
        words.extend(cpu.family.map(|family| format!("family {family}")));
        words.extend(cpu.model.map(|model| format!("model {model}")));
        text.push_str(&words.join(", "));
        text.push('\n');
        draw(&cpu.devices, 1, &mut text);
    }
    text
}

/// The tree is as deep as its source lets it be.
fn draw(devices: &[PciDevice], depth: usize, text: &mut String) {
    for device in devices {
        let mut words = vec![escaped(&device.address)];
        words.extend(device.class.map(|class| format!("class {class:06x}")));
        words.extend(device.id.as_deref().map(escaped));
        words.extend(device.bytes_per_second.map(|speed| format!("{} MB/s", speed / 1_000_000)));
        if let Some(gpu) = &device.gpu {
            words.extend(gpu.number.map(|number| format!("GPU {number}")));
            words.extend(gpu.name.as_deref().map(escaped));
            words.extend(gpu.memory_bytes.map(|bytes| format!("{} MiB", bytes >> 20)));
            words.extend(gpu.sm.map(|sm| format!("sm {sm}")));
            words.extend(gpu.links.iter().map(|link| match &link.target {
                LinkTarget::Device(address) => {
                    format!("{} {} to {}", link.count, link.kind, escaped(address))
                }
                LinkTarget::Switch => format!("{} {} to switches", link.count, link.kind),
            }));
        }
        words.extend(device.ports.iter().map(|port| {
            let speed = port
                .bytes_per_second
                .map_or("unknown speed".to_owned(), |speed| format!("{} MB/s", speed / 1_000_000));
            format!("port {} of {speed}", escaped(&port.name))
        }));
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:indent$}{}", "", words.join(", "), indent = 2 * depth);
        draw(&device.devices, depth + 1, text);
    }
}
