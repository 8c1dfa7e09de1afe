//! GPUs as the NVIDIA driver tells them, through NVML.
//!
//! In comes nothing: the library is looked for when this is called, and a machine without one has no GPU. Out come GPUs with
//! their links, and notes on what is left out. It knows nothing of what they are plugged into.

use super::{Address, DetectError, Note, pcie};
use nvml_wrapper::{Device, Nvml, error::NvmlError};
use shardwright_planner::topology::{
    EdgeKind,
    import::{GpuLink, LinkTarget, PciDevice, PciGpu},
};
use std::{collections::BTreeSet, ffi::OsStr};

/// Names of the library: the driver's, then the one that a toolkit installs.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// Most GPUs of a machine.
const MOST_GPUS: u32 = 128;

/// Most NVLinks of a GPU: `NVML_NVLINK_MAX_LINKS` of `nvml.h`.
const MOST_LINKS: u32 = 18;

/// A GPU as NVML tells it.
#[derive(Debug)]
pub(super) struct Gpu {
    pub(super) number: u32,
    pub(super) address: Address,
    id: String,
    bytes_per_second: Option<u64>,
    name: Option<String>,
    memory_bytes: Option<u64>,
    sm: Option<u32>,
    ends: Vec<FarEnd>,
    links: Vec<GpuLink>,
}

/// The far end of an active link.
#[derive(Debug, Clone, Copy)]
struct FarEnd {
    address: Option<Address>,
    kind: Option<FarKind>,
}

/// What NVML says a link leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FarKind {
    Gpu,
    Npu,
    Switch,
}

impl Gpu {
    /// The GPU as a device of the PCI tree, without what is known of its slot only.
    pub(super) fn into_device(self) -> PciDevice {
        PciDevice {
            address: self.address.to_string(),
            class: None,
            id: Some(self.id),
            bytes_per_second: self.bytes_per_second,
            gpu: Some(PciGpu {
                number: Some(self.number),
                name: self.name,
                memory_bytes: self.memory_bytes,
                sm: self.sm,
                links: self.links,
            }),
            ports: Vec::new(),
            devices: Vec::new(),
        }
    }
}

/// All GPUs that this user may look at, in NVML's order.
pub(super) fn gpus() -> Result<(Vec<Gpu>, Vec<Note>), DetectError> {
    let nvml = open()?;
    let count =
        nvml.device_count().map_err(|source| DetectError::Nvml { call: "nvmlDeviceGetCount", source })?;
    match count {
        0 => return Err(DetectError::NoGpu),
        1..=MOST_GPUS => {}
        gpus => return Err(DetectError::TooMany { gpus, most: MOST_GPUS }),
    }
    let mut notes = Vec::new();
    let mut gpus = Vec::new();
    for number in 0..count {
        match gpu(&nvml, number, &mut notes)? {
            Some(gpu) => gpus.push(gpu),
            None => notes.push(Note::NotAllowed { gpu: number }),
        }
    }
    if gpus.is_empty() {
        return Err(DetectError::NoPermission { gpus: count });
    }
    connect(&mut gpus, &mut notes)?;
    Ok((gpus, notes))
}

/// Loads the library under the first name that it has, and starts it.
fn open() -> Result<Nvml, DetectError> {
    let mut tried = Vec::new();
    for library in LIBRARIES {
        match Nvml::builder().lib_path(OsStr::new(library)).init() {
            Ok(nvml) => return Ok(nvml),
            Err(NvmlError::LibloadingError(reason)) => tried.push(reason.to_string()),
            Err(NvmlError::DriverNotLoaded) => {
                let reason = format!("{library} is installed, but the driver is not loaded");
                return Err(DetectError::NoDriver { reason });
            }
            Err(source) => return Err(DetectError::Nvml { call: "nvmlInit", source }),
        }
    }
    Err(DetectError::NoDriver { reason: tried.join("; ") })
}

