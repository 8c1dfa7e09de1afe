//! `topology detect` end to end: the binary as it is, a simulated NVML in the place of the driver's library
//! (`tests/simnvml/`), and a folder in the place of sysfs. No GPU has a part in this.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::OnceLock,
};
use support::{Outcome, command, finish, simulated, text};
use tempfile::TempDir;

/// Names that the driver's library is looked for under.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// Some of `nvmlReturn_t`.
const NOT_SUPPORTED: u32 = 3;
const NO_PERMISSION: u32 = 4;
const DRIVER_NOT_LOADED: u32 = 9;
const GPU_IS_LOST: u32 = 15;
const UNKNOWN: u32 = 999;

/// Some of `nvmlIntNvLinkDeviceType_t`.
const TO_GPU: u32 = 0;
const TO_SWITCH: u32 = 2;
const TO_UNKNOWN: u32 = 255;

const XEON: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R)\n";

/// The simulated library.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| simulated::built("simnvml"))
}

/// A machine: NVML's answers, and a folder that looks like its sysfs.
struct Machine {
    folder: TempDir,
    answers: Value,
}

impl Machine {
    fn new(gpus: &[Value]) -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir_all(folder.path().join("sys/bus/pci/devices")).unwrap();
        fs::create_dir(folder.path().join("lib")).unwrap();
        fs::copy(library(), folder.path().join("lib").join(LIBRARIES[0])).unwrap();
        fs::write(folder.path().join("cpuinfo"), XEON).unwrap();
        Self { folder, answers: json!({ "gpus": gpus }) }
    }

    /// Adds the device or bridge at the end of `chain`, with these files.
    fn device(&self, chain: &str, numa: u32, files: &[(&str, &str)]) {
        let sys = self.folder.path().join("sys");
        let folder = sys.join("devices").join(chain);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("numa_node"), numa.to_string()).unwrap();
        fs::write(folder.join("max_link_speed"), "32.0 GT/s PCIe\n").unwrap();
        fs::write(folder.join("max_link_width"), "16\n").unwrap();
        for (name, text) in files {
            let file = folder.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        let name = chain.rsplit('/').next().unwrap();
        symlink(format!("../../../devices/{chain}"), sys.join("bus/pci/devices").join(name)).unwrap();
    }

    fn bridge(&self, chain: &str, numa: u32) {
        self.device(chain, numa, &[("class", "0x060400\n")]);
    }

    fn gpu(&self, chain: &str, numa: u32) {
        self.device(chain, numa, &[("class", "0x030200\n"), ("vendor", "0x10de\n")]);
    }

    fn infiniband(&self, chain: &str, numa: u32, name: &str) {
        let rate = format!("infiniband/{name}/ports/1/rate");
        let state = format!("infiniband/{name}/ports/1/state");
        self.device(
            chain,
            numa,
            &[
                ("class", "0x020700\n"),
                ("vendor", "0x15b3\n"),
                ("device", "0x1021\n"),
                (&rate, "400 Gb/sec (4X NDR)\n"),
                (&state, "4: ACTIVE\n"),
            ],
        );
    }

    fn detect(&self, args: &[&str]) -> Outcome {
        let path = |name| self.folder.path().join(name);
        fs::write(path("answers.json"), self.answers.to_string()).unwrap();
        let (sysfs, cpuinfo) = (path("sys"), path("cpuinfo"));
        let usual = ["topology", "detect", "--sysfs", text(&sysfs), "--cpuinfo", text(&cpuinfo)];
        let mut command = command(&[&usual, args].concat());
        command.env("LD_LIBRARY_PATH", path("lib")).env("SIMNVML", path("answers.json"));
        finish(command.spawn().unwrap())
    }

    /// The tree that was found and the notes beside it.
    fn tree_and_notes(&self) -> (String, String) {
        let outcome = self.detect(&["--tree"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        (outcome.stdout, outcome.stderr)
    }

    /// The tree that was found, with nothing to note.
    fn tree(&self) -> String {
        self.detect(&["--tree"]).succeeded()
    }
}

/// NVML's answers for an H100 with `links` to what each names.
fn h100(bus: &str, links: &[(&str, u32)]) -> Value {
    let links: Vec<Value> = links.iter().map(|(to, kind)| json!({ "to": to, "kind": kind })).collect();
    json!({
        "name": "NVIDIA H100 80GB HBM3",
        "memory_bytes": 85_520_809_984_u64,
        "bus_id": format!("00000000:{bus}:00.0"),
        "pci_device_id": 0x2330_10de,
        "capability": [9, 0],
        "pcie_generation": 5,
        "pcie_width": 16,
        "links": links,
    })
}

/// NVML's answers for an A40 with four links to the GPU on the bus `to`, through a bridge on top of both.
fn a40(bus: &str, to: &str) -> Value {
    let to = format!("00000000:{to}:00.0");
    json!({
        "name": "NVIDIA A40",
        "memory_bytes": 48_305_799_168_u64,
        "bus_id": format!("00000000:{bus}:00.0"),
        "pci_device_id": 0x2235_10de,
        "capability": [8, 6],
        "pcie_generation": 4,
        "pcie_width": 16,
        "links": vec![json!({ "to": to, "kind": TO_GPU }); 4],
    })
}

/// Eight H100 on two sockets; each shares a PCIe switch with a network card, and has 18 links to four NVSwitches.
fn nvswitch_box() -> Machine {
    let switches: Vec<String> = (0..4).map(|number| format!("00000000:0{}:00.0", number + 2)).collect();
    let links: Vec<(&str, u32)> =
        (0..18).map(|link| (switches[link % switches.len()].as_str(), TO_SWITCH)).collect();
    let buses = ["1b", "43", "52", "61", "9d", "c3", "d1", "df"];
    let gpus: Vec<Value> = buses.iter().map(|bus| h100(&bus.to_uppercase(), &links)).collect();
    let machine = Machine::new(&gpus);
    for (number, bus) in (0..).zip(buses) {
        let numa = number / 4;
        let root = u32::from_str_radix(bus, 16).unwrap();
        // Root port, the switch's upper port, its slots, and what is in them.
        let port = format!("pci0000:{:02x}/0000:{:02x}:01.0", root - 3, root - 3);
        let upper = format!("{port}/0000:{:02x}:00.0", root - 2);
        machine.bridge(&port, numa);
        machine.bridge(&upper, numa);
        for (slot, below) in [(0, root), (1, root - 4)] {
            let slot = format!("{upper}/0000:{:02x}:0{slot}.0", root - 1);
            machine.bridge(&slot, numa);
            if below == root {
                machine.gpu(&format!("{slot}/0000:{bus}:00.0"), numa);
            } else {
                machine.infiniband(&format!("{slot}/0000:{below:02x}:00.0"), numa, &format!("mlx5_{number}"));
            }
        }
    }
    machine
}

/// Four A40 on two root ports each of two sockets, with bridges between 0 and 2 and between 1 and 3.
fn bridged_box() -> Machine {
    let buses = ["17", "65", "98", "ca"];
    let gpus: Vec<Value> = (0..4).map(|gpu| a40(buses[gpu], buses[(gpu + 2) % 4])).collect();
    let machine = Machine::new(&gpus);
    for (number, bus) in (0..).zip(buses) {
        let numa = number / 2;
        let port = format!("pci0000:{bus}/0000:0{number}:01.0");
        machine.bridge(&port, numa);
        machine.gpu(&format!("{port}/0000:{bus}:00.0"), numa);
    }
    machine
}

#[test]
fn a_machine_with_nvswitches_is_found() {
    insta::assert_snapshot!(nvswitch_box().tree());
}

#[test]
fn a_machine_with_bridges_between_pairs_is_found() {
    insta::assert_snapshot!(bridged_box().tree());
}

#[test]
fn what_is_written_is_what_would_be_printed() {
    let machine = bridged_box();
    let file = machine.folder.path().join("machine.yaml");
    let (args, output) = (["--name", "two-sockets"], ["-o", text(&file)]);
    let printed = machine.detect(&args).stdout;
    assert!(printed.contains("two-sockets"), "{printed}");
    let told = machine.detect(&[args, output].concat()).stdout;
    assert_eq!(told, format!("topology written to {}\n", file.display()));
    assert_eq!(fs::read_to_string(&file).unwrap(), printed);
}

#[test]
fn without_a_library_the_host_is_offered() {
    let machine = Machine::new(&[]);
    // Whatever this machine has: these come first, and are no libraries.
    for name in LIBRARIES {
        fs::write(machine.folder.path().join("lib").join(name), "no library").unwrap();
    }
    let parts = ["no NVIDIA driver here", "libnvidia-ml.so.1", "help: without a GPU", "--topology host"];
    machine.detect(&[]).refused(4, &parts);
}

#[test]
fn the_library_is_found_under_its_other_name_too() {
    let machine = bridged_box();
    let folder = machine.folder.path().join("lib");
    fs::rename(folder.join(LIBRARIES[0]), folder.join(LIBRARIES[1])).unwrap();
    fs::write(folder.join(LIBRARIES[0]), "no library").unwrap();
    assert!(machine.tree().contains("GPU 3, NVIDIA A40"));
}

#[test]
fn without_a_driver_or_a_gpu_the_host_is_offered() {
    let mut machine = Machine::new(&[]);
    machine.detect(&[]).refused(4, &["finds no GPU here", "--topology host"]);
    machine.answers["faults"] = json!({ "nvmlInit_v2": DRIVER_NOT_LOADED });
    machine.detect(&[]).refused(4, &["the driver is not loaded", "--topology host"]);
}

#[test]
fn a_library_that_fails_is_named_with_the_call() {
    let mut machine = bridged_box();
    machine.answers["faults"] = json!({ "nvmlInit_v2": UNKNOWN });
    machine.detect(&[]).refused(4, &["nvmlInit failed: an internal driver error occurred", "help: "]);
    machine.answers["faults"] = json!({ "nvmlDeviceGetCount_v2": UNKNOWN });
    machine.detect(&[]).refused(4, &["nvmlDeviceGetCount failed"]);
}

#[test]
fn more_gpus_than_a_machine_has_are_not_believed() {
    let gpus: Vec<Value> = (0..129).map(|bus| h100(&format!("{bus:02X}"), &[])).collect();
    Machine::new(&gpus).detect(&[]).refused(4, &["129 GPUs", "128 are the most"]);
}

#[test]
fn what_a_gpu_does_not_tell_is_left_open() {
    let mut machine = bridged_box();
    for call in [
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMaxPcieLinkGeneration",
        "nvmlDeviceGetNvLinkState",
    ] {
        machine.answers["gpus"][1]["faults"][call] = json!(NOT_SUPPORTED);
    }
    let tree = machine.tree();
    assert!(tree.contains("0000:65:00.0, class 030200, 10de:2235, 63015 MB/s, GPU 1\n"), "{tree}");
    assert!(tree.contains("GPU 0, NVIDIA A40, 46068 MiB, sm 86, 4 NVLink to 0000:98:00.0\n"), "{tree}");
}

#[test]
fn a_gpu_that_fails_where_nothing_can_be_said_without_is_named_with_the_call() {
    for (call, code, parts) in [
        (
            "nvmlDeviceGetHandleByIndex_v2",
            GPU_IS_LOST,
            ["GPU 2: nvmlDeviceGetHandleByIndex failed", "fell off the bus"],
        ),
        ("nvmlDeviceGetPciInfo_v3", NOT_SUPPORTED, ["GPU 2: nvmlDeviceGetPciInfo failed", "not available"]),
        ("nvmlDeviceGetName", GPU_IS_LOST, ["GPU 2: nvmlDeviceGetName failed", "fell off the bus"]),
    ] {
        let mut machine = bridged_box();
        machine.answers["gpus"][2]["faults"][call] = json!(code);
        machine.detect(&[]).refused(4, &parts);
    }
}

#[test]
fn addresses_that_make_no_sense_are_refused() {
    let mut machine = bridged_box();
    machine.answers["gpus"][1]["bus_id"] = json!("\u{1b}[2J");
    machine.detect(&[]).refused(4, &["GPU 1", "\\u{1b}[2J", "is none"]);
    machine.answers["gpus"][1]["bus_id"] = machine.answers["gpus"][0]["bus_id"].clone();
    machine.detect(&[]).refused(4, &["GPU 1", "0000:17:00.0", "another GPU's"]);
}

#[test]
fn gpus_that_this_user_may_not_look_at_are_left_out_aloud() {
    let mut machine = bridged_box();
    let forbid = |machine: &mut Machine, gpu: usize| {
        machine.answers["gpus"][gpu]["faults"] = json!({ "nvmlDeviceGetHandleByIndex_v2": NO_PERMISSION });
    };
    forbid(&mut machine, 2);
    forbid(&mut machine, 3);
    let (tree, notes) = machine.tree_and_notes();
    assert!(tree.contains("GPU 1") && !tree.contains("GPU 2") && !tree.contains("NVLink"), "{tree}");
    assert!(notes.contains("note: GPU 2 is left out"), "{notes}");
    // A GPU that is hidden is not taken for an NVSwitch.
    assert!(
        notes.contains("note: GPU 0 has 4 NVLinks to 0000:98:00.0, which is no GPU that can be used"),
        "{notes}"
    );
    forbid(&mut machine, 0);
    forbid(&mut machine, 1);
    machine.detect(&[]).refused(4, &["has 4 GPUs", "none of them"]);
}

#[test]
fn a_far_end_of_which_nvml_knows_an_address_only_is_a_switch() {
    let far = [("00000000:00:00.0", TO_UNKNOWN); 12];
    let machine = Machine::new(&[h100("1B", &far), h100("43", &far)]);
    let (tree, _) = machine.tree_and_notes();
    assert_eq!(tree.matches("12 NVLink to switches").count(), 2, "{tree}");
}

#[test]
fn a_divided_gpu_is_shown_whole_and_noted() {
    let mut machine = bridged_box();
    machine.answers["gpus"][3]["mig"] = json!(true);
    let (tree, notes) = machine.tree_and_notes();
    assert!(tree.contains("GPU 3, NVIDIA A40, 46068 MiB"), "{tree}");
    assert!(notes.contains("GPU 3 is divided into instances (MIG)"), "{notes}");
}

#[test]
fn without_sysfs_the_gpus_hang_on_one_cpu() {
    let machine = bridged_box();
    fs::remove_dir_all(machine.folder.path().join("sys")).unwrap();
    fs::remove_file(machine.folder.path().join("cpuinfo")).unwrap();
    let (tree, notes) = machine.tree_and_notes();
    insta::assert_snapshot!(tree);
    assert_eq!(notes.lines().count(), 1, "{notes}");
    assert!(
        notes.starts_with("note: cannot see the PCI devices in ") && notes.contains("hang on one CPU"),
        "{notes}"
    );
}

#[test]
fn a_gpu_that_sysfs_does_not_have_is_noted() {
    let machine = bridged_box();
    let devices = machine.folder.path().join("sys/bus/pci/devices");
    fs::remove_file(devices.join("0000:65:00.0")).unwrap();
    fs::remove_file(devices.join("0000:17:00.0")).unwrap();
    fs::write(devices.join("0000:17:00.0"), "no link").unwrap();
    let (tree, notes) = machine.tree_and_notes();
    assert!(tree.contains("  0000:17:00.0, 10de:2235, 31507 MB/s, GPU 0"), "{tree}");
    assert!(notes.contains("sysfs has no 0000:17:00.0, where GPU 0 is"), "{notes}");
    assert!(notes.contains("sysfs has no 0000:65:00.0, where GPU 1 is"), "{notes}");
}
