//! Faults on demand.
//!
//! In: `SIMCUDA_FAULT`, a comma-separated list of `NAME[:N][@GPU]`. Out: lookups by name. `GPU` is the machine's number of a GPU,
//! whatever `CUDA_VISIBLE_DEVICES` makes of it, so that one environment can strike one of several processes. A name that isn't
//! in [`NAMES`] is an error: it would be a fault that never happens.
//!
//! What a fault does stands where it strikes. Copies from the host are counted for each GPU, from 1, and only those of data (4 KiB and
//! more): when the numbers that ranks tell each other are copied among them is a matter of luck.

use crate::settings::settings;

/// Every fault there is, and what its number means (1 if it is left out).
pub(crate) const NAMES: &[&str] = &[
    // `cuInit` finds no GPU.
    "no-device",
    // Allocations fail once the GPU would hold more than so many bytes.
    "out-of-memory-after",
    // The N-th copy from the host fails when it runs: 700, sticky.
    "copy-error",
    // The N-th copy from the host arrives with one bit flipped.
    "copy-flip",
    // The N-th copy from the host never arrives.
    "copy-drop",
    // The N-th copy from the host never ends.
    "hang-stream",
    // Host memory can't be registered.
    "register-refused",
    // No pinned memory.
    "pinned-refused",
    // The N-th kernel fails when it runs: 700, sticky.
    "kernel-error",
    // `cuInit` never returns.
    "hang-init",
    // The process is killed, as by `kill -9`, when the driver starts.
    "kill-at-init",
    // The same when it asks for its N-th copy from the host.
    "kill-at-copy",
    // The same when it launches its N-th kernel.
    "kill-at-kernel",
    // The process is stopped, as by `kill -STOP`, when it asks for its N-th copy from the host.
    "stop-at-copy",
    // NCCL: rank N of a communicator is killed when its first operation begins.
    "nccl-kill",
    // NCCL: rank N of a communicator never joins it.
    "nccl-init-hang",
    // NCCL: what rank N puts on streams never starts or ends.
    "nccl-hang",
    // NCCL: rank N finds `ncclInternalError` after its first operation.
    "nccl-error",
];

/// One item of the list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    name: String,
    number: u64,
    gpu: Option<usize>,
}

/// The number of the fault of this name, if there is one, on whichever GPU.
pub(crate) fn value(name: &str) -> Option<u64> {
    find(&settings().faults, name, None)
}

/// The number of the fault of this name on the GPU which has this number in the machine.
pub(crate) fn value_on(name: &str, gpu: usize) -> Option<u64> {
    find(&settings().faults, name, Some(gpu))
}

/// Whether the `count`-th of something on this GPU is one that the fault of this name strikes.
pub(crate) fn strikes(name: &str, gpu: usize, count: u64) -> bool {
    let strikes = |fault: &Fault| find(std::slice::from_ref(fault), name, Some(gpu)) == Some(count);
    settings().faults.iter().any(strikes)
}

/// Ends or stops this process at once, as a signal from outside would.
pub(crate) fn signal_self(signal: libc::c_int) {
    // SAFETY: a call without pointers.
    unsafe { libc::raise(signal) };
}

fn find(faults: &[Fault], name: &str, gpu: Option<usize>) -> Option<u64> {
    debug_assert!(NAMES.contains(&name), "{name}");
    let here =
        |fault: &&Fault| fault.name == name && (gpu.is_none() || fault.gpu.is_none() || fault.gpu == gpu);
    faults.iter().find(here).map(|fault| fault.number)
}

/// Reads the list.
pub(crate) fn parse(list: &str) -> Result<Vec<Fault>, String> {
    let one = |text: &str| {
        let wrong = |what: &str| format!("SIMCUDA_FAULT: `{text}`: {what}");
        let (rest, gpu) = match text.split_once('@') {
            Some((rest, gpu)) => (rest, Some(gpu.parse().map_err(|_| wrong("no number behind `@`"))?)),
            None => (text, None),
        };
        let (name, number) = match rest.split_once(':') {
            Some((name, number)) => (name, number.parse().map_err(|_| wrong("no number behind `:`"))?),
            None => (rest, 1),
        };
        if !NAMES.contains(&name) {
            return Err(wrong(&format!("no such fault; there are {}", NAMES.join(", "))));
        }
        Ok(Fault { name: name.to_owned(), number, gpu })
    };
    list.split(',').map(str::trim).filter(|text| !text.is_empty()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_and_found_by_name_and_gpu() {
        let faults = parse("copy-flip:3@1, no-device,out-of-memory-after:4096").unwrap();
        assert_eq!(find(&faults, "copy-flip", Some(1)), Some(3));
        assert_eq!(find(&faults, "copy-flip", Some(0)), None);
        assert_eq!(find(&faults, "copy-flip", None), Some(3));
        assert_eq!(find(&faults, "no-device", None), Some(1));
        assert_eq!(find(&faults, "out-of-memory-after", Some(7)), Some(4096));
        assert_eq!(find(&faults, "copy-drop", Some(0)), None);
    }

    #[test]
    fn what_is_no_fault_is_named() {
        for text in ["copy-flop:3", "copy-flip:x", "copy-flip@"] {
            assert!(parse(text).unwrap_err().contains(text), "{text}");
        }
    }
}
