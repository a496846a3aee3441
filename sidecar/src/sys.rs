//! The system calls that neither std nor socket2 wraps, and the only unsafe
//! code of the sidecar.
//!
//! Each function is a thin, safe form of one call; when to call it, and in
//! which process or thread, is the callers' business. Functions that depend on
//! being single-threaded say so and check it where the kernel does not.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_int, c_void};
use std::io::{self, Read, Write};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use socket2::SockAddr;
use tokio::io::unix::AsyncFd;

fn checked(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The effective user and group of this process.
pub(crate) fn effective_ids() -> (u32, u32) {
    // SAFETY: neither call has preconditions or can fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// How long a thread runs at a stretch that asks to be let in at once, in
/// nanoseconds: less than the scheduler's own slice on any machine (0.7 ms and
/// more, with the number of processors), and long enough for some requests.
const SHORT_SLICE: u64 = 500_000;

/// Lets the calling thread run as soon as it wakes, before threads of the same
/// priority that have run for a while, at the price of shorter stretches; its
/// share of the processor stays the same. Heeded by Linux 6.12 and later, which
/// schedule by earliest eligible virtual deadline (`sched_runtime` of
/// sched_setattr(2)); older kernels accept and ignore it.
///
/// # Errors
/// If the kernel, or a seccomp profile, refuses.
pub(crate) fn shorten_slice() -> io::Result<()> {
    // SAFETY: all zeroes is a valid value of this structure of numbers.
    let mut attributes: libc::sched_attr = unsafe { mem::zeroed() };
    let size = u32::try_from(size_of::<libc::sched_attr>()).map_err(io::Error::other)?;
    let calling_thread: libc::pid_t = 0;
    // SAFETY: the kernel writes at most `size` bytes, which is the structure's size.
    let got =
        unsafe { libc::syscall(libc::SYS_sched_getattr, calling_thread, &raw mut attributes, size, 0_u32) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // Whoever chose another policy has decided already.
    if attributes.sched_policy != libc::SCHED_OTHER.unsigned_abs() {
        return Ok(());
    }
    attributes.sched_runtime = SHORT_SLICE;
    // SAFETY: the kernel reads the structure, as much of it as its field `size` says.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, calling_thread, &raw const attributes, 0_u32) };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A kind of namespace to leave or enter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// Users and capabilities. Only a single-threaded process can leave its own.
    User,
    /// Mounts, of the calling thread.
    Mount,
    /// Network, of the calling thread.
    Net,
}

impl Namespace {
    const fn flag(self) -> c_int {
        match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Net => libc::CLONE_NEWNET,
        }
    }
}

/// Moves the calling thread (for [`Namespace::User`]: the process) into a new namespace.
pub(crate) fn unshare(kind: Namespace) -> io::Result<()> {
    // SAFETY: takes no pointers; memory and descriptors stay shared.
    checked(unsafe { libc::unshare(kind.flag()) }).map(drop)
}

/// Moves the calling thread into the namespace that `fd` is open on.
pub(crate) fn enter(fd: BorrowedFd<'_>, kind: Namespace) -> io::Result<()> {
    // SAFETY: `fd` is an open descriptor for the duration of the call; a
    // descriptor of another kind is an error, not undefined behaviour.
    checked(unsafe { libc::setns(fd.as_raw_fd(), kind.flag()) }).map(drop)
}

/// Which side of a fork the caller is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The process that forked.
    Parent,
    /// The new process.
    Child,
}

/// Makes a process that is no child of this one: it forks twice, and the
/// process between ends at once.
///
/// # Errors
/// If the process has more than one thread (the new one could dead-lock on
/// their locks), or if it cannot be made.
pub(crate) fn fork_detached() -> io::Result<Side> {
    single_threaded()?;
    // SAFETY: the process has one thread, so no lock is held by a thread that
    // the child lacks; the child may do whatever this process could.
    let middle = checked(unsafe { libc::fork() })?;
    if middle == 0 {
        // SAFETY: as above. `_exit` then runs no destructors that belong to the parent.
        match unsafe { libc::fork() } {
            0 => return Ok(Side::Child),
            // SAFETY: ends the process between; see above.
            pid => unsafe { libc::_exit(i32::from(pid < 0)) },
        }
    }
    if wait(middle)? == 0 { Ok(Side::Parent) } else { Err(io::Error::other("the second fork failed")) }
}

/// Runs `work` in a forked child, whose namespaces end with it, and gives the
/// child's result; the outer error is one of the fork itself.
///
/// # Errors
/// As [`fork_detached`], or if the child was killed.
pub(crate) fn in_child(work: impl FnOnce() -> Result<(), String>) -> io::Result<Result<(), String>> {
    single_threaded()?;
    let (mut reader, mut writer) = io::pipe()?;
    // SAFETY: one thread, as above.
    let pid = checked(unsafe { libc::fork() })?;
    if pid == 0 {
        let result = work();
        if let Err(reason) = &result {
            let _ = writer.write_all(reason.as_bytes());
        }
        // SAFETY: ends the child without running the parent's destructors.
        unsafe { libc::_exit(i32::from(result.is_err())) }
    }
    drop(writer);
    let mut reason = String::new();
    reader.read_to_string(&mut reason)?;
    match wait(pid)? {
        0 => Ok(Ok(())),
        1 => Ok(Err(reason)),
        _ => Err(io::Error::other("the child was killed")),
    }
}

/// The exit status of the child `pid`; 256 if it was killed.
fn wait(pid: libc::pid_t) -> io::Result<c_int> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        match checked(unsafe { libc::waitpid(pid, &raw mut status, 0) }) {
            Ok(_) if libc::WIFEXITED(status) => return Ok(libc::WEXITSTATUS(status)),
            Ok(_) => return Ok(256),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn single_threaded() -> io::Result<()> {
    match std::fs::read_dir("/proc/self/task")?.count() {
        1 => Ok(()),
        threads => Err(io::Error::other(format!("the process has {threads} threads; it must have one here"))),
    }
}

/// Starts a session without a terminal.
pub(crate) fn new_session() -> io::Result<()> {
    // SAFETY: no preconditions.
    checked(unsafe { libc::setsid() }).map(drop)
}

/// Ignores `signals` from now on.
pub(crate) fn ignore_signals(signals: &[c_int]) {
    for signal in signals {
        // SAFETY: SIG_IGN is a valid disposition; no handler code is installed.
        unsafe { libc::signal(*signal, libc::SIG_IGN) };
    }
}

/// Makes descriptor number `target` a copy of `source`.
pub(crate) fn replace_descriptor(source: BorrowedFd<'_>, target: c_int) -> io::Result<()> {
    // SAFETY: only ever called for 0, 1 and 2, which no owned type of this process holds.
    checked(unsafe { libc::dup2(source.as_raw_fd(), target) }).map(drop)
}

/// A descriptor that becomes readable when the process `pid` ends.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = c_int::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel just made, close-on-exec, and nobody else owns.
    checked(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a tokio runtime watch `fd`.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open and the same as long as its owner lives.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Forbids other processes of the same user to read this one's memory (keys).
pub(crate) fn forbid_inspection() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one integer.
    checked(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Linux capabilities by number (`capabilities(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Capability {
    /// Network configuration, `SO_MARK`, `IP_TRANSPARENT`.
    NetAdmin = 12,
    /// Raw sockets, by which the programs of iptables-legacy speak to the kernel.
    NetRaw = 13,
    /// Looking into other processes' `/proc` entries.
    SysPtrace = 19,
    /// Namespaces and mounts.
    SysAdmin = 21,
}

/// The two 32-bit halves of the capability sets (`_LINUX_CAPABILITY_VERSION_3`).
type CapabilitySets = [[u32; 3]; 2];

const CAPABILITY_VERSION: u32 = 0x2008_0522;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

fn capability_sets() -> io::Result<CapabilitySets> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut sets = CapabilitySets::default();
    // SAFETY: both pointers are to values of the layout that version 3 asks for.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(sets) }
}

/// Whether the calling thread has `capability` in effect.
pub(crate) fn has_capability(capability: Capability) -> bool {
    capability_sets().is_ok_and(|sets| sets[0][0] & (1 << capability as u8) != 0)
}

/// Gives up every capability of the calling thread, and of threads that it
/// starts, except those of `kept` that it has.
pub(crate) fn keep_capabilities(kept: &[Capability]) -> io::Result<()> {
    let mask = kept.iter().fold(0_u32, |mask, capability| mask | 1 << *capability as u8);
    let permitted = capability_sets()?[0][1] & mask;
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let sets: CapabilitySets = [[permitted, permitted, 0], [0; 3]];
    // SAFETY: as in `capability_sets`; the kernel only reads.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

fn mount(
    source: Option<&CStr>,
    target: &Path,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let target = c_path(target)?;
    let pointer = |text: Option<&CStr>| text.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null or a C string that outlives the call.
    checked(unsafe {
        libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(options).cast::<c_void>())
    })
    .map(drop)
}

/// Keeps mounts that this mount namespace makes from the one it was copied from.
pub(crate) fn make_mounts_private() -> io::Result<()> {
    mount(None, Path::new("/"), None, libc::MS_REC | libc::MS_SLAVE, None)
}

/// Mounts an empty small file system in memory.
pub(crate) fn mount_tmpfs(target: &Path) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount(Some(c"heddle"), target, Some(c"tmpfs"), flags, Some(c"mode=755,size=256k"))
}

/// Makes `source` appear at `target`.
pub(crate) fn mount_bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(&c_path(source)?), target, None, libc::MS_BIND, None)
}

/// Detaches what is mounted at `target`; what still uses it keeps it.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: a C string that outlives the call.
    checked(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Room for one control message: the largest sent here is `in6_pktinfo`, 20
/// bytes. Eight-byte words give it the alignment of `cmsghdr`.
type Control = [u64; 8];

/// Sends `data` in one message, with a copy of `fd` if there is one.
pub(crate) fn send_with_fd(
    socket: BorrowedFd<'_>,
    data: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut parts = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut control = Control::default();
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut parts;
    message.msg_iovlen = 1;
    if let Some(fd) = fd {
        let size = u32::try_from(size_of::<c_int>()).expect("four bytes");
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: `control` is aligned and longer than CMSG_SPACE of one
        // descriptor, so the first header and its data lie inside it.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(size) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as _;
            libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(fd.as_raw_fd());
        }
    }
    // SAFETY: `message` points to values that outlive the call; sending only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one message and the descriptor that came with it. No bytes: the
/// other side has closed.
pub(crate) fn receive_with_fd(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut parts = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control::default();
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut parts;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: `message` points to writable values of the lengths it says.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let length = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel filled `control`; a SCM_RIGHTS message holds at least
    // one descriptor, which from here on only the returned value owns.
    let fd = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (!header.is_null()
            && (*header).cmsg_level == libc::SOL_SOCKET
            && (*header).cmsg_type == libc::SCM_RIGHTS)
            .then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(header).cast::<c_int>().read_unaligned()))
    };
    Ok((length, fd))
}

/// Receives a datagram: its length, its sender, and the address it was sent
/// to. The socket must have `IP_PKTINFO` or `IPV6_RECVPKTINFO` set.
pub(crate) fn receive_datagram(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, Option<IpAddr>)> {
    let mut parts = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control::default();
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut parts;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    // SAFETY: `storage` is writable for `length` bytes; the kernel sets
    // `msg_namelen` to what it wrote.
    let ((), sender) = unsafe {
        SockAddr::try_init(|storage, length| {
            message.msg_name = storage.cast();
            message.msg_namelen = *length;
            let received = libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0);
            *length = message.msg_namelen;
            parts.iov_len = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
            Ok(())
        })?
    };
    let sender = sender.as_socket().ok_or_else(|| io::Error::other("a datagram without a sender"))?;
    // SAFETY: the kernel filled `control`; the type of a header says what its data is.
    let destination = unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() {
            None
        } else {
            match ((*header).cmsg_level, (*header).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info = libc::CMSG_DATA(header).cast::<libc::in_pktinfo>().read_unaligned();
                    Some(Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr)).into())
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info = libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>().read_unaligned();
                    Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into())
                }
                _ => None,
            }
        }
    };
    Ok((parts.iov_len, sender, destination))
}

/// Sends a datagram to `to`, from the address `from`.
pub(crate) fn send_datagram(
    socket: BorrowedFd<'_>,
    data: &[u8],
    to: SocketAddr,
    from: Option<IpAddr>,
) -> io::Result<()> {
    let mut parts = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    let mut control = Control::default();
    let to = SockAddr::from(to);
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.len();
    message.msg_iov = &raw mut parts;
    message.msg_iovlen = 1;
    match from {
        Some(IpAddr::V4(from)) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: from.to_bits().to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            attach(&mut message, &mut control, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
        }
        Some(IpAddr::V6(from)) => {
            let info =
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
            attach(&mut message, &mut control, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
        }
        None => {}
    }
    // SAFETY: `message` points to values that outlive the call; sending only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `data` the one control message of `message`.
fn attach<T>(message: &mut libc::msghdr, control: &mut Control, level: c_int, kind: c_int, data: T) {
    let size = u32::try_from(size_of::<T>()).expect("control data are a few bytes");
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: `Control` is aligned and has room for a header and the data of
    // every type it is used with (asserted), so the writes stay inside it.
    unsafe {
        assert!(libc::CMSG_SPACE(size) as usize <= size_of::<Control>());
        message.msg_controllen = libc::CMSG_SPACE(size) as _;
        let header = libc::CMSG_FIRSTHDR(ptr::from_ref(message));
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(size) as _;
        libc::CMSG_DATA(header).cast::<T>().write_unaligned(data);
    }
}

/// Sets a boolean socket option that socket2 has no name for.
pub(crate) fn enable(socket: &impl AsFd, level: c_int, option: c_int) -> io::Result<()> {
    let one: c_int = 1;
    let size = libc::socklen_t::try_from(size_of::<c_int>()).expect("four bytes");
    // SAFETY: points to an integer of the length that is given.
    checked(unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const one).cast(), size)
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn a_descriptor_travels_with_a_message_and_an_end_is_no_bytes() {
        let (one, other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        let file = std::fs::File::open("/proc/self/status").unwrap();
        send_with_fd(one.as_fd(), b"hello", Some(file.as_fd())).unwrap();
        send_with_fd(one.as_fd(), b"bare", None).unwrap();
        drop(one);
        let mut buffer = [0; 16];
        let (length, fd) = receive_with_fd(other.as_fd(), &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"hello");
        assert!(io::read_to_string(std::fs::File::from(fd.unwrap())).unwrap().contains("Threads:"));
        assert!(matches!(receive_with_fd(other.as_fd(), &mut buffer), Ok((4, None))));
        assert!(matches!(receive_with_fd(other.as_fd(), &mut buffer), Ok((0, None))));
    }

    #[test]
    fn a_datagram_is_answered_from_the_address_it_was_sent_to() {
        let server = UdpSocket::bind("0.0.0.0:0").unwrap();
        enable(&server, libc::IPPROTO_IP, libc::IP_PKTINFO).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let asked: SocketAddr = ([127, 0, 0, 9], server.local_addr().unwrap().port()).into();
        client.connect(asked).unwrap();
        client.send(b"?").unwrap();
        let mut buffer = [0; 16];
        let (length, from, to) = receive_datagram(server.as_fd(), &mut buffer).unwrap();
        assert_eq!((length, from, to), (1, client.local_addr().unwrap(), Some(asked.ip())));
        send_datagram(server.as_fd(), b"!", from, to).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 1);
    }

    #[test]
    fn the_end_of_a_process_is_seen() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let fd = pidfd(child.id()).unwrap();
        child.wait().unwrap();
        assert!(pidfd(child.id()).is_err());
        drop(fd);
    }
}
