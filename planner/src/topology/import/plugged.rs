//! What GPUs and network cards are plugged into, as trees; and how they are written into a topology.
//!
//! Things that are alike and stand in a row are written as one: `pcie0-3` on `cpu0-1`.

use crate::topology::{
    Bandwidth, EdgeKind, HubKind,
    names::{Names, Numbers, dealt},
    schema::{Document, Hub, Link, Network, Nic},
};
use std::collections::{BTreeSet, VecDeque};

/// A hub and all that is plugged into it.
#[derive(Debug, Clone)]
pub(super) struct Plugged {
    pub(super) kind: HubKind,
    pub(super) numa: Option<u32>,
    /// Bytes per second to the hub above.
    pub(super) uplink: u64,
    /// GPUs by number, and the bytes per second of their slots.
    pub(super) gpus: Vec<(u32, u64)>,
    pub(super) cards: Vec<Card>,
    pub(super) below: Vec<Plugged>,
}

/// A network card.
#[derive(Debug, Clone)]
pub(super) struct Card {
    /// As the source calls it; empty if it does not.
    pub(super) name: String,
    /// Bytes per second of its ports.
    pub(super) bandwidth: u64,
    /// Bytes per second of its slot, where they are known.
    pub(super) slot: Option<u64>,
}

impl Plugged {
    pub(super) fn new(kind: HubKind, uplink: u64) -> Self {
        Self { kind, numa: None, uplink, gpus: Vec::new(), cards: Vec::new(), below: Vec::new() }
    }

    /// How many things are plugged into this hub itself.
    pub(super) fn things(&self) -> usize {
        self.gpus.len() + self.cards.len() + self.below.len()
    }
}

/// A hub or a network card that has its name.
struct Named<T> {
    name: String,
    on: Option<String>,
    what: T,
}

/// Writes the hubs, cards and the links between `roots`, the CPUs, each of so many bytes per second; and `network` between
/// nodes if there are cards.
pub(super) fn write(roots: Vec<Plugged>, socket: u64, network: &str, document: &mut Document) {
    let (hubs, cards) = named(roots);
    let roots: Vec<String> = hubs.iter().filter(|hub| hub.on.is_none()).map(|hub| hub.name.clone()).collect();
    for alike in in_rows(&hubs, hubs_alike) {
        write_hubs(alike, document);
    }
    for alike in in_rows(&cards, |a, b| (a.bandwidth, a.slot) == (b.bandwidth, b.slot)) {
        let card = &alike[0].what;
        let on = alike.iter().filter_map(|card| card.on.as_deref());
        if let (Some(name), Some(on)) = (row(alike.iter().map(|card| card.name.as_str())), dealt_row(on)) {
            let pcie = card.slot.filter(|slot| *slot != card.bandwidth).map(Bandwidth::new);
            document.nics.push(Nic { name, on, bandwidth: Bandwidth::new(card.bandwidth), pcie });
        }
    }
    if let (2.., Some(among)) = (roots.len(), row(roots.iter().map(String::as_str))) {
        document.links.push(link(EdgeKind::Socket, None, Some(among), 1, socket));
    }
    if !document.nics.is_empty() {
        document.network =
            Some(Network { kind: network.to_owned(), bandwidth: None, latency: None, via: Vec::new() });
    }
}

/// A link of `bytes` per second each, between two names or among several.
pub(super) fn link(
    kind: EdgeKind,
    between: Option<[&str; 2]>,
    among: Option<Names>,
    count: u32,
    bytes: u64,
) -> Link {
    let between = between.map(|ends| ends.map(Names::from));
    Link { kind, between, among, count, bandwidth: Bandwidth::new(bytes), latency: None }
}

/// All hubs and cards, level by level from the CPUs.
fn named(roots: Vec<Plugged>) -> (Vec<Named<Plugged>>, Vec<Named<Card>>) {
    let (mut hubs, mut cards) = (Vec::new(), Vec::new());
    let mut numbers = [0usize; 3];
    let mut used = BTreeSet::new();
    let mut waiting: VecDeque<(Option<String>, Plugged)> =
        roots.into_iter().map(|root| (None, root)).collect();
    while let Some((on, mut hub)) = waiting.pop_front() {
        let (prefix, number) = match (hub.kind, on.is_some()) {
            (_, false) => ("cpu", &mut numbers[0]),
            (HubKind::PcieSwitch, _) => ("pcie", &mut numbers[1]),
            _ => ("bridge", &mut numbers[2]),
        };
        let name = format!("{prefix}{number}");
        *number += 1;
        waiting.extend(std::mem::take(&mut hub.below).into_iter().map(|below| (Some(name.clone()), below)));
        for card in std::mem::take(&mut hub.cards) {
            let card_name = card_name(&card.name, &used, cards.len());
            used.insert(card_name.clone());
            cards.push(Named { name: card_name, on: Some(name.clone()), what: card });
        }
        hubs.push(Named { name, on, what: hub });
    }
    (hubs, cards)
}

