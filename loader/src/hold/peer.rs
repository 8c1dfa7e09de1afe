//! Who is at the other end of a Unix socket: the kernel says so, whatever they say themselves.

use std::{
    io, mem,
    os::{fd::AsRawFd, unix::net::UnixStream},
};

/// The process at the other end, as it was when it connected or began to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    /// Its number here; a process of another container that this one cannot see has none.
    pub(super) pid: Option<u32>,
    /// The user it runs as.
    pub(super) uid: u32,
}

impl Peer {
    /// Asks the kernel. Not with `rustix`, whose type has no place for the 0 that stands for a process nobody can see here.
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let mut found = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let size = mem::size_of::<libc::ucred>();
        let mut len = libc::socklen_t::try_from(size).unwrap_or(0);
        // SAFETY: the descriptor is open for as long as the stream is borrowed; the pointers are good for as many bytes as `len`
        // says, and any bytes make a `ucred`.
        let answer = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut found).cast(),
                &raw mut len,
            )
        };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
        let pid = u32::try_from(found.pid).ok().filter(|&pid| pid != 0);
        Ok(Self { pid, uid: found.uid })
    }

    /// Whether it is this user's, or the administrator's.
    pub(super) fn is_trusted(self) -> bool {
        self.uid == uid() || self.uid == 0
    }
}

/// The user this process runs as.
pub fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
