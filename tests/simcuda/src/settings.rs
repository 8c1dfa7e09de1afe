//! What the environment asks for, read once.
//!
//! In: the variables named below. Out: a [`Settings`] that was checked whole. A variable that can't be read makes every call fail
//! with `CUDA_ERROR_UNKNOWN` and says why on stderr: a test with a typo in its settings must not pass.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `SIMCUDA_GPUS` | GPUs of the machine | 4 |
//! | `SIMCUDA_MEMORY` | bytes of each GPU | 1 GiB |
//! | `SIMCUDA_DRIVER` | what `cuDriverGetVersion` says | 12080 |
//! | `SIMCUDA_PTX_VERSION` | newest `.version` that loads | 8.7 |
//! | `SIMCUDA_NCCL_VERSION` | what `ncclGetVersion` says, and what ranks compare | 22703 |
//! | `SIMCUDA_DELAY_US` | longest wait before a piece of a stream's work | 100 |
//! | `SIMCUDA_KERNEL_INSTRUCTIONS` | most instructions of one thread of a kernel | 2^30 |
//! | `SIMCUDA_COUNTS` | where `PREFIX.<pid>` is written at exit | nowhere |
//! | `SIMCUDA_FAULT` | see `fault` | none |
//! | `CUDA_VISIBLE_DEVICES` | as the driver's: numbers or `GPU-…`, up to the first that isn't there | all |

use crate::{
    device::uuid_text,
    fault::{self, Fault},
};
use std::{path::PathBuf, str::FromStr, sync::OnceLock, time::Duration};

/// More GPUs than any machine has; each reserves addresses.
const MOST_GPUS: usize = 16;

/// What the environment asks for.
#[derive(Debug, PartialEq)]
pub(crate) struct Settings {
    /// The machine's numbers of the GPUs that this process sees, in its order.
    pub(crate) visible: Vec<usize>,
    pub(crate) memory_bytes: u64,
    pub(crate) driver_version: i32,
    /// Major and minor.
    pub(crate) ptx_version: (u32, u32),
    pub(crate) nccl_version: u32,
    pub(crate) longest_delay: Duration,
    pub(crate) kernel_instructions: u64,
    pub(crate) counts: Option<PathBuf>,
    pub(crate) faults: Vec<Fault>,
}

/// The process's settings.
///
/// # Panics
/// If a variable can't be read, naming it.
pub(crate) fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| match Settings::read(|name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(error) => panic!("simcuda: {error}"),
    })
}

impl Settings {
    /// Reads all from `variable`.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let gpus = number(&variable, "SIMCUDA_GPUS", 4)?;
        if gpus > MOST_GPUS {
            return Err(format!("SIMCUDA_GPUS={gpus}: {MOST_GPUS} at most"));
        }
        let ptx_version = match variable("SIMCUDA_PTX_VERSION") {
            None => (8, 7),
            Some(text) => ptx_version(&text).ok_or(format!("SIMCUDA_PTX_VERSION={text}: not like 8.7"))?,
        };
        Ok(Self {
            visible: visible(gpus, variable("CUDA_VISIBLE_DEVICES").as_deref()),
            memory_bytes: number(&variable, "SIMCUDA_MEMORY", 1 << 30)?,
            driver_version: number(&variable, "SIMCUDA_DRIVER", 12080)?,
            ptx_version,
            nccl_version: number(&variable, "SIMCUDA_NCCL_VERSION", 22703)?,
            longest_delay: Duration::from_micros(number(&variable, "SIMCUDA_DELAY_US", 100)?),
            kernel_instructions: number(&variable, "SIMCUDA_KERNEL_INSTRUCTIONS", 1 << 30)?,
            counts: variable("SIMCUDA_COUNTS").filter(|prefix| !prefix.is_empty()).map(PathBuf::from),
            faults: fault::parse(&variable("SIMCUDA_FAULT").unwrap_or_default())?,
        })
    }
}

/// `8.7` as two numbers.
pub(crate) fn ptx_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn number<T: FromStr>(
    variable: impl Fn(&str) -> Option<String>,
    name: &str,
    default: T,
) -> Result<T, String> {
    match variable(name) {
        None => Ok(default),
        Some(text) => text.trim().parse().map_err(|_| format!("{name}={text}: not a number that fits")),
    }
}

/// The driver stops at the first that isn't there, and takes none if one comes twice.
fn visible(gpus: usize, list: Option<&str>) -> Vec<usize> {
    let Some(list) = list else { return (0..gpus).collect() };
    let find = |name: &str| match name.strip_prefix("GPU-") {
        Some(_) => (0..gpus).find(|gpu| uuid_text(*gpu).starts_with(name)),
        None => name.parse().ok().filter(|gpu| *gpu < gpus),
    };
    let seen: Vec<usize> = list.split(',').map_while(|name| find(name.trim())).collect();
    let twice = seen.iter().enumerate().any(|(at, gpu)| seen[..at].contains(gpu));
    if twice { Vec::new() } else { seen }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_silent_environment_gives_the_defaults() {
        let settings = read(&[]).unwrap();
        assert_eq!((settings.visible.len(), settings.memory_bytes), (4, 1 << 30));
        assert_eq!((settings.driver_version, settings.ptx_version), (12080, (8, 7)));
        assert_eq!(settings.counts, None);
    }

    #[test]
    fn visible_devices_end_at_the_first_unknown() {
        let seen = |list| read(&[("CUDA_VISIBLE_DEVICES", list)]).unwrap().visible;
        assert_eq!(seen("2,0"), [2, 0]);
        assert_eq!(seen("1,9,0"), [1]);
        assert_eq!(seen("-1"), [0; 0]);
        assert_eq!(seen(""), [0; 0]);
        assert_eq!(seen("1,1"), [0; 0]);
        assert_eq!(seen(&uuid_text(3)), [3]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (name, value) in [("SIMCUDA_MEMORY", "1GB"), ("SIMCUDA_GPUS", "99"), ("SIMCUDA_PTX_VERSION", "8")]
        {
            assert!(read(&[(name, value)]).unwrap_err().contains(name));
        }
    }
}