/// What NVML says of one GPU; `None` when this user may not look at it.
fn gpu(nvml: &Nvml, number: u32, notes: &mut Vec<Note>) -> Result<Option<Gpu>, DetectError> {
    let failed = |call| move |source| DetectError::Gpu { gpu: number, call, source };
    let device = match nvml.device_by_index(number) {
        Ok(device) => device,
        Err(NvmlError::NoPermission) => return Ok(None),
        Err(source) => return Err(failed("nvmlDeviceGetHandleByIndex")(source)),
    };
    let pci = device.pci_info().map_err(failed("nvmlDeviceGetPciInfo"))?;
    let no_address = || {
        let (address, problem) = (pci.bus_id.clone(), "is none");
        DetectError::BadAddress { gpu: number, address, problem }
    };
    let address = Address::parse(&pci.bus_id).ok_or_else(no_address)?;
    // Where MIG is off, or is nothing that this GPU has, there is nothing to say.
    if device.mig_mode().is_ok_and(|mode| mode.current != 0) {
        notes.push(Note::Divided { gpu: number });
    }
    let generation =
        told(device.max_pcie_link_gen()).map_err(failed("nvmlDeviceGetMaxPcieLinkGeneration"))?;
    let lanes = told(device.max_pcie_link_width()).map_err(failed("nvmlDeviceGetMaxPcieLinkWidth"))?;
    let memory = told(device.memory_info()).map_err(failed("nvmlDeviceGetMemoryInfo"))?;
    let capability =
        told(device.cuda_compute_capability()).map_err(failed("nvmlDeviceGetCudaComputeCapability"))?;
    Ok(Some(Gpu {
        number,
        address,
        // The device's half is the upper one.
        id: format!("{:04x}:{:04x}", pci.pci_device_id & 0xffff, pci.pci_device_id >> 16),
        bytes_per_second: generation
            .zip(lanes)
            .and_then(|(generation, lanes)| pcie::of_generation(generation, lanes.into())),
        name: told(device.name()).map_err(failed("nvmlDeviceGetName"))?,
        memory_bytes: memory.map(|memory| memory.total).filter(|&bytes| bytes > 0),
        sm: capability.and_then(|capability| sm(capability.major, capability.minor)),
        ends: far_ends(nvml, &device).map_err(failed("nvmlDeviceGetNvLinkState"))?,
        links: Vec::new(),
    }))
}

/// `90` for 9.0, as compilers write it.
fn sm(major: i32, minor: i32) -> Option<u32> {
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    (minor < 10).then(|| major.checked_mul(10)?.checked_add(minor)).flatten()
}

/// An answer that can be done without: not every GPU, driver or user has it. A GPU that is gone is another matter.
fn told<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error @ (NvmlError::GpuLost | NvmlError::ResetRequired)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Where the active NVLinks lead.
fn far_ends(nvml: &Nvml, device: &Device<'_>) -> Result<Vec<FarEnd>, NvmlError> {
    let mut ends = Vec::new();
    for number in 0..MOST_LINKS {
        let link = device.link_wrapper_for(number);
        // A GPU with fewer links, or with none, says of the others that there is no such thing.
        if told(link.is_active())? == Some(true) {
            let address = told(link.remote_pci_info())?.and_then(|remote| Address::parse(&remote.bus_id));
            ends.push(FarEnd { address, kind: far_kind(nvml, device, number) });
        }
    }
    Ok(ends)
}

/// What NVML says is at the far end of a link.
///
/// `nvml_wrapper` 0.13 has this call as `NvLink::remote_device_type`, but lets NVML write into a copy: its answer is always
/// "unknown".
fn far_kind(nvml: &Nvml, device: &Device<'_>, link: u32) -> Option<FarKind> {
    let call = nvml.lib().nvmlDeviceGetNvLinkRemoteDeviceType.as_ref().ok()?;
    let mut kind = u32::MAX;
    // SAFETY: `call` is the function of that name in the library that `nvml` keeps loaded and started; the handle is one that
    // this library gave, and `kind` outlives the call, which writes one 32-bit number to it.
    let code = unsafe { call(device.handle(), link, &raw mut kind) };
    // `nvmlReturn_t` and `nvmlIntNvLinkDeviceType_t` of `nvml.h`.
    match (code, kind) {
        (0, 0) => Some(FarKind::Gpu),
        (0, 1) => Some(FarKind::Npu),
        (0, 2) => Some(FarKind::Switch),
        _ => None,
    }
}