/// The name that a card gets: its own, unless it is none for a topology file, or another thing's.
fn card_name(own: &str, used: &BTreeSet<String>, number: usize) -> String {
    let stem = own.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let is_single = || own.parse::<Names>().is_ok_and(|names| names.len() == 1);
    let is_taken = ["gpu", "cpu", "pcie", "bridge", "network", "nvswitch"].contains(&stem);
    if !is_taken && is_single() && !used.contains(own) {
        return own.to_owned();
    }
    let mut names = (number..).map(|number| format!("nic{number}")).filter(|name| !used.contains(name));
    names.next().unwrap_or_default()
}

fn hubs_alike(a: &Plugged, b: &Plugged) -> bool {
    let numa = match (a.numa, b.numa) {
        (None, None) => true,
        (Some(a), Some(b)) => a < b,
        _ => false,
    };
    let gpus = a.gpus.len() == b.gpus.len()
        && a.gpus.iter().chain(&b.gpus).is_sorted_by(|(a, _), (b, _)| a < b)
        && a.gpus.iter().chain(&b.gpus).all(|(_, slot)| *slot == a.gpus[0].1);
    numa && gpus && a.kind == b.kind && a.uplink == b.uplink
}

fn write_hubs(alike: &[Named<Plugged>], document: &mut Document) {
    let first = &alike[0].what;
    let on: Vec<&str> = alike.iter().filter_map(|hub| hub.on.as_deref()).collect();
    // Of unlike slots the most frequent is the hub's own, and of these the widest.
    let slots = || alike.iter().flat_map(|hub| hub.what.gpus.iter().map(|(_, slot)| *slot));
    let usual = slots().max_by_key(|slot| (slots().filter(|other| other == slot).count(), *slot));
    let mut gpus: Vec<u32> = Vec::new();
    for hub in alike {
        for (gpu, slot) in &hub.what.gpus {
            if Some(*slot) == usual {
                gpus.push(*gpu);
            } else {
                let ends = [format!("gpu{gpu}"), hub.name.clone()];
                let ends = ends.each_ref().map(String::as_str);
                document.links.push(link(EdgeKind::Pcie, Some(ends), None, 1, *slot));
            }
        }
    }
    gpus.sort_unstable();
    let Some(name) = row(alike.iter().map(|hub| hub.name.as_str())) else { return };
    let numa: Option<Vec<u32>> = alike.iter().map(|hub| hub.what.numa).collect();
    let uplink = (!on.is_empty() && usual != Some(first.uplink)).then(|| Bandwidth::new(first.uplink));
    document.hubs.push(Hub {
        name,
        gpus: Numbers::new(gpus),
        bandwidth: usual.map(Bandwidth::new),
        on: dealt_row(on.into_iter()),
        uplink,
        numa: numa.and_then(Numbers::new),
        ..Hub::new("", first.kind)
    });
}

/// Splits things into rows that can be written as one: alike, with names in a row, and dealt evenly to what they are on.
fn in_rows<T>(things: &[Named<T>], alike: impl Fn(&T, &T) -> bool) -> Vec<&[Named<T>]> {
    let rows = things.chunk_by(|a, b| {
        a.on.is_some() == b.on.is_some()
            && alike(&a.what, &b.what)
            && row([a.name.as_str(), &b.name].into_iter()).is_some()
    });
    let is_dealt = |row: &[Named<T>]| {
        row[0].on.is_none() || dealt_row(row.iter().filter_map(|thing| thing.on.as_deref())).is_some()
    };
    rows.flat_map(|row| match is_dealt(row) {
        true => vec![row],
        false => row.chunk_by(|a, b| a.on == b.on).collect(),
    })
    .collect()
}

/// One name, or names in a row as one text: `pcie0-3`.
pub(super) fn row<'a>(names: impl Iterator<Item = &'a str>) -> Option<Names> {
    let names: Vec<&str> = names.collect();
    let (first, last) = (names.first()?, names.last()?);
    if names.len() == 1 {
        return Some(Names::from(*first));
    }
    let number = &last[last.trim_end_matches(|letter: char| letter.is_ascii_digit()).len()..];
    let text = format!("{first}-{number}");
    text.parse::<Names>().ok().filter(|row| row.iter().eq(names.iter().copied()))
}

/// What things are on, one for each of them, as one text; if that is how the things would be dealt to it.
fn dealt_row<'a>(on: impl Iterator<Item = &'a str>) -> Option<Names> {
    let on: Vec<&str> = on.collect();
    let mut hubs = on.clone();
    hubs.dedup();
    let row = row(hubs.iter().copied())?;
    let dealt = dealt(on.len(), hubs.len()).filter(|dealt| dealt.len() == on.len())?;
    dealt.iter().all(|&(thing, hub)| on[thing] == hubs[hub]).then_some(row)
}
