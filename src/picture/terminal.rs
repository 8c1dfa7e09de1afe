//! A machine for terminals: what is plugged into what as a short tree, then how well GPUs reach each other.

use super::{
    overlay::Overlay,
    parts::{Parts, Shape},
    words,
};
use crate::{
    failure::Failure,
    output::{print_table, table},
};
use comfy_table::ContentArrangement;
use shardwright_planner::{
    quote::escaped,
    size::count,
    topology::{Edge, EdgeKind, Topology, VertexKind, runs},
};
use std::io::Write;

const WIDEST: u16 = 100;
/// Most GPUs of a node for which every pair is shown.
const MOST_IN_MATRIX: usize = 8;
/// Most roots that are shown one by one, though they are alike.
const FEW_ROOTS: usize = 4;
/// Most links of one speed that are named.
const MOST_LINKS: usize = 24;
/// Most groups of a plan, and domains of a fabric, that are shown one by one.
const MOST_GROUPS: usize = 16;
const MOST_DOMAINS: usize = 4;

/// Prints `machine`, with the ranks of a plan beside its GPUs if there is one.
pub(crate) fn print(
    machine: &Topology,
    overlay: Option<&Overlay>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let parts = Parts::of(machine);
    writeln!(out, "{}: {}", escaped(machine.name()), escaped(machine.about()))?;
    print_kinds(machine, out)?;
    writeln!(out, "\nwhat is plugged in where, bandwidths of one direction")?;
    let rows = Tree { machine, parts: &parts, overlay, rows: Vec::new() }.of_node();
    let mut tree = table(["name", "links", "plugged in"], 3, rows);
    tree.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDEST);
    for line in tree.lines().skip(1) {
        writeln!(out, "{}", line.trim_end())?;
    }
    print_pairs(machine, out)?;
    print_domains(machine, out)?;
    if let Some(overlay) = overlay {
        print_groups(machine, overlay, out)?;
    }
    print_figures(machine, out)
}

fn print_kinds(machine: &Topology, out: &mut dyn Write) -> Result<(), Failure> {
    let nodes = count(u64::from(machine.nodes()), "node");
    writeln!(out, "{nodes} of {}", escaped(&machine.kinds_in_words()))?;
    for kind in machine.kinds() {
        let bandwidth = kind.memory_bandwidth.map_or(String::new(), |bandwidth| format!(" at {bandwidth}"));
        let flops: Vec<String> = kind
            .flops
            .iter()
            .map(|(number, rate)| format!("{} {rate}", format!("{number:?}").to_lowercase()))
            .collect();
        let flops = if flops.is_empty() { String::new() } else { format!("; {}", flops.join(", ")) };
        let line = format!("{}: {}{bandwidth}{flops}", escaped(&kind.kind), words::size(kind.memory_bytes));
        for line in wrapped(&line) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

/// A long line as several, cut between words.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut();
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDEST as usize => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(format!("  {word}")),
        }
    }
    lines
}

/// The rows of the tree: name, links, what is plugged in.
struct Tree<'a> {
    machine: &'a Topology,
    parts: &'a Parts<'a>,
    overlay: Option<&'a Overlay>,
    rows: Vec<[String; 3]>,
}

