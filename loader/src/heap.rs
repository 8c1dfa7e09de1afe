//! The heap of this process.

/// Heaps that the threads of a process share: two, so that none waits long for another.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAPS: libc::c_int = 2;

/// Has all threads allocate from two heaps; to be called before there are any. The C library gives threads heaps of their own, eight for
/// each core, and what one thread freed is of no use to another: of 90,000 tensors, whose headers some threads read and whose bytes
/// others, that is 10 to 25 MB. Does nothing where the C library is another.
pub fn share() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it changes a setting of the allocator, whatever that has allocated before, and takes no pointer.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Gives back to the system what was freed: after the headers of a checkpoint have been read, before its bytes are. Does nothing where the C
/// library is another.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
