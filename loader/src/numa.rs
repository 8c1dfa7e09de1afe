//! Which CPUs are near which GPU.
//!
//! In come the NUMA nodes of devices and what sysfs says of the nodes' CPUs; out go sets of CPUs for threads that read for these
//! devices, and pinned buffers that lie on their nodes because the threads that ask for them run there. Of the CPUs that this
//! process may use none is added and none is forced: where sysfs does not tell, or there is one node, threads run where they like.

use crate::device::Device;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::{collections::BTreeMap, fs, path::Path};

/// Where the system describes itself.
const SYSFS: &str = "/sys";

/// Longest list of CPUs that is read, in letters.
const MOST_LETTERS: usize = 16 << 10;

/// The CPUs of each NUMA node that this process may use.
#[derive(Debug, Clone, Default)]
pub struct NumaNodes(BTreeMap<u32, CpuSet>);

impl NumaNodes {
    /// Those of this host; none where there are not at least two.
    pub fn of_host() -> Self {
        sched_getaffinity(None)
            .map_or_else(|_| Self::default(), |allowed| Self::read(Path::new(SYSFS), &allowed))
    }

    fn read(root: &Path, allowed: &CpuSet) -> Self {
        let folder = root.join("devices/system/node");
        let Some(numbers) = list_in(&folder.join("online")) else { return Self::default() };
        let mut nodes = BTreeMap::new();
        for number in numbers {
            let Some(cpus) = list_in(&folder.join(format!("node{number}/cpulist"))) else { continue };
            let mut set = CpuSet::new();
            let usable = cpus.into_iter().map(|cpu| cpu as usize).filter(|&cpu| cpu < CpuSet::MAX_CPU);
            usable.filter(|&cpu| allowed.is_set(cpu)).for_each(|cpu| set.set(cpu));
            if set.count() > 0 {
                nodes.insert(number, set);
            }
        }
        if nodes.len() < 2 { Self::default() } else { Self(nodes) }
    }

    /// Keeps the calling thread on the CPUs of a node until what this gives is dropped; then it may run where it could before.
    pub fn stay(&self, node: Option<u32>) -> Stay {
        let wanted = node.and_then(|node| self.0.get(&node));
        let before = wanted.and_then(|_| sched_getaffinity(None).ok());
        if let Some(set) = wanted.filter(|_| before.is_some()) {
            // Only advice: where it is refused the thread runs as well, farther away.
            let _ = sched_setaffinity(None, set);
        }
        Stay { before }
    }

    /// The nodes of some devices, for threads that read for all of them: thread `n` takes the `n`-th, round and round.
    pub fn of_devices<'a>(&self, devices: impl Iterator<Item = &'a dyn Device>) -> Vec<u32> {
        let mut nodes: Vec<u32> =
            devices.filter_map(Device::numa_node).filter(|node| self.0.contains_key(node)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// One line on where threads run, where they do not run where they like.
    pub fn in_words(&self, nodes: &[u32]) -> Option<String> {
        let numbers: Vec<String> = nodes.iter().map(u32::to_string).collect();
        match numbers.as_slice() {
            [] => None,
            [one] => Some(format!("threads run on NUMA node {one}, where the GPUs are")),
            many => Some(format!("threads run on NUMA nodes {}, where the GPUs are", many.join(", "))),
        }
    }
}

/// While it lives the thread that made it stays where it is told to.
#[derive(Debug)]
pub struct Stay {
    before: Option<CpuSet>,
}

impl Drop for Stay {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = sched_setaffinity(None, before);
        }
    }
}

/// The node of the PCI device with this address, `0000:1b:00.0`, where the system says one.
pub fn node_of_pci(address: &str) -> Option<u32> {
    node_in(Path::new(SYSFS), address)
}

fn node_in(root: &Path, address: &str) -> Option<u32> {
    // It comes from a driver, and is to name nothing but a device.
    let is_address = |letter: char| letter.is_ascii_hexdigit() || letter == ':' || letter == '.';
    if address.contains("..") || !address.chars().all(is_address) {
        return None;
    }
    let file = root.join("bus/pci/devices").join(address.to_ascii_lowercase()).join("numa_node");
    // -1 is for none.
    read(&file)?.trim().parse().ok()
}

fn read(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok().filter(|text| text.len() <= MOST_LETTERS)
}

fn list_in(file: &Path) -> Option<Vec<u32>> {
    list(&read(file)?)
}