impl Tree<'_> {
    fn of_node(mut self) -> Vec<[String; 3]> {
        self.fabrics();
        let roots = self.parts.roots.clone();
        let groups = match roots.len() {
            ..=FEW_ROOTS => roots.iter().map(|&root| vec![root]).collect(),
            _ => self.alike(&roots),
        };
        for group in groups {
            self.hubs(&group, "", "");
        }
        self.sockets();
        for (from, to, edge) in self.parts.others.clone() {
            let name = |at: usize| &self.parts.things[at].name;
            self.rows.push([name(from).clone(), words::kind_and_rate(&edge), format!("to {}", name(to))]);
        }
        let loose_doors =
            self.parts.doors.iter().any(|(door, _)| self.parts.things[*door].kind != VertexKind::Nic);
        if let Some(network) = self.machine.network() {
            let doors: Vec<String> = self
                .parts
                .doors_by_rate()
                .iter()
                .map(|(count, edge)| format!("{count} × {}", words::rate(edge.bytes_per_second())))
                .collect();
            let of: Vec<usize> = self.parts.doors.iter().map(|(door, _)| *door).collect();
            let over = if loose_doors {
                format!(", over {}", words::names_of(self.parts, &of))
            } else {
                String::new()
            };
            self.rows.push([
                "network".to_owned(),
                escaped(network),
                format!("{} from each node{over}", doors.join(" and ")),
            ]);
        }
        self.rows
    }

    fn fabrics(&mut self) {
        // Links between two GPUs, by how fast they are.
        let mut by_rate: Vec<(Edge, Vec<String>)> = Vec::new();
        for fabric in &self.parts.fabrics {
            let gpus = self.gpus(&fabric.gpus);
            match &fabric.shape {
                Shape::Switched { hubs, edge, spans } => {
                    let shared =
                        if *spans > 1 { format!(", shared by {spans} nodes") } else { String::new() };
                    self.rows.push([
                        words::names_of(self.parts, hubs),
                        words::kind_and_rate(edge),
                        gpus + &shared,
                    ]);
                }
                Shape::EveryPair(edge) => {
                    self.rows.push(["each with each".to_owned(), words::kind_and_rate(edge), gpus]);
                }
                Shape::Links(links) => {
                    for (from, to, edge) in links {
                        let pair = format!("{from}-{to}");
                        match by_rate.iter_mut().find(|(known, _)| known == edge) {
                            Some((_, pairs)) => pairs.push(pair),
                            None => by_rate.push((*edge, vec![pair])),
                        }
                    }
                }
            }
        }
        for (edge, pairs) in by_rate {
            let more = pairs.len().saturating_sub(MOST_LINKS);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let shown: Vec<&str> = pairs.iter().take(MOST_LINKS).map(String::as_str).collect();
            let pairs = format!("{}{more}", shown.join("  "));
            self.rows.push(["between GPUs".to_owned(), words::kind_and_rate(&edge), pairs]);
        }
    }

    /// GPUs by name, with their ranks.
    fn gpus(&self, gpus: &[usize]) -> String {
        let names = words::names_of(self.parts, gpus);
        let Some(overlay) = self.overlay.filter(|_| self.machine.nodes() == 1) else { return names };
        let ranks: Vec<u32> = gpus.iter().filter_map(|&gpu| overlay.rank(gpu)).collect();
        match ranks.as_slice() {
            [] => format!("{names} (no rank)"),
            [one] => format!("{names} (rank {one})"),
            _ => format!("{names} (ranks {})", runs(&ranks)),
        }
    }

    /// Siblings in a row that are alike.
    fn alike(&self, hubs: &[usize]) -> Vec<Vec<usize>> {
        let runs = hubs.chunk_by(|&a, &b| self.likeness(a) == self.likeness(b));
        runs.map(<[usize]>::to_vec).collect()
    }

    /// All that makes a hub differ from others but names.
    fn likeness(&self, hub: usize) -> String {
        let of_thing = |at: usize| {
            let edges = self.parts.plug[at].as_ref().map(|plug| plug.edges.clone());
            let door = self.parts.doors.iter().find(|(door, _)| *door == at).map(|(_, edge)| *edge);
            format!("{:?} {edges:?} {door:?}", self.parts.things[at].kind)
        };
        let below: Vec<String> = self.parts.plugged[hub]
            .iter()
            .map(|&at| if self.parts.plugged[at].is_empty() { of_thing(at) } else { self.likeness(at) })
            .collect();
        format!("{} [{}]", of_thing(hub), below.join(", "))
    }

    /// Hubs that are alike, and what is on them; `mark` stands before their name, `under` before the names of what is on them.
    fn hubs(&mut self, group: &[usize], mark: &str, under: &str) {
        let plugged: Vec<usize> = group.iter().flat_map(|&hub| self.parts.plugged[hub].clone()).collect();
        let gpus: Vec<usize> = plugged.iter().copied().filter(|&at| at < self.parts.gpus).collect();
        let nics: Vec<usize> =
            plugged.iter().copied().filter(|&at| self.parts.things[at].kind == VertexKind::Nic).collect();
        let hubs: Vec<usize> = group.iter().flat_map(|&hub| self.parts.hubs_on(hub)).collect();
        let mut what = Vec::new();
        if !gpus.is_empty() {
            what.push(self.gpus(&gpus));
        }
        if !nics.is_empty() {
            what.push(words::names_of(self.parts, &nics));
        }
        let each = |count: usize| count / group.len();
        let dealt = match (group.len(), each(gpus.len()), each(nics.len())) {
            (1, _, _) | (_, 0, 0) => String::new(),
            (_, gpus, 0) => format!(": {} each", count(gpus as u64, "GPU")),
            (_, 0, nics) => format!(": {} each", count(nics as u64, "NIC")),
            (_, gpus, nics) => {
                format!(": {} and {} each", count(gpus as u64, "GPU"), count(nics as u64, "NIC"))
            }
        };
        let numa: Vec<u32> = group.iter().filter_map(|&hub| self.parts.things[hub].numa).collect();
        let numa = if numa.is_empty() { String::new() } else { format!(" (NUMA {})", runs(&numa)) };
        let name = format!("{mark}{}{numa}", words::names_of(self.parts, group));
        self.rows.push([name, self.links(group[0]), what.join(", ") + &dealt]);
        let on_it = self.alike(&hubs);
        for (at, inner) in on_it.iter().enumerate() {
            let is_last = at + 1 == on_it.len();
            let (mark, deeper) = if is_last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            self.hubs(inner, &format!("{under}{mark}"), &format!("{under}{deeper}"));
        }
    }

    /// How GPUs and cards are plugged into a hub, and it into the next.
    fn links(&self, hub: usize) -> String {
        let of = |wanted: &dyn Fn(usize) -> bool| {
            let mut links: Vec<String> = Vec::new();
            for &at in self.parts.plugged[hub].iter().filter(|&&at| wanted(at)) {
                for words in self.parts.plug[at].iter().flat_map(|plug| &plug.edges).map(words::kind_and_rate)
                {
                    if !links.contains(&words) {
                        links.push(words);
                    }
                }
            }
            links
        };
        let mut links = of(&|at| at < self.parts.gpus);
        let nics = of(&|at| self.parts.things[at].kind == VertexKind::Nic);
        let up: Vec<String> =
            self.parts.plug[hub].iter().flat_map(|plug| &plug.edges).map(words::kind_and_rate).collect();
        let own = links.clone();
        for (name, others) in [("NICs ", nics), ("up ", up)] {
            match links.is_empty() {
                true => links = others,
                false if own == others => {}
                false => links.extend(others.iter().map(|link| format!("{name}{link}"))),
            }
        }
        links.join(", ")
    }

    fn sockets(&mut self) {
        if let Some(edge) = self.parts.sockets_alike() {
            let mut linked: Vec<usize> = self.parts.sockets.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
            linked.sort_unstable();
            linked.dedup();
            let names = words::names_of(self.parts, &linked);
            self.rows.push([names, words::kind_and_rate(&edge), "each with each".to_owned()]);
            return;
        }
        for &(a, b, edge) in &self.parts.sockets {
            let names = format!("{} ═ {}", self.parts.things[a].name, self.parts.things[b].name);
            self.rows.push([names, words::kind_and_rate(&edge), String::new()]);
        }
    }
}

