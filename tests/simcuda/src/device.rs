//! The GPUs: what they are called, what they can do, which the process sees.
//!
//! They look like H100s of one board, each with the memory that the settings say.

use crate::{Answer, counts::Counts, fault, memory::Space, settings::settings};
use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUresult};
use std::{
    sync::{Mutex, OnceLock},
    thread,
};

/// What every GPU here is called.
pub(crate) const NAME: &str = "simcuda H100";

/// A GPU that this process sees.
pub(crate) struct Gpu {
    /// Its number in the machine, whatever the process sees.
    pub(crate) number: usize,
    /// Its number in the process.
    pub(crate) ordinal: i32,
    pub(crate) space: Space,
    pub(crate) counts: Mutex<Counts>,
}

static GPUS: OnceLock<Vec<Gpu>> = OnceLock::new();

/// Makes the GPUs.
pub(crate) fn initialise() -> Answer {
    let visible = &settings().visible;
    if fault::value("no-device").is_some() || visible.is_empty() {
        return Err(CUresult::CUDA_ERROR_NO_DEVICE);
    }
    let make = |(ordinal, number): (i32, &usize)| Gpu {
        number: *number,
        ordinal,
        space: Space::new(),
        counts: Mutex::default(),
    };
    GPUS.get_or_init(|| (0..).zip(visible).map(make).collect());
    Ok(())
}

/// The GPUs that the process sees: none before `cuInit`.
pub(crate) fn gpus() -> &'static [Gpu] {
    GPUS.get().map_or(&[], Vec::as_slice)
}

/// The GPU of a `CUdevice`.
pub(crate) fn gpu(device: i32) -> Answer<&'static Gpu> {
    let gpus = GPUS.get().ok_or(CUresult::CUDA_ERROR_NOT_INITIALIZED)?;
    let ordinal = usize::try_from(device).map_err(|_| CUresult::CUDA_ERROR_INVALID_DEVICE)?;
    gpus.get(ordinal).ok_or(CUresult::CUDA_ERROR_INVALID_DEVICE)
}

/// The bytes that name the GPU with this number.
pub(crate) fn uuid(number: usize) -> [u8; 16] {
    let mut bytes = *b"simcuda\0\x40\0\x80\0\0\0\0\0";
    bytes[15] = number.to_le_bytes()[0];
    bytes
}

/// The same as `nvidia-smi` writes it.
pub(crate) fn uuid_text(number: usize) -> String {
    let hex = uuid(number).map(|byte| format!("{byte:02x}"));
    let group = |from: usize, to: usize| hex[from..to].concat();
    format!("GPU-{}-{}-{}-{}-{}", group(0, 4), group(4, 6), group(6, 8), group(8, 10), group(10, 16))
}

/// Where the GPU with this number sits.
pub(crate) fn bus_id(number: usize) -> String {
    format!("0000:{:02X}:00.0", 0x10 + number)
}

/// What the GPU can do. An attribute that isn't listed is 0: it can't.
pub(crate) fn attribute(gpu: &Gpu, attribute: Attribute) -> i32 {
    let cores = thread::available_parallelism().map_or(1, |cores| i32::try_from(cores.get()).unwrap_or(1));
    match attribute {
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK
        | Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X
        | Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y => 1024,
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z => 64,
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X | Attribute::CU_DEVICE_ATTRIBUTE_MAX_PITCH => i32::MAX,
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y | Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z => {
            65_535
        }
        Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE => 32,
        // Few, so that a grid made for the GPU isn't too large for the cores that play it.
        Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT => cores,
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR => 2048,
        Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK => 65_536,
        Attribute::CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT => 3,
        Attribute::CU_DEVICE_ATTRIBUTE_GPU_OVERLAP
        | Attribute::CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS
        | Attribute::CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING
        | Attribute::CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED
        | Attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED
        | Attribute::CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED
        | Attribute::CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED => 1,
        Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => 9,
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID => 0x10 + gpu.ordinal_in_machine(),
        _ => 0,
    }
}

impl Gpu {
    fn ordinal_in_machine(&self) -> i32 {
        i32::try_from(self.number).unwrap_or(i32::MAX)
    }
}

impl PartialEq for Gpu {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