/// Turns far ends into links, now that all GPUs are known.
///
/// A far end that is none of them and of which NVML says no more is taken for a switch: those of virtual machines have addresses
/// that mean nothing to the guest. But a GPU that is not listed is no switch: a container may have been given others only.
fn connect(gpus: &mut [Gpu], notes: &mut Vec<Note>) -> Result<(), DetectError> {
    let mut known = BTreeSet::new();
    for gpu in &*gpus {
        if !known.insert(gpu.address) {
            let (address, problem) = (gpu.address.to_string(), "is another GPU's too");
            return Err(DetectError::BadAddress { gpu: gpu.number, address, problem });
        }
    }
    for gpu in gpus {
        let mut outside: Vec<(Option<Address>, u32)> = Vec::new();
        for end in std::mem::take(&mut gpu.ends) {
            let target = match (end.address, end.kind) {
                (Some(address), _) if known.contains(&address) => LinkTarget::Device(address.to_string()),
                (_, Some(FarKind::Switch)) | (Some(_), None) => LinkTarget::Switch,
                (address, Some(FarKind::Gpu | FarKind::Npu) | None) => {
                    match outside.iter_mut().find(|(found, _)| *found == address) {
                        Some((_, links)) => *links += 1,
                        None => outside.push((address, 1)),
                    }
                    continue;
                }
            };
            match gpu.links.iter_mut().find(|link| link.target == target) {
                Some(link) => link.count += 1,
                None => gpu.links.push(GpuLink { kind: EdgeKind::Nvlink, target, count: 1 }),
            }
        }
        let left_out = |(address, links)| Note::LinksOutside { gpu: gpu.number, links, address };
        notes.extend(outside.into_iter().map(left_out));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(number: u32, address: &str, ends: &[(Option<&str>, Option<FarKind>)]) -> Gpu {
        let end = |&(address, kind): &(Option<&str>, _)| FarEnd {
            address: address.map(|text| Address::parse(text).unwrap()),
            kind,
        };
        Gpu {
            number,
            address: Address::parse(address).unwrap(),
            id: String::new(),
            bytes_per_second: None,
            name: None,
            memory_bytes: None,
            sm: None,
            ends: ends.iter().map(end).collect(),
            links: Vec::new(),
        }
    }

    fn link(target: LinkTarget, count: u32) -> GpuLink {
        GpuLink { kind: EdgeKind::Nvlink, target, count }
    }

    #[test]
    fn links_are_counted_for_each_target() {
        let (other, switch) = (Some("0000:02:00.0"), Some("0000:09:00.0"));
        let mut gpus = [
            gpu(
                0,
                "0000:01:00.0",
                &[(other, None), (switch, None), (None, Some(FarKind::Switch)), (other, Some(FarKind::Gpu))],
            ),
            gpu(1, "0000:02:00.0", &[]),
        ];
        let mut notes = Vec::new();
        connect(&mut gpus, &mut notes).unwrap();
        let device = LinkTarget::Device("0000:02:00.0".to_owned());
        assert_eq!(gpus[0].links, [link(device, 2), link(LinkTarget::Switch, 2)]);
        assert_eq!((&gpus[1].links, notes), (&Vec::new(), Vec::new()));
    }

    #[test]
    fn a_gpu_that_is_not_listed_is_no_switch() {
        let hidden = Some("0000:08:00.0");
        let ends = [
            (hidden, Some(FarKind::Gpu)),
            (hidden, Some(FarKind::Gpu)),
            (None, None),
            (None, Some(FarKind::Npu)),
        ];
        let mut gpus = [gpu(3, "0000:01:00.0", &ends)];
        let mut notes = Vec::new();
        connect(&mut gpus, &mut notes).unwrap();
        assert!(gpus[0].links.is_empty());
        let address = hidden.and_then(Address::parse);
        let expected =
            [(address, 2), (None, 2)].map(|(address, links)| Note::LinksOutside { gpu: 3, links, address });
        assert_eq!(notes, expected);
        assert!(notes[0].to_string().contains("GPU 3 has 2 NVLinks to 0000:08:00.0"), "{}", notes[0]);
        assert!(notes[1].to_string().contains("does not say"), "{}", notes[1]);
    }

    #[test]
    fn two_gpus_at_one_address_are_refused() {
        let mut gpus = [gpu(0, "0000:01:00.0", &[]), gpu(1, "0000:01:00.0", &[])];
        let error = connect(&mut gpus, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, DetectError::BadAddress { gpu: 1, .. }), "{error}");
    }

    #[test]
    fn capabilities_are_written_as_compilers_do() {
        assert_eq!((sm(9, 0), sm(12, 1)), (Some(90), Some(121)));
        assert_eq!((sm(-1, 0), sm(9, 10), sm(i32::MAX, 0)), (None, None, None));
    }

    #[test]
    fn only_a_lost_gpu_is_an_error_where_an_answer_can_be_done_without() {
        assert!(matches!(told(Ok(1)), Ok(Some(1))));
        assert!(matches!(told::<u32>(Err(NvmlError::NoPermission)), Ok(None)));
        assert!(matches!(told::<u32>(Err(NvmlError::GpuLost)), Err(NvmlError::GpuLost)));
    }
}