fn print_pairs(machine: &Topology, out: &mut dyn Write) -> Result<(), Failure> {
    let per_node = machine.gpus_per_node();
    let pairs = || (0..per_node).flat_map(|from| (from + 1..per_node).map(move |to| (from, to)));
    let mut widths: Vec<(u64, EdgeKind)> = pairs()
        .filter_map(|(from, to)| machine.widest_path(from, to))
        .map(|path| (path.bytes_per_second, path.kind))
        .collect();
    widths.sort_unstable();
    widths.dedup();
    match widths.as_slice() {
        [] => {}
        [(width, kind)] => {
            let which = if per_node == 2 { "both GPUs" } else { "any two GPUs of a node" };
            writeln!(out, "\n{which}: {} over {kind}", words::rate(*width))?;
        }
        _ if per_node <= MOST_IN_MATRIX => {
            writeln!(out, "\nwidest path between the GPUs of a node, GB/s")?;
            let head: String = (0..per_node).map(|to| format!("{:>8}", format!("gpu{to}"))).collect();
            writeln!(out, "{:<6}{head}", "")?;
            for from in 0..per_node {
                let width = |to| {
                    machine
                        .widest_path(from, to)
                        .map_or("-".to_owned(), |path| words::gb_per_second(path.bytes_per_second))
                };
                let row: String = (0..per_node).map(|to| format!("{:>8}", width(to))).collect();
                writeln!(out, "{:<6}{row}", format!("gpu{from}"))?;
            }
        }
        [(least, slow), .., (most, fast)] => {
            writeln!(
                out,
                "\ntwo GPUs of a node: from {} over {slow} to {} over {fast}",
                words::rate(*least),
                words::rate(*most)
            )?;
        }
    }
    if let Some(path) = (machine.nodes() > 1).then(|| machine.widest_path(0, per_node)).flatten() {
        writeln!(
            out,
            "GPUs of neighbouring nodes: {} over {}",
            words::rate(path.bytes_per_second),
            path.kind
        )?;
    }
    Ok(())
}

