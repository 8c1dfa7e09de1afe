//! Finding NCCL on this machine, and opening it.

use crate::{
    CallError, Failure, OpenError, Refusal, UniqueId, Version,
    sys::{self, Functions, ResultCode},
};
use std::{
    ffi::{OsStr, c_char, c_int},
    mem::ManuallyDrop,
    path::Path,
    sync::Arc,
};

/// Names that the dynamic linker is asked for: first the one that distributions and Python wheels install.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// An NCCL that is open and new enough. Cheap to clone; communicators keep one.
///
/// Once opened it stays in the process until that ends: NCCL starts threads of its own, whose code must not go away.
#[derive(Debug, Clone)]
pub struct Library {
    opened: Arc<Opened>,
}

#[derive(Debug)]
struct Opened {
    name: String,
    version: Version,
    functions: Functions,
    refused: Vec<Refusal>,
}

impl Library {
    /// Opens the first NCCL of: `explicit`, a path or a name that the dynamic linker can find, where one is given;
    /// `libnccl.so.2`; `libnccl.so`. Neither CUDA nor a GPU is needed for this much.
    ///
    /// This crate reads no environment: a caller who honours `NCCL_LIBRARY` passes it here, and announces what
    /// [`refused`](Self::refused) tells.
    ///
    /// # Errors
    /// [`OpenError::NotFound`] with every name that was tried. A library that opens but will not do ends the search:
    /// [`OpenError::TooOld`], [`OpenError::MissingSymbol`], [`OpenError::NoVersion`].
    pub fn open(explicit: Option<&Path>) -> Result<Self, OpenError> {
        let mut tried = Vec::new();
        for name in explicit.map(Path::as_os_str).into_iter().chain(NAMES.map(OsStr::new)) {
            let shown = name.to_string_lossy().into_owned();
            // SAFETY: runs the initialisers of whatever library has that name. The caller, or who installed it, says that it
            // is NCCL, whose initialisers ask nothing of the process.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => return Self::check(library, shown, tried),
                Err(error) => tried.push(Refusal { name: shown, reason: with_cause(&error) }),
            }
        }
        Err(OpenError::NotFound { tried })
    }

    /// Asks for the version, and looks up the rest of the functions if that will do.
    fn check(library: libloading::Library, name: String, refused: Vec<Refusal>) -> Result<Self, OpenError> {
        let library = ManuallyDrop::new(library);
        // SAFETY: all NCCL 2 have this function with this signature.
        let get_version = unsafe { sys::symbol::<sys::GetVersion>(&library, "ncclGetVersion") };
        let Some(get_version) = get_version else {
            return Err(OpenError::MissingSymbol { name, symbol: "ncclGetVersion" });
        };
        // SAFETY: the same.
        let version = unsafe { version_of(get_version, &name) }?;
        // SAFETY: it says that it is an NCCL whose header `sys` was written from, or a newer one of the same major version.
        match unsafe { Functions::resolve(&library) } {
            Ok(functions) => Ok(Self { opened: Arc::new(Opened { name, version, functions, refused }) }),
            Err(symbol) => Err(OpenError::MissingSymbol { name, symbol }),
        }
    }

    /// An NCCL that the program found by other means than a file of its own: linked into it, or made for a test.
    ///
    /// # Errors
    /// [`OpenError::TooOld`], [`OpenError::NoVersion`].
    ///
    /// # Safety
    /// The functions do what NCCL's of the same names do, for as long as the process lives.
    pub unsafe fn from_functions(functions: Functions) -> Result<Self, OpenError> {
        let name = "the NCCL of this program".to_owned();
        // SAFETY: the caller says that it is NCCL's.
        let version = unsafe { version_of(functions.get_version, &name) }?;
        Ok(Self { opened: Arc::new(Opened { name, version, functions, refused: Vec::new() }) })
    }

    /// Which release this is. Ranks whose releases differ must not form a communicator.
    #[must_use]
    pub fn version(&self) -> Version {
        self.opened.version
    }

    /// The name or path under which it was found.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.opened.name
    }

    /// Names that were tried before [`name`](Self::name), in vain.
    #[must_use]
    pub fn refused(&self) -> &[Refusal] {
        &self.opened.refused
    }

    /// The functions themselves, for what this crate has no safe form of.
    #[must_use]
    pub fn functions(&self) -> &Functions {
        &self.opened.functions
    }

    /// Makes the name of a new communicator. One rank does this, and brings it to the others by other means; it must live
    /// until all are initialised.
    ///
    /// # Errors
    /// [`CallError::Failed`], for example where there is no network interface to listen on.
    pub fn unique_id(&self) -> Result<UniqueId, CallError> {
        let mut id = sys::RawUniqueId { internal: [0; sys::UNIQUE_ID_BYTES] };
        // SAFETY: writes one identifier.
        let code = unsafe { (self.functions().get_unique_id)(&raw mut id) };
        self.done("ncclGetUniqueId", code, std::ptr::null_mut())?;
        Ok(UniqueId::from_raw(id))
    }

    /// Whether a call came to an end well. `comm` is asked for its last message; null: any.
    pub(crate) fn done(
        &self,
        call: &'static str,
        code: ResultCode,
        comm: sys::Comm,
    ) -> Result<(), CallError> {
        if code == ResultCode::SUCCESS { Ok(()) } else { Err(self.failure(call, code, comm).into()) }
    }

    /// All that NCCL can tell about a failed call.
    pub(crate) fn failure(&self, call: &'static str, code: ResultCode, comm: sys::Comm) -> Failure {
        // SAFETY: takes any number, and gives null or a constant text. It is asked for known numbers only: what older
        // releases do with others is not written anywhere.
        let meaning = code.name().map(|_| unsafe { (self.functions().get_error_string)(code) });
        // SAFETY: `comm` is null or a live communicator.
        let message = unsafe { (self.functions().get_last_error)(comm) };
        // SAFETY: null, or a text of the library that lives as long as the library does, which is never unloaded.
        let [meaning, last_message] =
            [meaning.unwrap_or(std::ptr::null()), message].map(|text| unsafe { copied(text) });
        Failure { call, code, meaning, last_message }
    }
}

/// The release, if it is new enough.
///
/// # Safety
/// `get_version` is NCCL's.
unsafe fn version_of(get_version: sys::GetVersion, name: &str) -> Result<Version, OpenError> {
    let mut number: c_int = -1;
    // SAFETY: writes one int.
    let code = unsafe { get_version(&raw mut number) };
    let found = (code == ResultCode::SUCCESS).then(|| Version::from_code(number)).flatten();
    let name = name.to_owned();
    match found {
        None => Err(OpenError::NoVersion { name, code, number }),
        Some(found) if found < Version::LEAST => {
            Err(OpenError::TooOld { name, found, least: Version::LEAST })
        }
        Some(version) => Ok(version),
    }
}

/// Most bytes of a text that are read: the size of NCCL's buffer for its last message.
const MOST_TEXT_BYTES: usize = 1024;

/// A text of NCCL, if it says anything.
///
/// # Safety
/// `text` is null, or points to bytes that end with a zero or go on for [`MOST_TEXT_BYTES`]. Other threads may write them:
/// each byte is read once, and volatile.
unsafe fn copied(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    let mut bytes = Vec::new();
    while bytes.len() < MOST_TEXT_BYTES {
        // SAFETY: no zero byte came before this one, so the text goes on.
        match unsafe { text.add(bytes.len()).cast::<u8>().read_volatile() } {
            0 => break,
            byte => bytes.push(byte),
        }
    }
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// An error of the dynamic linker, which often stands in the cause.
fn with_cause(error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
