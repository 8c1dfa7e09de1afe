//! Modules and their functions: text that was loaded, and kernels that are launched from it.

use crate::{
    Answer,
    context::{self, Context},
    device::Gpu,
    fault,
    handles::Handles,
    interpret::{self, Grid, Region},
    lock::lock,
    memory,
    ptx::{self, Kernel, Program, Refusal},
    settings::settings,
    stream::Stream,
};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute as Attribute, CUmodule, CUresult};
use std::sync::Arc;

struct Module {
    context: Arc<Context>,
    program: Program,
}

/// A function of a module.
pub(crate) struct Function {
    module: Arc<Module>,
    /// Which of its kernels.
    at: usize,
}

static MODULES: Handles<Module> = Handles::new(4);
static FUNCTIONS: Handles<Function> = Handles::new(5);

/// Loads PTX text, and says in the log's words why it can't.
pub(crate) fn load(text: &str) -> (Answer<CUmodule>, String) {
    let context = match context::current() {
        Ok(context) => context,
        Err(code) => return (Err(code), String::new()),
    };
    match ptx::load(text, settings().ptx_version) {
        Ok(program) => (Ok(MODULES.add(|_| Arc::new(Module { context, program })).0), String::new()),
        Err(refusal) => {
            let code = match refusal {
                Refusal::Version(_) => CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
                Refusal::Invalid(_) => CUresult::CUDA_ERROR_INVALID_PTX,
            };
            (Err(code), refusal.to_string())
        }
    }
}

/// A function by its name.
pub(crate) fn function(module: CUmodule, name: &str) -> Answer<CUfunction> {
    context::current()?;
    let module = MODULES.find(module).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
    let at = module.program.kernels.iter().position(|kernel| kernel.name == name);
    let at = at.ok_or(CUresult::CUDA_ERROR_NOT_FOUND)?;
    Ok(FUNCTIONS.add(|_| Arc::new(Function { module, at })).0)
}

/// Ends a module and its functions. What was launched still runs.
pub(crate) fn unload(module: CUmodule) -> Answer {
    let module = MODULES.remove(module).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
    FUNCTIONS.remove_all(|function| Arc::ptr_eq(&function.module, &module));
    module.context.check()
}

/// The function of a handle, in the current context.
pub(crate) fn find(handle: CUfunction) -> Answer<Arc<Function>> {
    context::current()?;
    FUNCTIONS.find(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)
}

impl Function {
    /// What is launched.
    pub(crate) fn kernel(&self) -> &Kernel {
        &self.module.program.kernels[self.at]
    }

    /// What it needs. Registers are those of the text, of which a real driver makes fewer.
    pub(crate) fn attribute(&self, attribute: Attribute) -> Answer<i32> {
        let number = |count: usize| Ok(i32::try_from(count).unwrap_or(i32::MAX));
        match attribute {
            Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK => number(self.kernel().most_threads as usize),
            Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS => number(self.kernel().registers.min(255)),
            Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION => {
                let (major, minor) = self.module.program.version;
                number((major * 10 + minor) as usize)
            }
            Attribute::CU_FUNC_ATTRIBUTE_BINARY_VERSION => Ok(90),
            Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
            | Attribute::CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES
            | Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES => Ok(0),
            _ => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
        }
    }

    /// Runs it later, on `stream`, which is of the same context.
    pub(crate) fn launch(self: Arc<Self>, stream: &Arc<Stream>, grid: Grid, parameters: Vec<u8>) -> Answer {
        if !Arc::ptr_eq(&stream.context, &self.module.context) {
            return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        let within = |sizes: [u32; 3], most: [u32; 3]| {
            sizes.iter().zip(most).all(|(size, most)| (1..=most).contains(size))
        };
        let threads: u64 = grid.threads.iter().map(|size| u64::from(*size)).product();
        let fits = within(grid.blocks, [i32::MAX.cast_unsigned(), 65_535, 65_535])
            && within(grid.threads, [1024, 1024, 64])
            && threads <= 1024;
        if !fits {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if threads > u64::from(self.kernel().most_threads) {
            return Err(CUresult::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
        }
        let gpu = stream.context.gpu;
        let number = {
            let mut counts = lock(&gpu.counts);
            counts.kernels += 1;
            counts.kernels
        };
        if fault::strikes("kill-at-kernel", gpu.number, number) {
            fault::signal_self(libc::SIGKILL);
        }
        let work = move |_: &Context| {
            if fault::strikes("kernel-error", gpu.number, number) {
                return Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            }
            // Kept until the kernel has ended: memory that is freed meanwhile stays valid for us.
            let allocations = memory::snapshot(gpu);
            let region = |allocation: &Arc<memory::Allocation>| Region {
                address: allocation.address as u64,
                len: allocation.len as u64,
                bytes: allocation.pointer(),
            };
            let regions: Vec<Region> = allocations.iter().map(region).collect();
            let limit = settings().kernel_instructions;
            // SAFETY: allocations don't overlap, come by address, and live in `allocations`; only pointers get at them.
            let ran = unsafe { interpret::run(self.kernel(), grid, &parameters, &regions, limit) };
            ran.map(drop).map_err(interpret::Trap::code)
        };
        stream.enqueue(work).map(drop)
    }
}

/// Ends the modules of a context that ends, and says how many there were.
pub(crate) fn end_all(context: &Arc<Context>) -> usize {
    FUNCTIONS.remove_all(|function| Arc::ptr_eq(&function.module.context, context));
    MODULES.remove_all(|module| Arc::ptr_eq(&module.context, context)).len()
}

/// How many of `gpu` are alive.
pub(crate) fn alive_on(gpu: &Gpu) -> usize {
    MODULES.all(|module| module.context.gpu == gpu).len()
}