/// The numbers of a list as the kernel writes it: `0-3,8,10-11`.
fn list(text: &str) -> Option<Vec<u32>> {
    const MOST: usize = 1 << 16;
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last < first || (last - first) as usize + numbers.len() >= MOST {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{DeviceError, DeviceMemory, HostDevice, Pool};
    use proptest::prelude::*;

    /// A folder that looks like sysfs.
    fn sysfs(nodes: &[(u32, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("devices/system/node");
        fs::create_dir_all(&folder).unwrap();
        let online: Vec<String> = nodes.iter().map(|(node, _)| node.to_string()).collect();
        fs::write(folder.join("online"), online.join(",") + "\n").unwrap();
        for (node, cpus) in nodes {
            fs::create_dir(folder.join(format!("node{node}"))).unwrap();
            fs::write(folder.join(format!("node{node}/cpulist")), format!("{cpus}\n")).unwrap();
        }
        root
    }

    fn set(cpus: &[usize]) -> CpuSet {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|&cpu| set.set(cpu));
        set
    }

    struct On(Option<u32>);

    impl Device for On {
        fn name(&self) -> String {
            "on a node".to_owned()
        }

        fn pools(&self) -> Result<Vec<Pool>, DeviceError> {
            Ok(Vec::new())
        }

        fn allocate(&self, bytes: u64) -> Result<Box<dyn DeviceMemory>, DeviceError> {
            HostDevice.allocate(bytes)
        }

        fn numa_node(&self) -> Option<u32> {
            self.0
        }
    }

    #[test]
    fn a_node_has_the_cpus_that_the_process_may_use() {
        let root = sysfs(&[(0, "0-3,8-11"), (1, "4-7,12-15")]);
        let nodes = NumaNodes::read(root.path(), &set(&[1, 2, 5, 9]));
        assert_eq!(nodes.0, BTreeMap::from([(0, set(&[1, 2, 9])), (1, set(&[5]))]));
        // Bound to one node, or on a machine with one: nothing to choose.
        assert!(NumaNodes::read(root.path(), &set(&[1, 2])).0.is_empty());
        assert!(NumaNodes::read(sysfs(&[(0, "0-7")]).path(), &set(&[0, 1])).0.is_empty());
        assert!(NumaNodes::read(Path::new("/nowhere"), &set(&[0])).0.is_empty());
    }

    #[test]
    fn threads_take_the_nodes_of_the_devices_in_turn() {
        let root = sysfs(&[(0, "0"), (1, "1"), (2, "2")]);
        let nodes = NumaNodes::read(root.path(), &set(&[0, 1, 2]));
        let of = |devices: &[On]| nodes.of_devices(devices.iter().map(|device| device as &dyn Device));
        assert_eq!(of(&[On(Some(2)), On(Some(0)), On(Some(2)), On(None), On(Some(7))]), [0, 2]);
        assert_eq!(nodes.in_words(&of(&[On(None)])), None);
        assert_eq!(nodes.in_words(&[0, 2]).unwrap(), "threads run on NUMA nodes 0, 2, where the GPUs are");
    }

    #[test]
    fn a_thread_is_let_go_again() {
        let all = sched_getaffinity(None).unwrap();
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).collect();
        let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
        let nodes = NumaNodes(BTreeMap::from([(0, set(&[first])), (1, set(&[last]))]));
        std::thread::spawn(move || {
            let stay = nodes.stay(Some(1));
            assert_eq!(sched_getaffinity(None).unwrap(), set(&[last]));
            drop(stay);
            assert_eq!(sched_getaffinity(None).unwrap(), all);
            for nowhere in [None, Some(9)] {
                let _stay = nodes.stay(nowhere);
                assert_eq!(sched_getaffinity(None).unwrap(), all);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_node_of_a_device_is_what_the_system_says() {
        let root = tempfile::tempdir().unwrap();
        for (address, node) in [("0000:1b:00.0", "1"), ("0000:1c:00.0", "-1")] {
            let folder = root.path().join("bus/pci/devices").join(address);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("numa_node"), format!("{node}\n")).unwrap();
        }
        assert_eq!(node_in(root.path(), "0000:1B:00.0"), Some(1));
        for none in ["0000:1c:00.0", "0000:1d:00.0", "../0000:1b:00.0", "", "/etc"] {
            assert_eq!(node_in(root.path(), none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn a_list_gives_its_numbers_or_nothing(runs in prop::collection::vec((0u32..500, 0u32..9), 0..9), noise in ".{0,40}") {
            let text: Vec<String> =
                runs.iter().map(|(first, more)| if *more == 0 { first.to_string() } else { format!("{first}-{}", first + more) }).collect();
            let numbers: Vec<u32> = runs.iter().flat_map(|(first, more)| *first..=first + more).collect();
            prop_assert_eq!(list(&text.join(",")), Some(numbers));
            if let Some(numbers) = list(&noise) {
                prop_assert!(numbers.len() <= 1 << 16);
            }
        }
    }

    #[test]
    fn absurd_lists_are_none() {
        for text in ["0-4294967295", "5-3", "a", "1--2", "-1"] {
            assert_eq!(list(text), None, "{text}");
        }
    }
}
