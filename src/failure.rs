//! From typed errors to a message and an exit code: the only place that knows both.

use crate::{CallError, picture::OverlayError};
use shardwright_loader::{
    collective::CollectiveError,
    detect::DetectError,
    device::{CudaError, DeviceError},
    export::ExportError as LayoutError,
    hold::{DocumentError, HoldError},
    launch::{Refusal, RendezvousError},
    load::LoadError,
    manifest::ManifestError,
    schedule::ScheduleError,
    source::SourceError,
    verify::VerifyError,
};
use shardwright_planner::{
    adapter::AdapterError,
    checkpoint::CatalogError,
    cost::FitError,
    engine::EngineError,
    export::ExportError,
    layouts::LayoutsError,
    mesh::MeshError,
    model::ConfigError,
    placement::PlacementError,
    plan::{PlanError, StaleError},
    planning::BuildError,
    quantisation::QuantisationError,
    rules::{FamilyError, UserRulesError},
    topology::{TopologyError, import::ImportError},
};
use std::{fmt, io, process::ExitCode};

/// Why a command did not end well. The numbers are the exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The reader of stdout is gone: nothing failed, and nobody is left to tell.
    ReaderGone = 0,
    /// The answer is no: it does not verify, does not fit, is no plan.
    No = 1,
    /// Wrong usage.
    Usage = 2,
    /// Bad input: a corrupt checkpoint, a malformed topology.
    BadInput = 3,
    /// The environment failed: no such device, out of memory, a peer lost.
    Environment = 4,
}

/// A message for people, with its exit code.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        let text = failure.to_string();
        let message = text.strip_prefix("error: ").unwrap_or(&text).trim_end().to_owned();
        Self { code: failure.kind as u8, message }
    }
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), help: None }
    }

    /// Of a text that may have its help behind it, on a line of its own.
    pub(crate) fn of_text(kind: Kind, text: &str) -> Self {
        match text.split_once("\nhelp: ") {
            Some((message, help)) => Self::new(kind, message).with_help(help.to_owned()),
            None => Self::new(kind, text),
        }
    }

    pub(crate) fn with_help(self, help: impl Into<Option<String>>) -> Self {
        Self { help: help.into(), ..self }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == Kind::ReaderGone {
            return Ok(());
        }
        // Further lines stand under the first.
        writeln!(f, "error: {}", self.message.replace('\n', "\n       "))?;
        match &self.help {
            Some(help) => writeln!(f, "help: {}", help.replace('\n', "\n      ")),
            None => Ok(()),
        }
    }
}

/// Writing to stdout failed.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::new(Kind::ReaderGone, ""),
            _ => Self::new(Kind::Environment, format!("cannot write the output: {error}")),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        io::Error::from(error).into()
    }
}

impl From<CatalogError> for Failure {
    fn from(error: CatalogError) -> Self {
        Self::new(Kind::BadInput, &error).with_help(error.help())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Kind::BadInput, &error).with_help(error.help())
    }
}

impl From<TopologyError> for Failure {
    fn from(error: TopologyError) -> Self {
        Self::new(Kind::BadInput, &error).with_help(error.help())
    }
}

impl From<DetectError> for Failure {
    fn from(error: DetectError) -> Self {
        Self::new(Kind::Environment, &error).with_help(error.help().to_owned())
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        Self::new(Kind::BadInput, &error).with_help(error.help())
    }
}

impl From<OverlayError> for Failure {
    fn from(error: OverlayError) -> Self {
        Self::new(Kind::No, &error).with_help(error.help().to_owned())
    }
}

impl From<UserRulesError> for Failure {
    fn from(error: UserRulesError) -> Self {
        Self::new(Kind::BadInput, &error).with_help(error.help().to_owned())
    }
}

impl From<QuantisationError> for Failure {
    fn from(error: QuantisationError) -> Self {
        Self::new(Kind::BadInput, &error).with_help(error.help().to_owned())
    }
}

impl From<FamilyError> for Failure {
    fn from(error: FamilyError) -> Self {
        Self::new(Kind::BadInput, error)
    }
}

impl From<MeshError> for Failure {
    fn from(error: MeshError) -> Self {
        Self::new(Kind::Usage, error)
    }
}

impl From<PlacementError> for Failure {
    fn from(error: PlacementError) -> Self {
        Self::new(Kind::No, &error).with_help(error.help())
    }
}

