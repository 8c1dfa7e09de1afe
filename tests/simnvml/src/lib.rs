//! A simulated NVML: the C functions of `libnvidia-ml.so` that shardwright calls, answering from a file.
//!
//! For tests; it never ships. `SIMNVML` names a JSON file with a `Machine`: its GPUs, and which functions fail with which
//! code. Layouts and codes are those of `nvml-wrapper-sys`, which were made from NVIDIA's `nvml.h`.
//!
//! What it can't do: show that a driver answers like this. Its machines are written after NVIDIA's documentation of NVML and what
//! `nvidia-smi` prints on such machines, not recorded from them. It knows no function that shardwright doesn't call, no events, no
//! instances (MIG) beyond whether there are any, and one GPU looks no different to different users.

use nvml_wrapper_sys::bindings as c;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    ffi::{c_char, c_int, c_uint},
    sync::OnceLock,
};

/// What the file holds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Machine {
    gpus: Vec<Gpu>,
    /// Functions that fail, by name, and with which `nvmlReturn_t`.
    #[serde(default)]
    faults: BTreeMap<String, c_uint>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gpu {
    name: String,
    memory_bytes: u64,
    /// As NVML writes it: `00000000:1B:00.0`.
    bus_id: String,
    /// Vendor in the lower half, device in the upper.
    pci_device_id: c_uint,
    /// Compute capability.
    capability: [c_int; 2],
    pcie_generation: c_uint,
    pcie_width: c_uint,
    #[serde(default)]
    mig: bool,
    #[serde(default)]
    links: Vec<Link>,
    /// Functions that fail for this GPU.
    #[serde(default)]
    faults: BTreeMap<String, c_uint>,
}

/// A link; those past the last are not there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    /// Where it leads, as NVML writes it. Nowhere: the link is down.
    to: Option<String>,
    /// `nvmlIntNvLinkDeviceType_t`.
    kind: c_uint,
}

/// The machine, read once; `None` if the file is no machine, and then every function fails.
fn machine() -> Option<&'static Machine> {
    static MACHINE: OnceLock<Option<Machine>> = OnceLock::new();
    let read = || {
        let file = std::env::var_os("SIMNVML")?;
        let read = std::fs::read(file).map_err(|error| error.to_string());
        let machine = read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
        machine.inspect_err(|error| eprintln!("simnvml: {error}")).ok()
    };
    MACHINE.get_or_init(read).as_ref()
}

/// What `function` answers of the whole machine, or its fault.
fn answer(function: &str, write: impl FnOnce(&'static Machine)) -> c::nvmlReturn_t {
    let Some(machine) = machine() else { return c::nvmlReturn_enum_NVML_ERROR_UNKNOWN };
    match machine.faults.get(function) {
        Some(code) => *code,
        None => {
            write(machine);
            c::nvmlReturn_enum_NVML_SUCCESS
        }
    }
}

/// A handle is the number of its GPU and one more, since no handle is null.
fn gpu_of(device: c::nvmlDevice_t) -> Option<&'static Gpu> {
    machine()?.gpus.get(device.addr().checked_sub(1)?)
}

/// What `function` answers of one GPU, or its fault.
fn gpu_answer(
    function: &str,
    device: c::nvmlDevice_t,
    write: impl FnOnce(&'static Gpu) -> c::nvmlReturn_t,
) -> c::nvmlReturn_t {
    let Some(gpu) = gpu_of(device) else { return c::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT };
    match gpu.faults.get(function) {
        Some(code) => *code,
        None => write(gpu),
    }
}

/// What `function` answers of one link that is up, or its fault.
fn link_answer(
    function: &str,
    device: c::nvmlDevice_t,
    link: c_uint,
    write: impl FnOnce(&'static Link) -> c::nvmlReturn_t,
) -> c::nvmlReturn_t {
    gpu_answer(function, device, |gpu| {
        match usize::try_from(link).ok().and_then(|link| gpu.links.get(link)) {
            Some(link) => write(link),
            None if gpu.links.is_empty() => c::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
            None => c::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
        }
    })
}

/// Writes `value` to where a caller of this library asks for it.
///
/// # Safety
/// `place` is valid for a write.
unsafe fn put<T>(place: *mut T, value: T) -> c::nvmlReturn_t {
    // SAFETY: the caller's promise.
    unsafe { place.write(value) };
    c::nvmlReturn_enum_NVML_SUCCESS
}

/// The letters of `text` with as many zeros behind as there is room for, one at least.
fn letters<const N: usize>(text: &str) -> [c_char; N] {
    let mut letters = [0; N];
    for (to, from) in letters[..N - 1].iter_mut().zip(text.bytes()) {
        *to = from.cast_signed();
    }
    letters
}

/// Starts the library.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> c::nvmlReturn_t {
    answer("nvmlInit_v2", |_| {})
}

/// Ends it.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> c::nvmlReturn_t {
    answer("nvmlShutdown", |_| {})
}

/// The driver's version: there is none.
///
/// # Safety
/// Any arguments will do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(
    _version: *mut c_char,
    _length: c_uint,
) -> c::nvmlReturn_t {
    c::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED
}

/// How many GPUs.
///
/// # Safety
/// `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c::nvmlReturn_t {
    answer("nvmlDeviceGetCount_v2", |machine| {
        // SAFETY: the caller's promise.
        unsafe { put(count, c_uint::try_from(machine.gpus.len()).unwrap_or(c_uint::MAX)) };
    })
}

