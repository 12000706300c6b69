//! The few system calls that the standard library does not offer, each behind a safe function.
//!
//! The helper has no dependencies (it is compiled by `build.rs` with the compiler alone), so they are declared here;
//! the constants are those of Linux on x86-64 and aarch64 with 64-bit `long`.

use std::ffi::{CStr, CString, c_char, c_int, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub(crate) const SIGHUP: i32 = 1;
pub(crate) const SIGINT: i32 = 2;
pub(crate) const SIGQUIT: i32 = 3;
pub(crate) const SIGKILL: i32 = 9;
pub(crate) const SIGUSR1: i32 = 10;
pub(crate) const SIGUSR2: i32 = 12;
pub(crate) const SIGTERM: i32 = 15;
pub(crate) const SIGCHLD: i32 = 17;

pub(crate) const ENOENT: i32 = 2;
pub(crate) const EACCES: i32 = 13;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENOTDIR: i32 = 20;
pub(crate) const EISDIR: i32 = 21;
pub(crate) const EPERM: i32 = 1;

const O_WRONLY: c_int = 1;
const O_RDONLY: c_int = 0;
const O_CREAT: c_int = 0o100;
const O_EXCL: c_int = 0o200;
const O_CLOEXEC: c_int = 0o2_000_000;
const O_NONBLOCK: c_int = 0o4_000;
#[cfg(target_arch = "x86_64")]
const O_DIRECTORY: c_int = 0o200_000;
#[cfg(target_arch = "x86_64")]
const O_NOFOLLOW: c_int = 0o400_000;
#[cfg(not(target_arch = "x86_64"))]
const O_DIRECTORY: c_int = 0o40_000;
#[cfg(not(target_arch = "x86_64"))]
const O_NOFOLLOW: c_int = 0o100_000;
const AT_SYMLINK_NOFOLLOW: c_int = 0x100;
const AT_REMOVEDIR: c_int = 0x200;
const SFD_CLOEXEC: c_int = O_CLOEXEC;
const SFD_NONBLOCK: c_int = O_NONBLOCK;
const SIG_BLOCK: c_int = 0;
const SIG_UNBLOCK: c_int = 1;
const WNOHANG: c_int = 1;
const POLLIN: i16 = 1;
const POLLOUT: i16 = 4;

/// glibc's `sigset_t`: 1,024 bits, signal n in bit n - 1.
type SignalSet = [u64; 16];

#[repr(C)]
struct PollFd {
    fd: c_int,
    events: i16,
    revents: i16,
}

unsafe extern "C" {
    fn sigprocmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn signalfd(fd: c_int, mask: *const SignalSet, flags: c_int) -> c_int;
    fn poll(fds: *mut PollFd, count: c_ulong, timeout_millis: c_int) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn openat(dir: c_int, path: *const c_char, flags: c_int, ...) -> c_int;
    fn mkdirat(dir: c_int, path: *const c_char, mode: u32) -> c_int;
    fn unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int;
    fn symlinkat(target: *const c_char, dir: c_int, path: *const c_char) -> c_int;
    fn fchownat(dir: c_int, path: *const c_char, user: u32, group: u32, flags: c_int) -> c_int;
    fn fchown(fd: c_int, user: u32, group: u32) -> c_int;
    fn fchmod(fd: c_int, mode: u32) -> c_int;
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn set_of(signals: &[i32]) -> SignalSet {
    let mut set = [0; 16];
    for signal in signals {
        set[0] |= 1u64 << (signal - 1);
    }
    set
}

/// Blocks the signals and returns a descriptor from which they are read one by one. A blocked signal reaches PID 1 of
/// a container too, which the kernel otherwise shields from every signal without a handler.
pub(crate) fn signals(which: &[i32]) -> io::Result<File> {
    let set = set_of(which);
    // SAFETY: `set` is a full sigset_t and outlives both calls; the descriptor returned is owned by nobody else.
    unsafe {
        check(sigprocmask(SIG_BLOCK, &set, std::ptr::null_mut()))?;
        let fd = check(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK))?;
        Ok(File::from(OwnedFd::from_raw_fd(fd)))
    }
}

/// Lets signals through again; for the child, between fork and exec. Safe to call there: one system call, no memory.
pub(crate) fn unblock(which: &[i32]) -> io::Result<()> {
    let set = set_of(which);
    // SAFETY: `set` is a full sigset_t.
    check(unsafe { sigprocmask(SIG_UNBLOCK, &set, std::ptr::null_mut()) }).map(|_| ())
}

/// The next signal from a descriptor made by [`signals`], if one has come.
pub(crate) fn next_signal(mut from: &File) -> io::Result<Option<i32>> {
    use std::io::Read;
    // signalfd_siginfo is 128 bytes and begins with the number.
    let mut info = [0u8; 128];
    match from.read(&mut info) {
        Ok(128) => Ok(Some(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(e) => Err(e),
    }
}

fn poll_for(fds: &[RawFd], events: i16, timeout_millis: i32) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd> = fds.iter().map(|&fd| PollFd { fd, events, revents: 0 }).collect();
    // SAFETY: the array is as long as said. A negative descriptor in it is ignored by the kernel.
    match check(unsafe { poll(polled.as_mut_ptr(), polled.len() as c_ulong, timeout_millis) }) {
        Ok(_) => Ok(polled.iter().map(|p| p.revents != 0).collect()),
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(vec![false; fds.len()]),
        Err(e) => Err(e),
    }
}

/// Waits until one of the descriptors can be read (or is at its end); says which. A negative one is never ready,
/// a negative timeout waits for ever.
pub(crate) fn readable(fds: &[RawFd], timeout_millis: i32) -> io::Result<Vec<bool>> {
    poll_for(fds, POLLIN, timeout_millis)
}

/// Waits until the descriptor takes bytes.
pub(crate) fn writable(fd: RawFd) -> io::Result<()> {
    poll_for(&[fd], POLLOUT, -1).map(|_| ())
}

/// Sends a signal to a process, or to a group when `pid` is negative. Nobody there is not an error.
pub(crate) fn send_signal(pid: i32, signal: i32) {
    // SAFETY: no memory is involved.
    unsafe {
        kill(pid, signal);
    }
}

/// One child that has ended: its pid and its exit code, with 128 + n for death by signal n.
pub(crate) fn reap() -> Option<(i32, i32)> {
    let mut status: c_int = 0;
    // SAFETY: `status` outlives the call.
    let pid = unsafe { waitpid(-1, &mut status, WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let signal = status & 0x7f;
    Some((pid, if signal == 0 { (status >> 8) & 0xff } else { 128 + signal }))
}

fn text(bytes: &[u8]) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the name holds a zero byte"))
}

fn open(dir: BorrowedFd<'_>, name: &CStr, flags: c_int, mode: u32) -> io::Result<OwnedFd> {
    // SAFETY: `name` ends in a zero byte; the descriptor returned is owned by nobody else.
    unsafe { Ok(OwnedFd::from_raw_fd(check(openat(dir.as_raw_fd(), name.as_ptr(), flags | O_CLOEXEC, mode))?)) }
}

/// Opens a folder below `dir`, never through a link.
pub(crate) fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    open(dir, &text(name)?, O_RDONLY | O_DIRECTORY | O_NOFOLLOW, 0)
}

/// Opens an existing file for reading, never through a link and without waiting for a writer of a pipe.
pub(crate) fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    Ok(File::from(open(dir, &text(name)?, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, 0)?))
}

/// Makes a file that does not exist, with exactly this mode.
pub(crate) fn create_file(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<File> {
    let fd = open(dir, &text(name)?, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode)?;
    // The umask took bits away; the mode of a tree's file does not depend on who writes it.
    // SAFETY: the descriptor is open.
    check(unsafe { fchmod(fd.as_raw_fd(), mode) })?;
    Ok(File::from(fd))
}

/// Makes a folder; false when something of that name is there already.
pub(crate) fn make_dir(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    let name = text(name)?;
    // SAFETY: `name` ends in a zero byte.
    match check(unsafe { mkdirat(dir.as_raw_fd(), name.as_ptr(), 0o755) }) {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(EEXIST) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes a name that is not a folder.
pub(crate) fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let name = text(name)?;
    // SAFETY: `name` ends in a zero byte.
    check(unsafe { unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(|_| ())
}

/// Removes an empty folder.
pub(crate) fn remove_dir(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let name = text(name)?;
    // SAFETY: `name` ends in a zero byte.
    check(unsafe { unlinkat(dir.as_raw_fd(), name.as_ptr(), AT_REMOVEDIR) }).map(|_| ())
}

/// Makes a symbolic link.
pub(crate) fn symlink(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let (target, name) = (text(target)?, text(name)?);
    // SAFETY: both end in a zero byte.
    check(unsafe { symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(|_| ())
}

/// Gives a name (never what a link points to) to a user and group.
pub(crate) fn chown_at(dir: BorrowedFd<'_>, name: &[u8], user: u32, group: u32) -> io::Result<()> {
    let name = text(name)?;
    // SAFETY: `name` ends in a zero byte.
    check(unsafe { fchownat(dir.as_raw_fd(), name.as_ptr(), user, group, AT_SYMLINK_NOFOLLOW) }).map(|_| ())
}

/// Gives an open file or folder to a user and group.
pub(crate) fn chown_open(fd: BorrowedFd<'_>, user: u32, group: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    check(unsafe { fchown(fd.as_raw_fd(), user, group) }).map(|_| ())
}