impl From<LayoutsError> for Failure {
    fn from(error: LayoutsError) -> Self {
        let kind = match &error {
            LayoutsError::Rules(rules) if rules.is_bad_input() => Kind::BadInput,
            LayoutsError::Build(build) if build.is_bad_input() => Kind::BadInput,
            LayoutsError::Facts(_) => Kind::BadInput,
            LayoutsError::TooLong { .. } => Kind::Usage,
            _ => Kind::No,
        };
        Self::new(kind, &error).with_help(error.help())
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        let kind = match error {
            BuildError::Weights { .. } => Kind::Usage,
            _ if error.is_bad_input() => Kind::BadInput,
            _ => Kind::No,
        };
        Self::new(kind, &error).with_help(error.help())
    }
}

impl From<AdapterError> for Failure {
    fn from(error: AdapterError) -> Self {
        let kind = if error.is_bad_input() { Kind::BadInput } else { Kind::No };
        Self::new(kind, &error).with_help(error.help())
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        Self::new(kind_of_plan(&error), &error).with_help(error.help())
    }
}

fn kind_of_plan(error: &PlanError) -> Kind {
    match error {
        PlanError::Read { .. } => Kind::BadInput,
        _ => Kind::No,
    }
}

impl From<ExportError> for Failure {
    fn from(error: ExportError) -> Self {
        let kind = match &error {
            ExportError::Plan { source, .. } => kind_of_plan(source),
            ExportError::Read { .. } | ExportError::Malformed { .. } | ExportError::Files { .. } => {
                Kind::BadInput
            }
            ExportError::RankMissing { .. }
            | ExportError::OtherExport { .. }
            | ExportError::ForEngine { .. }
            | ExportError::Changed { .. }
            | ExportError::Stale { .. } => Kind::No,
        };
        Self::new(kind, &error).with_help(error.help())
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let kind = match error {
            EngineError::NoSuchEngine { .. } => Kind::Usage,
            _ => Kind::No,
        };
        Self::new(kind, &error).with_help(error.help())
    }
}

impl From<LayoutError> for Failure {
    fn from(error: LayoutError) -> Self {
        Self::new(Kind::No, error)
    }
}

impl From<FitError> for Failure {
    fn from(error: FitError) -> Self {
        Self::new(Kind::No, &error).with_help(error.help())
    }
}

impl From<StaleError> for Failure {
    fn from(error: StaleError) -> Self {
        Self::new(Kind::No, &error).with_help(error.help())
    }
}

impl From<ScheduleError> for Failure {
    fn from(error: ScheduleError) -> Self {
        let kind = match error {
            ScheduleError::NoSuchRank { .. } => Kind::Usage,
            _ => Kind::No,
        };
        Self::new(kind, error)
    }
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self::new(Kind::Environment, &error).with_help(device_help(&error).map(str::to_owned))
    }
}

/// What to do about a device that fails.
fn device_help(error: &DeviceError) -> Option<&'static str> {
    let host = "--device host loads into this host's memory";
    match error {
        DeviceError::OutOfMemory { .. } => Some("free some memory, or load fewer ranks here with --rank"),
        DeviceError::Cuda(CudaError::NoLibrary) => Some(host),
        DeviceError::Cuda(CudaError::NoSymbol { .. } | CudaError::TooOld { .. }) => {
            Some("update the NVIDIA driver; --device host loads into this host's memory")
        }
        DeviceError::Cuda(CudaError::Kernel { .. }) => {
            Some("update the NVIDIA driver, or load without verifying: --verify off")
        }
        DeviceError::Cuda(CudaError::Call { name, .. }) => match name.as_str() {
            "CUDA_ERROR_NO_DEVICE" => Some(host),
            "CUDA_ERROR_OUT_OF_MEMORY" => Some("free some of the GPU's memory; `nvidia-smi` says who has it"),
            _ => None,
        },
        DeviceError::NcclDiffers { .. } => {
            Some("let all ranks find the same release: NCCL_LIBRARY names a file")
        }
        _ => None,
    }
}

