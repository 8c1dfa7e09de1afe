//! Where the socket lies, how it comes there and how it goes.

use super::{HoldError, peer::Peer, uid};
use rustix::{
    fs::{CWD, FlockOperation, RenameFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::{
        fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// How long a socket's folder may be locked by others who make sockets in it.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How long somebody who has a full queue is asked whether they are there. They are: this only bounds the asking.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

/// Digits of a plan's digest in the name of its socket.
const DIGITS: usize = 16;

/// How a socket's name ends in the default folder.
const EXTENSION: &str = "sock";

/// A socket that is listened on. Its file is removed when this is dropped.
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of its file.
    file: (u64, u64),
}

/// What lies where a socket is to be.
enum Found {
    Nothing,
    /// A socket that nobody listens on: whoever made it was killed.
    Dead,
}

impl Socket {
    /// Makes a socket at `path` that only this user can reach.
    ///
    /// The permissions of a new socket follow from the umask, which is the whole process' and not to be changed with other
    /// threads about, and a socket that is made first and restricted afterwards can be reached in between. So it is made and
    /// listened on in a new folder that is this user's alone, restricted there, and renamed to where it is to be: who finds it
    /// there finds it whole. The folder is locked meanwhile, so that of two that replace a dead socket one finds the other's.
    pub(super) fn bind(path: &Path) -> Result<Self, HoldError> {
        let failed = |doing| move |source| HoldError::Io { doing, path: path.to_owned(), source };
        // A socket could be renamed to where nobody can reach it.
        SocketAddrUnix::new(path).map_err(io::Error::from).map_err(failed("make the socket"))?;
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let _lock = lock(folder)?;
        let found = look(path)?;
        let mut aside = tempfile::Builder::new();
        aside.prefix(".hold-").permissions(Permissions::from_mode(0o700));
        let aside = aside.tempdir_in(folder).map_err(failed("make a folder beside"))?;
        let made = aside.path().join("s");
        let listener = UnixListener::bind(&made).map_err(failed("make the socket"))?;
        listener.set_nonblocking(true).map_err(failed("make the socket"))?;
        fs::set_permissions(&made, Permissions::from_mode(0o600)).map_err(failed("restrict the socket"))?;
        let meta = fs::symlink_metadata(&made).map_err(failed("make the socket"))?;

        if let Found::Dead = found {
            fs::remove_file(path).map_err(failed("replace the dead socket"))?;
        }
        let renamed = rustix::fs::renameat_with(CWD, &made, CWD, path, RenameFlags::NOREPLACE);
        match renamed {
            // A file system that cannot rename so; nobody else makes sockets here now.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => fs::rename(&made, path),
            other => other.map_err(io::Error::from),
        }
        .map_err(failed("make the socket"))?;
        Ok(Self { listener, path: path.to_owned(), file: (meta.dev(), meta.ino()) })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Somebody may have put something else there.
        let is_it = |meta: fs::Metadata| (meta.dev(), meta.ino()) == self.file;
        if fs::symlink_metadata(&self.path).is_ok_and(is_it) {
            // Nobody is left to tell; what stays is a dead socket, which the next one replaces.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Checks that weights could be held at `path`, before they are loaded: that nothing lies there but perhaps a dead socket.
///
/// # Errors
/// [`HoldError::HeldAlready`] and [`HoldError::NotASocket`].
pub fn check_free(path: &Path) -> Result<(), HoldError> {
    look(path).map(drop)
}

fn look(path: &Path) -> Result<Found, HoldError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(source) => return Err(HoldError::Io { doing: "look at", path: path.to_owned(), source }),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(HoldError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let pid = match dial(path, ANSWER_PATIENCE) {
        Ok(None) => return Ok(Found::Dead),
        Ok(Some(stream)) => Peer::of(&stream).ok().and_then(|peer| peer.pid),
        Err(HoldError::Silent { .. }) => None,
        Err(error) => return Err(error),
    };
    Err(HoldError::HeldAlready { path: path.to_owned(), pid })
}

/// Connects to the socket at `path`; `None` when nobody listens there.
pub(super) fn dial(path: &Path, patience: Duration) -> Result<Option<UnixStream>, HoldError> {
    let failed = |source: io::Error| HoldError::Io { doing: "reach", path: path.to_owned(), source };
    // Connecting to a file is refused as connecting to a dead socket is.
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(HoldError::NotASocket { path: path.to_owned() });
        }
        _ => {}
    }
    let address = SocketAddrUnix::new(path).map_err(|error| failed(error.into()))?;
    let begin = Instant::now();
    loop {
        // Not blocking: with a full queue, connecting would wait for as long as the other side pleases.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let socket = socket.map_err(|error| failed(error.into()))?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(Some(socket.into())),
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
            Err(Errno::AGAIN | Errno::INTR) if begin.elapsed() < patience => thread::sleep(PAUSE),
            Err(Errno::AGAIN | Errno::INTR) => {
                return Err(HoldError::Silent { path: path.to_owned(), waited: begin.elapsed() });
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Locks a folder against others that make sockets in it, until the file is closed.
fn lock(folder: &Path) -> Result<File, HoldError> {
    let failed =
        |source: io::Error| HoldError::Io { doing: "lock the folder", path: folder.to_owned(), source };
    let file = File::open(folder).map_err(failed)?;
    let begin = Instant::now();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::AGAIN | Errno::INTR) if begin.elapsed() < LOCK_PATIENCE => thread::sleep(PAUSE),
            Err(Errno::AGAIN | Errno::INTR) => {
                return Err(HoldError::Locked { path: folder.to_owned(), waited: begin.elapsed() });
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// Where sockets lie when nobody says where: `shardwright` in `runtime_dir` (`XDG_RUNTIME_DIR`, when it is a whole path), or
/// `/tmp/shardwright-UID`.
pub fn default_folder(runtime_dir: Option<&Path>, uid: u32) -> PathBuf {
    match runtime_dir.filter(|folder| folder.is_absolute()) {
        Some(folder) => folder.join("shardwright"),
        None => PathBuf::from(format!("/tmp/shardwright-{uid}")),
    }
}

/// Where the weights of the plan with this digest are held when nobody says where. Makes the folder, for this user alone.
///
/// # Errors
/// [`HoldError::NotOurFolder`] and [`HoldError::OpenFolder`] when the folder is there and not this user's alone.
pub fn default_socket(runtime_dir: Option<&Path>, uid: u32, plan_digest: &str) -> Result<PathBuf, HoldError> {
    let folder = default_folder(runtime_dir, uid);
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            return Err(HoldError::Io { doing: "make the folder", path: folder, source });
        }
        _ => check_private(&folder, uid)?,
    }
    Ok(folder.join(plan_digest.get(..DIGITS).unwrap_or(plan_digest)).with_extension(EXTENSION))
}

/// The sockets in a folder as [`default_folder`] gives it, sorted. None when there is no such folder.
///
/// # Errors
/// [`HoldError::NotOurFolder`] and [`HoldError::OpenFolder`] when it is not this user's alone.
pub fn sockets_in(folder: &Path) -> Result<Vec<PathBuf>, HoldError> {
    let failed = |source: io::Error| HoldError::Io { doing: "look into", path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    check_private(folder, uid())?;
    let mut sockets = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if path.extension().is_some_and(|end| end == EXTENSION)
            && entry.file_type().map_err(failed)?.is_socket()
        {
            sockets.push(path);
        }
    }
    sockets.sort();
    Ok(sockets)
}

/// Checks that `folder` is one, is no link to one, and is for `uid` alone.
fn check_private(folder: &Path, uid: u32) -> Result<(), HoldError> {
    let meta = fs::symlink_metadata(folder);
    let meta = meta.map_err(|source| HoldError::Io { doing: "look at", path: folder.to_owned(), source })?;
    if !meta.is_dir() || meta.uid() != uid {
        return Err(HoldError::NotOurFolder { path: folder.to_owned() });
    }
    let mode = meta.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(HoldError::OpenFolder { path: folder.to_owned(), mode });
    }
    Ok(())
}
