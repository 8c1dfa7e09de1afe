//! Folders that look like sysfs, and some that look like nothing.

use super::*;
use proptest::prelude::*;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

const CARD: &str = "pci0000:00/0000:00:01.0/0000:01:00.0";

/// A folder in which `devices/` and `bus/pci/devices/` are made as they are asked for.
struct Fake(TempDir);

impl Fake {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir_all(folder.path().join("bus/pci/devices")).unwrap();
        Self(folder)
    }

    /// Writes files of the device at `chain` below `devices/`, and links it.
    fn device(&self, chain: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.0.path().join("devices").join(chain);
        fs::create_dir_all(&folder).unwrap();
        for (name, text) in files {
            let file = folder.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        self.link(chain.rsplit('/').next().unwrap(), &format!("../../../devices/{chain}"));
        folder
    }

    fn link(&self, name: &str, target: &str) {
        symlink(target, self.0.path().join("bus/pci/devices").join(name)).unwrap();
    }

    fn open(&self) -> Sysfs {
        Sysfs::open(self.0.path()).unwrap()
    }

    /// The ports of every card, with MB/s.
    fn ports(&self) -> Vec<(String, Option<u64>)> {
        let sysfs = self.open();
        let cards: Vec<PciDevice> = sysfs.network_cards().map(|(_, _, device)| device).collect();
        let ports = cards.into_iter().flat_map(|card| card.ports);
        ports.map(|port| (port.name, port.bytes_per_second.map(|speed| speed / 1_000_000))).collect()
    }
}

fn at(address: &str) -> Address {
    Address::parse(address).unwrap()
}

fn port(name: &str, megabytes: u64) -> (String, Option<u64>) {
    (name.to_owned(), Some(megabytes))
}

#[test]
fn a_device_has_the_bridges_that_its_folder_is_in() {
    let fake = Fake::new();
    fake.device("pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0", &[]);
    let sysfs = fake.open();
    let place = sysfs.place(at("10000:e1:00.0")).unwrap();
    let bridges: Vec<String> = place.bridges.iter().map(|bridge| bridge.0.to_string()).collect();
    assert_eq!(bridges, ["0000:00:0e.0", "10000:e0:06.0"]);
    assert!(place.bridges[1].1.ends_with("pci10000:e0/10000:e0:06.0"));
    assert_eq!(sysfs.place(at("0000:00:0e.0")), None);
}

#[test]
fn what_is_written_of_a_device_is_read() {
    let fake = Fake::new();
    let files = [
        ("class", "0x030200\n"),
        ("vendor", "0x10de\n"),
        ("device", "0x2330\n"),
        ("numa_node", "1\n"),
        ("max_link_speed", "32.0 GT/s PCIe\n"),
        ("max_link_width", "16\n"),
        ("current_link_speed", "2.5 GT/s PCIe\n"),
        ("current_link_width", "8\n"),
    ];
    let folder = fake.device(CARD, &files);
    let sysfs = fake.open();
    let path = &sysfs.place(at("0000:01:00.0")).unwrap().path;
    let facts = Facts {
        class: Some(0x03_02_00),
        id: Some("10de:2330".to_owned()),
        numa: Some(1),
        bytes_per_second: pcie::of_generation(5, 8),
    };
    assert_eq!(sysfs.facts(path), facts);

    for (name, text) in
        [("numa_node", "-1\n"), ("max_link_speed", "Unknown\n"), ("vendor", "10de"), ("class", "")]
    {
        fs::write(folder.join(name), text).unwrap();
    }
    assert_eq!(sysfs.facts(path), Facts::default());
}

#[test]
fn links_that_lead_elsewhere_are_ignored() {
    let outside = Fake::new();
    let elsewhere = outside.device(CARD, &[("class", "0x020000")]);
    fs::create_dir_all(outside.0.path().join("infiniband/mlx5_0/ports/1")).unwrap();
    let fake = Fake::new();
    fake.link("0000:01:00.0", elsewhere.to_str().unwrap());
    fake.link("0000:02:00.0", "../../../devices/nothing");
    fake.link("0000:03:00.0", "0000:03:00.0");
    let own = fake.device("pci0000:00/0000:00:04.0", &[("class", "0x020700")]);
    fake.link("0000:05:00.0", "0000:00:04.0");
    fs::write(fake.0.path().join("bus/pci/devices/0000:06:00.0"), "no link").unwrap();
    symlink(elsewhere.join("class"), own.join("vendor")).unwrap();
    symlink(outside.0.path().join("infiniband"), own.join("infiniband")).unwrap();
    let sysfs = fake.open();
    assert_eq!(sysfs.places.keys().copied().collect::<Vec<_>>(), [at("0000:00:04.0")]);
    assert_eq!(sysfs.facts(&own.canonicalize().unwrap()).id, None);
    assert_eq!(fake.ports(), []);
}

