//! Slurm's short forms for lists: of hosts, `node[01-04,07],login`, and of tasks on each, `4(x2),3`.

/// The first host of a list; `None` when it is none.
///
/// Source: Slurm's documentation of hostlists, `scontrol show hostnames`.
pub(super) fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    loop {
        let end = rest.find(['[', ',', ']']).unwrap_or(rest.len());
        host.push_str(rest.get(..end)?);
        rest = rest.get(end..)?;
        let Some(bracketed) = rest.strip_prefix('[') else { break };
        let (ranges, after) = bracketed.split_once(']')?;
        host.push_str(first_number(ranges)?);
        rest = after;
    }
    let letters = |letter: char| letter.is_ascii_alphanumeric() || "-_.:".contains(letter);
    let whole = rest.is_empty() || rest.starts_with(',');
    (whole && !host.is_empty() && host.chars().all(letters)).then_some(host)
}

/// The first number of `01-04,07`, with its zeros.
fn first_number(ranges: &str) -> Option<&str> {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|letter| letter.is_ascii_digit());
    let mut first = None;
    for range in ranges.split(',') {
        let (begin, end) = range.split_once('-').unwrap_or((range, range));
        if !digits(begin) || !digits(end) {
            return None;
        }
        first = first.or(Some(begin));
    }
    first
}

/// The tasks on the node `at` of a list; `None` when it is no list or has no such node.
///
/// Source: `SLURM_TASKS_PER_NODE` in Slurm's documentation of sbatch.
pub(super) fn tasks_on(list: &str, at: u32) -> Option<u32> {
    let mut nodes = 0u32;
    for run in list.split(',') {
        let (tasks, times) = match run.split_once("(x") {
            Some((tasks, times)) => (tasks, times.strip_suffix(')')?.parse().ok()?),
            None => (run, 1),
        };
        let tasks = tasks.parse().ok()?;
        nodes = nodes.checked_add(times)?;
        if at < nodes {
            return Some(tasks);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_host_of_a_list_is_found() {
        for (list, host) in [
            ("node1", "node1"),
            ("a,b", "a"),
            ("node[01-04,07]", "node01"),
            ("node[7,1-3],login", "node7"),
            ("rack[2-3]-node[008-010]", "rack2-node008"),
            ("gpu-[1-2].cluster.local", "gpu-1.cluster.local"),
            ("login,node[1-2]", "login"),
        ] {
            assert_eq!(first_host(list).as_deref(), Some(host), "{list}");
        }
    }

    #[test]
    fn what_is_no_list_has_no_first_host() {
        for list in [
            "",
            ",a",
            "node[",
            "node[]",
            "node[1-",
            "node]1",
            "node[1-x]",
            "a b",
            "node[1][",
            "$(id)",
            "[-1]",
        ] {
            assert_eq!(first_host(list), None, "{list}");
        }
    }

    #[test]
    fn tasks_of_a_node_are_found() {
        for (list, tasks) in [
            ("4", [Some(4), None, None]),
            ("4(x2),3", [Some(4), Some(4), Some(3)]),
            ("1,2,3", [1, 2, 3].map(Some)),
        ] {
            assert_eq!([0, 1, 2].map(|at| tasks_on(list, at)), tasks, "{list}");
        }
        for list in ["", "x", "4(x", "4(x2", "(x2)", "4(x4294967295),1(x2)"] {
            assert_eq!(tasks_on(list, u32::MAX), None, "{list}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_list_or_none(text in any::<String>(), list in "[a-z0-9,x()\\[\\]-]{0,20}", at in any::<u32>()) {
            for text in [&text, &list] {
                let _ = first_host(text);
                let _ = tasks_on(text, at);
            }
        }
    }
}