/// The handle of a GPU.
///
/// # Safety
/// `device` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut c::nvmlDevice_t,
) -> c::nvmlReturn_t {
    let handle: c::nvmlDevice_t = std::ptr::without_provenance_mut(index as usize + 1);
    // SAFETY: the caller's promise.
    gpu_answer("nvmlDeviceGetHandleByIndex_v2", handle, |_| unsafe { put(device, handle) })
}

/// A GPU's name.
///
/// # Safety
/// `name` is valid for writes of `length` letters.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetName(
    device: c::nvmlDevice_t,
    name: *mut c_char,
    length: c_uint,
) -> c::nvmlReturn_t {
    gpu_answer("nvmlDeviceGetName", device, |gpu| {
        let letters: [c_char; 96] = letters(&gpu.name);
        if (length as usize) < letters.len() {
            return c::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
        }
        // SAFETY: the caller's promise, and the length was compared above.
        unsafe { put(name.cast(), letters) }
    })
}

/// A GPU's memory.
///
/// # Safety
/// `memory` is valid for reads and writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: c::nvmlDevice_t,
    memory: *mut c::nvmlMemory_v2_t,
) -> c::nvmlReturn_t {
    gpu_answer("nvmlDeviceGetMemoryInfo_v2", device, |gpu| {
        // SAFETY: the caller's promise.
        let version = unsafe { (*memory).version };
        if version as usize != size_of::<c::nvmlMemory_v2_t>() | 2 << 24 {
            return c::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
        }
        let total = gpu.memory_bytes;
        let answer = c::nvmlMemory_v2_t { version, total, reserved: 0, free: total, used: 0 };
        // SAFETY: the caller's promise.
        unsafe { put(memory, answer) }
    })
}

/// Where a GPU is.
///
/// # Safety
/// `pci` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: c::nvmlDevice_t,
    pci: *mut c::nvmlPciInfo_t,
) -> c::nvmlReturn_t {
    // SAFETY: the caller's promise.
    gpu_answer("nvmlDeviceGetPciInfo_v3", device, |gpu| unsafe {
        put(pci, pci_info(&gpu.bus_id, gpu.pci_device_id))
    })
}

/// The numbers of the address are left at zero: nobody reads them.
fn pci_info(bus_id: &str, pci_device_id: c_uint) -> c::nvmlPciInfo_t {
    c::nvmlPciInfo_t {
        busIdLegacy: [0; 16],
        domain: 0,
        bus: 0,
        device: 0,
        pciDeviceId: pci_device_id,
        pciSubSystemId: 0,
        busId: letters(bus_id),
    }
}

/// A GPU's compute capability.
///
/// # Safety
/// `major` and `minor` are valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: c::nvmlDevice_t,
    major: *mut c_int,
    minor: *mut c_int,
) -> c::nvmlReturn_t {
    // SAFETY: the caller's promise.
    gpu_answer("nvmlDeviceGetCudaComputeCapability", device, |gpu| unsafe {
        put(major, gpu.capability[0]);
        put(minor, gpu.capability[1])
    })
}

/// Whether a GPU is divided into instances.
///
/// # Safety
/// `current` and `pending` are valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: c::nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> c::nvmlReturn_t {
    // SAFETY: the caller's promise.
    gpu_answer("nvmlDeviceGetMigMode", device, |gpu| unsafe {
        put(current, gpu.mig.into());
        put(pending, gpu.mig.into())
    })
}

/// The highest PCI Express generation of a GPU in its slot.
///
/// # Safety
/// `generation` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxPcieLinkGeneration(
    device: c::nvmlDevice_t,
    generation: *mut c_uint,
) -> c::nvmlReturn_t {
    // SAFETY: the caller's promise.
    gpu_answer("nvmlDeviceGetMaxPcieLinkGeneration", device, |gpu| unsafe {
        put(generation, gpu.pcie_generation)
    })
}

/// Its lanes there.
///
/// # Safety
/// `width` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxPcieLinkWidth(
    device: c::nvmlDevice_t,
    width: *mut c_uint,
) -> c::nvmlReturn_t {
    // SAFETY: the caller's promise.
    gpu_answer("nvmlDeviceGetMaxPcieLinkWidth", device, |gpu| unsafe { put(width, gpu.pcie_width) })
}

/// Whether a link is up.
///
/// # Safety
/// `active` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkState(
    device: c::nvmlDevice_t,
    link: c_uint,
    active: *mut c::nvmlEnableState_t,
) -> c::nvmlReturn_t {
    link_answer("nvmlDeviceGetNvLinkState", device, link, |link| {
        let state = match link.to {
            Some(_) => c::nvmlEnableState_enum_NVML_FEATURE_ENABLED,
            None => c::nvmlEnableState_enum_NVML_FEATURE_DISABLED,
        };
        // SAFETY: the caller's promise.
        unsafe { put(active, state) }
    })
}

/// Where a link leads.
///
/// # Safety
/// `pci` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device: c::nvmlDevice_t,
    link: c_uint,
    pci: *mut c::nvmlPciInfo_t,
) -> c::nvmlReturn_t {
    link_answer("nvmlDeviceGetNvLinkRemotePciInfo_v2", device, link, |link| match &link.to {
        // SAFETY: the caller's promise.
        Some(address) => unsafe { put(pci, pci_info(address, 0)) },
        None => c::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    })
}

/// What a link leads to.
///
/// # Safety
/// `kind` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetNvLinkRemoteDeviceType(
    device: c::nvmlDevice_t,
    link: c_uint,
    kind: *mut c::nvmlIntNvLinkDeviceType_t,
) -> c::nvmlReturn_t {
    // SAFETY: the caller's promise.
    link_answer("nvmlDeviceGetNvLinkRemoteDeviceType", device, link, |link| unsafe { put(kind, link.kind) })
}
