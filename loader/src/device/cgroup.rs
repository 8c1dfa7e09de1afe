//! Limits on memory that the system sets for groups of processes: containers, services, jobs of a scheduler.
//!
//! In come the kernel's files; out goes a [`Pool`] for each group of this process that has a limit. Both hierarchies are known, in
//! which a group's limit counts for all groups below it: cgroup 2 and, on older systems, the memory controller of cgroup 1.
//! Source: <https://docs.kernel.org/admin-guide/cgroup-v2.html>, <https://docs.kernel.org/admin-guide/cgroup-v1/memory.html>.

use super::Pool;
use crate::fingerprint::seed_of;
use std::{
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

/// Where systems mount the groups.
const MOUNT: &str = "/sys/fs/cgroup";

/// Limits from here on are none: what cgroup 1 has for "unlimited" is 2^63 less a page.
const UNLIMITED: u64 = 1 << 62;

/// The names that a hierarchy has for its figures.
struct Hierarchy {
    limit: &'static str,
    used: &'static str,
    /// Keys of `memory.stat` for the page cache, which gives way.
    cached: [&'static str; 2],
}

const SECOND: Hierarchy =
    Hierarchy { limit: "memory.max", used: "memory.current", cached: ["inactive_file", "active_file"] };

const FIRST: Hierarchy = Hierarchy {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: ["total_inactive_file", "total_active_file"],
};

/// The groups of this process that have a limit, the tightest first.
pub(super) fn pools() -> Vec<Pool> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    pools_below(Path::new(MOUNT), &own)
}

/// The same of the groups that `own` names, as `/proc/self/cgroup` does, below `mount`.
fn pools_below(mount: &Path, own: &str) -> Vec<Pool> {
    let mut pools = Vec::new();
    for line in own.lines() {
        // `number:controllers:path`; cgroup 2 has no controllers there.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (hierarchy, root) = match controllers {
            "" if mount.join("unified").is_dir() => (&SECOND, mount.join("unified")),
            "" => (&SECOND, mount.to_owned()),
            names if names.split(',').any(|name| name == "memory") => (&FIRST, mount.join("memory")),
            _ => continue,
        };
        let names = Path::new(path).components().filter(|part| matches!(part, Component::Normal(_)));
        // Within a container the path may be the host's, of which only the end, or nothing, is there.
        let mut folder = names.fold(root.clone(), |folder, name| folder.join(name));
        loop {
            pools.extend(hierarchy.pool(&folder, &root));
            if folder == root || !folder.pop() {
                break;
            }
        }
    }
    pools.sort_by_key(|pool| pool.available);
    pools
}

impl Hierarchy {
    fn pool(&self, folder: &Path, root: &Path) -> Option<Pool> {
        let limit = number(&folder.join(self.limit)).filter(|&limit| limit < UNLIMITED)?;
        let used = number(&folder.join(self.used))?;
        let stat = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let of = |key: &str| {
            let value = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok());
            value.unwrap_or(0)
        };
        let cached = self.cached.iter().map(|key| of(key)).fold(0u64, u64::saturating_add);
        let name = PathBuf::from("/").join(folder.strip_prefix(root).ok()?);
        // What a container calls its groups says nothing to others; the kernel has one number for each.
        let inode = std::fs::metadata(folder).ok()?.ino();
        Some(Pool {
            name: format!("the memory limit of control group {}", name.display()),
            id: seed_of(&format!("cgroup {inode}")),
            available: Some(limit.saturating_sub(used.saturating_sub(cached))),
        })
    }
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn group(folder: &Path, figures: &[(&str, &str)]) {
        std::fs::create_dir_all(folder).unwrap();
        figures.iter().for_each(|(name, text)| std::fs::write(folder.join(name), text).unwrap());
    }

    fn found(mount: &TempDir, own: &str) -> Vec<(String, u64)> {
        let pools = pools_below(mount.path(), own);
        pools.into_iter().map(|pool| (pool.name, pool.available.unwrap())).collect()
    }

    #[test]
    fn a_limit_counts_for_all_groups_below_it_and_the_page_cache_gives_way() {
        let mount = TempDir::new().unwrap();
        let stat = ("memory.stat", "anon 300\ninactive_file 40\nactive_file 60\n");
        group(&mount.path().join("a"), &[("memory.max", "1000\n"), ("memory.current", "400\n"), stat]);
        group(&mount.path().join("a/b"), &[("memory.max", "max\n"), ("memory.current", "10\n")]);
        group(&mount.path().join("a/b/c"), &[("memory.max", "500\n"), ("memory.current", "20\n")]);
        let name = |path: &str| format!("the memory limit of control group {path}");
        assert_eq!(found(&mount, "0::/a/b/c\n"), [(name("/a/b/c"), 480), (name("/a"), 700)]);
        assert_eq!(found(&mount, "0::/a\n"), [(name("/a"), 700)]);
        // A container that does not see the folders of its host.
        assert_eq!(found(&mount, "0::/elsewhere/x\n"), []);
    }

    #[test]
    fn the_older_hierarchy_has_other_names() {
        let mount = TempDir::new().unwrap();
        let none = [("memory.limit_in_bytes", "9223372036854771712"), ("memory.usage_in_bytes", "7")];
        group(&mount.path().join("memory"), &none);
        let stat = ("memory.stat", "inactive_file 1\ntotal_inactive_file 5\n");
        let some = [("memory.limit_in_bytes", "100"), ("memory.usage_in_bytes", "30"), stat];
        group(&mount.path().join("memory/job"), &some);
        let own = "9:name=systemd:/\n4:cpu,memory:/job\n3:cpuset:/\n";
        assert_eq!(found(&mount, own), [("the memory limit of control group /job".to_owned(), 75)]);
    }

    #[test]
    fn no_path_leads_out_of_the_mount() {
        let parent = TempDir::new().unwrap();
        group(parent.path(), &[("memory.max", "1"), ("memory.current", "0")]);
        let mount = parent.path().join("mount");
        group(&mount, &[]);
        assert_eq!(pools_below(&mount, "0::/../x\nnonsense\n1:\n:::::\n"), []);
    }
}