/// What to do about ranks that do not get on together.
fn collective_help(error: &CollectiveError) -> Option<&'static str> {
    match error {
        CollectiveError::Stalled { .. } => Some("--patience SECONDS waits longer for ranks that are slow"),
        CollectiveError::PeerLost { reason, .. } if reason.contains(": NCCL: ") => Some(
            "NCCL_DEBUG=INFO on all ranks shows what each of them does; --meet-within and --patience wait longer",
        ),
        _ => None,
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        let (kind, help) = match &error {
            LoadError::Schedule(ScheduleError::NoSuchRank { .. }) | LoadError::Lent(_) => (Kind::Usage, None),
            LoadError::Schedule(_) | LoadError::Verify { source: VerifyError::OtherPlan { .. }, .. } => {
                (Kind::No, Some("give every rank the same plan"))
            }
            LoadError::Verify { source: VerifyError::OtherExtent { .. }, .. } => {
                (Kind::No, Some("give every rank the same --verify"))
            }
            LoadError::Verify {
                source: VerifyError::OtherManifest { .. } | VerifyError::OtherSums { .. },
                ..
            } => (Kind::No, Some("give every rank the same --manifest, or none")),
            LoadError::Verify { source: VerifyError::OtherContents { .. }, .. } => (
                Kind::No,
                Some("give every rank the same checkpoint; --manifest finds which is the right one"),
            ),
            LoadError::Thread { .. } => {
                (Kind::Environment, Some("--threads takes fewer; `ulimit -u` says how many there may be"))
            }
            LoadError::Source(source) => {
                let kind = match source {
                    SourceError::Io { .. }
                    | SourceError::Read { .. }
                    | SourceError::TooManyMappings { .. } => Kind::Environment,
                    _ => Kind::BadInput,
                };
                (kind, source.help())
            }
            LoadError::Device { source, .. }
            | LoadError::Verify { source: VerifyError::Device(source), .. } => {
                (Kind::Environment, device_help(source))
            }
            _ => (Kind::Environment, error.collective().and_then(collective_help)),
        };
        let message = error.collective().map_or_else(|| error.to_string(), ToString::to_string);
        let failure = Self::of_text(kind, &message);
        match help {
            Some(help) => failure.with_help(help.to_owned()),
            None => failure,
        }
    }
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Self {
        let help = match error {
            ManifestError::Read { .. } => return Self::new(Kind::BadInput, error.to_string()),
            ManifestError::Malformed { .. } => "write it with shardwright plan --fingerprint FILE",
            ManifestError::OtherCheckpoint { .. } => "give the manifest that was made of this checkpoint",
            ManifestError::OtherDtype { .. } => {
                "write one for this plan: shardwright plan --fingerprint FILE, with the plan's --dtype"
            }
        };
        Self::new(Kind::BadInput, error.to_string()).with_help(help.to_owned())
    }
}

impl From<RendezvousError> for Failure {
    fn from(error: RendezvousError) -> Self {
        let (kind, help) = match &error {
            RendezvousError::Refused(Refusal::Plan { .. }) => {
                (Kind::No, Some("give every rank the same plan"))
            }
            RendezvousError::Refused(Refusal::Twice { .. }) => (
                Kind::Usage,
                Some(
                    "start each rank once; if another job meets at this port, SHARDWRIGHT_PORT takes another",
                ),
            ),
            RendezvousError::Refused(Refusal::World { .. } | Refusal::Range { .. })
            | RendezvousError::Rank { .. }
            | RendezvousError::TooLong { .. } => (Kind::Usage, None),
            RendezvousError::Refused(Refusal::Missing { .. }) | RendezvousError::Unreached { .. } => (
                Kind::Environment,
                Some("--meet-within SECONDS waits longer; --rendezvous HOST:PORT says where to meet"),
            ),
            RendezvousError::Listen { .. } => {
                (Kind::Environment, Some("--rendezvous HOST:PORT, or SHARDWRIGHT_PORT, takes another port"))
            }
            _ => (Kind::Environment, None),
        };
        let failure = Self::of_text(kind, &error.to_string());
        match help {
            Some(help) => failure.with_help(help.to_owned()),
            None => failure,
        }
    }
}

impl From<HoldError> for Failure {
    fn from(error: HoldError) -> Self {
        let kind = match &error {
            HoldError::Differs { .. } | HoldError::DoesNotVerify { .. } => Kind::No,
            HoldError::NoSuchRank { .. } => Kind::Usage,
            // Another version is no malformed one, but as little can be done with it.
            HoldError::Malformed { source: DocumentError::Protocol { .. }, .. } => Kind::Environment,
            HoldError::Malformed { .. } | HoldError::NotASocket { .. } => Kind::BadInput,
            _ => Kind::Environment,
        };
        Self::new(kind, &error).with_help(error.help().map(str::to_owned))
    }
}