#[test]
fn infiniband_ports_are_listed_at_any_speed_and_numbered_where_there_are_several() {
    let fake = Fake::new();
    fake.device(
        CARD,
        &[
            ("class", "0x020700"),
            ("infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)\n"),
            ("infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
            ("net/ib0/speed", "400000\n"),
        ],
    );
    fake.device(
        "pci0000:00/0000:00:02.0",
        &[
            ("class", "0x020700"),
            ("infiniband/mlx4_0/ports/1/rate", "2.5 Gb/sec (1X SDR)\n"),
            ("infiniband/mlx4_0/ports/2/rate", "10 Gb/sec (4X SDR)\n"),
            ("infiniband/mlx4_0/ports/2/state", "1: DOWN\n"),
        ],
    );
    let down = ("mlx4_0:2".to_owned(), None);
    assert_eq!(fake.ports(), [port("mlx4_0:1", 312), down, port("mlx5_0", 50_000)]);
}

#[test]
fn ethernet_is_listed_where_it_is_fast_or_can_do_rdma() {
    let fake = Fake::new();
    let ethernet = |number: u32, files: &[(&str, &str)]| {
        fake.device(&format!("pci0000:00/0000:00:0{number}.0"), &[&[("class", "0x020000")], files].concat());
    };
    ethernet(1, &[("net/eth1/speed", "10000\n")]);
    ethernet(2, &[("net/eth2/speed", "25000\n")]);
    ethernet(3, &[("net/eth3/speed", "-1\n")]);
    ethernet(4, &[("net/eth4/speed", "100000\n"), ("physfn/class", "")]);
    ethernet(
        5,
        &[("infiniband/rocep5s0/ports/1/rate", "100 Gb/sec (4X EDR)\n"), ("net/eth5/speed", "100000\n")],
    );
    ethernet(
        6,
        &[("infiniband/rocep6s0/ports/1/rate", "10 Gb/sec (1X QDR)\n"), ("net/eth6/speed", "10000\n")],
    );
    ethernet(7, &[("infiniband/rocep7s0/ports/1/state", "1: DOWN\n")]);
    fake.device("pci0000:00/0000:00:08.0", &[("class", "0x030200"), ("net/eth8/speed", "100000\n")]);
    let unknown = ("rocep7s0".to_owned(), None);
    assert_eq!(fake.ports(), [port("eth2", 3125), port("rocep5s0", 12_500), unknown]);
}

#[test]
fn only_the_beginning_of_a_regular_file_is_read() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x".repeat(1 << 20)).unwrap();
    assert_eq!(beginning(&file).unwrap().len(), 64 << 10);
    fs::write(&file, [b'a', 0xff]).unwrap();
    assert_eq!(beginning(&file).unwrap(), "a\u{fffd}");
    assert_eq!(beginning(folder.path()), None);
    assert_eq!(beginning(Path::new("/dev/zero")), None);
}

#[test]
fn deeper_than_any_machine_is_not_looked_at() {
    let fake = Fake::new();
    let bridges: Vec<String> = (0..33).map(|number| format!("0000:{number:02x}:00.0")).collect();
    fake.device(&format!("{}/0000:ff:00.0", bridges.join("/")), &[]);
    fake.device(&format!("{}/0000:fe:00.0", bridges[1..].join("/")), &[]);
    let sysfs = fake.open();
    assert_eq!(sysfs.places.keys().copied().collect::<Vec<_>>(), [at("0000:fe:00.0")]);
}

#[test]
fn a_folder_without_pci_devices_is_no_sysfs() {
    let folder = TempDir::new().unwrap();
    assert!(Sysfs::open(folder.path()).is_err());
    assert!(Sysfs::open(&folder.path().join("nowhere")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_content_panics(
        chain in proptest::collection::vec("(0000:0[0-3]:0[0-3]\\.[01]|pci0000:00|[a-z]{1,4})", 1..5),
        contents in proptest::collection::vec(
            "(0x[0-9a-f]{0,12}|0x020[07]00|-?[0-9]{0,24}|[0-9]{0,22}\\.?[0-9]{0,4} G(T/s|b/sec).{0,8}|4: ACTIVE|.{0,16})\n?", 11),
        raw in proptest::collection::vec(any::<u8>(), 0..32),
    ) {
        let names = [
            "class", "vendor", "device", "numa_node", "max_link_speed", "max_link_width", "current_link_width",
            "infiniband/a/ports/1/rate", "infiniband/a/ports/1/state", "infiniband/b/ports/x/rate", "net/c/speed",
        ];
        let fake = Fake::new();
        let chain = format!("{}/0000:01:00.0", chain.join("/"));
        let files: Vec<(&str, &str)> = names.into_iter().zip(contents.iter().map(String::as_str)).collect();
        let folder = fake.device(&chain, &files);
        for raw_too in [false, true] {
            if raw_too {
                fs::write(folder.join("max_link_speed"), &raw).unwrap();
                fs::write(folder.join("net/c/speed"), &raw).unwrap();
            }
            let sysfs = fake.open();
            let place = sysfs.place(at("0000:01:00.0")).unwrap();
            let mut slots = crate::detect::slots::Slots::default();
            slots.plug(sysfs.bridges(place), (place.address, sysfs.facts(&place.path)), PciDevice::default());
            for (place, facts, device) in sysfs.network_cards() {
                slots.plug(sysfs.bridges(place), (place.address, facts), device);
            }
            prop_assert_eq!(slots.into_cpus(&Default::default()).len(), 1);
        }
    }
}