fn print_domains(machine: &Topology, out: &mut dyn Write) -> Result<(), Failure> {
    let domains = machine.fabric_domains();
    if domains.is_empty() {
        writeln!(out, "no GPUs are joined over NVLink or xGMI")?;
        return Ok(());
    }
    let name = |domain: &Vec<usize>| {
        let per_node = machine.gpus_per_node();
        let nodes: Vec<u32> = domain
            .chunk_by(|a, b| a / per_node == b / per_node)
            .map(|of_node| machine.gpus()[of_node[0]].node)
            .collect();
        match nodes.as_slice() {
            [_] => machine.names_of(domain),
            several => format!("the {} GPUs of node{}", domain.len(), runs(several)),
        }
    };
    let shown: Vec<String> = domains.iter().take(MOST_DOMAINS).map(name).collect();
    let more = domains.len().saturating_sub(MOST_DOMAINS);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    for line in wrapped(&format!("joined over NVLink or xGMI: {}{more}", shown.join("; "))) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn print_groups(machine: &Topology, overlay: &Overlay, out: &mut dyn Write) -> Result<(), Failure> {
    let mesh = overlay.mesh();
    writeln!(
        out,
        "\nranks of the plan: tp {} × pp {} × dp {} = {}",
        mesh.tp(),
        mesh.pp(),
        mesh.dp(),
        mesh.world_size()
    )?;
    let groups = overlay.groups() as usize;
    let rows = (0..overlay.groups()).take(MOST_GROUPS).map(|group| {
        let (place, gpus) = (overlay.place(group), overlay.gpus(group));
        let ring =
            machine.ring(&gpus).map_or("-".to_owned(), |ring| words::gb_per_second(ring.bytes_per_second));
        let ranks: Vec<u32> = overlay.ranks(group).collect();
        [
            runs(&ranks),
            in_order(machine, &gpus),
            group.to_string(),
            place.pp.to_string(),
            place.dp.to_string(),
            ring,
        ]
    });
    let head = ["ranks", "on GPUs", "tp group", "stage", "copy", "ring GB/s"];
    print_table(out, &table(head, 2, rows))?;
    if groups > MOST_GROUPS {
        writeln!(out, "and {} more groups", groups - MOST_GROUPS)?;
    }
    Ok(())
}

/// GPUs in the order given: `gpu0-3`, or `gpu0,2,1,3`.
fn in_order(machine: &Topology, gpus: &[usize]) -> String {
    if gpus.is_sorted() {
        return machine.names_of(gpus);
    }
    let name = |gpu: &usize| machine.gpus()[*gpu].name.clone();
    let shown: Vec<String> = gpus.iter().take(MOST_IN_MATRIX).map(name).collect();
    let more = gpus.len().saturating_sub(MOST_IN_MATRIX);
    shown.join(" ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// How well all reach each other at once; the answer last.
fn print_figures(machine: &Topology, out: &mut dyn Write) -> Result<(), Failure> {
    let (per_node, all) = (machine.gpus_per_node(), machine.gpus().len());
    let places: Vec<usize> = (0..all).collect();
    let mut sets =
        vec![(format!("the {} of a node", count(per_node as u64, "GPU")), places[..per_node].to_vec())];
    let domain = machine.fabric_domains().into_iter().next().unwrap_or_default();
    if domain.len() > per_node && domain.len() < all {
        sets.push((format!("the {} of an NVLink domain", count(domain.len() as u64, "GPU")), domain));
    }
    if all > per_node {
        sets.push((format!("all {}", count(all as u64, "GPU")), places));
    }
    let rings: Vec<_> = sets
        .into_iter()
        .filter_map(|(name, gpus)| Some((name, machine.ring(&gpus)?, machine.bisection(&gpus)?)))
        .collect();
    let Some((name, ring, _)) = rings.last() else {
        writeln!(out, "\none GPU alone")?;
        return Ok(());
    };
    writeln!(out, "\nall at once")?;
    let rows = rings.iter().map(|(name, ring, halves)| {
        [
            name.clone(),
            ring.kind.to_string(),
            words::gb_per_second(ring.bytes_per_second),
            words::gb_per_second(halves.bytes_per_second),
            words::microseconds(ring.hop_latency_ns),
        ]
    });
    print_table(
        out,
        &table(["", "narrowest", "ring GB/s", "between halves GB/s", "longest hop us"], 2, rows),
    )?;
    writeln!(
        out,
        "{name} at once: {} in a ring, limited by {}",
        words::rate(ring.bytes_per_second),
        ring.kind
    )?;
    Ok(())
}
