//! Runs a command as its debugger, and has one of its system calls go wrong: those on files in a directory of the test's, counted
//! by what they do. Every thread of the command is followed, and calls that bypass the C library are seen too.

#![allow(unsafe_code)] // A process says that it is traced between fork and exec.

use std::collections::BTreeMap;
use std::ffi::c_long;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does nothing and fails.
    Error(Errno),
    /// It reads or writes half of what it was asked to.
    Half,
    /// The file that it is about is cut to half its length before, if its name begins so.
    Shrink(&'static str),
}

/// A call that goes wrong: the `call`-th of this name on a file of the directory's, counted from 0.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub name: &'static str,
    pub call: u64,
    pub kind: Kind,
}

/// How a command ended.
#[derive(Debug)]
pub struct Traced {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<Signal>,
    /// How often each call was made on files of the directory's.
    pub calls: BTreeMap<&'static str, u64>,
    /// Whether the call that was to go wrong was made.
    pub has_failed: bool,
}

/// Where a call says which file it is about, by the number of its argument.
#[derive(Clone, Copy)]
enum About {
    Descriptor(usize),
    /// With a descriptor before, which it is about where the name is empty.
    Name(usize),
}

/// The calls that are followed: their numbers on x86-64 (`arch/x86/entry/syscalls/syscall_64.tbl`), and whether half of what
/// the third argument says can be done.
const CALLS: [(c_long, &str, About, bool); 25] = [
    (0, "read", About::Descriptor(0), true),
    (1, "write", About::Descriptor(0), true),
    (5, "fstat", About::Descriptor(0), false),
    (9, "mmap", About::Descriptor(4), false),
    (17, "pread64", About::Descriptor(0), true),
    (18, "pwrite64", About::Descriptor(0), true),
    (20, "writev", About::Descriptor(0), false),
    (73, "flock", About::Descriptor(0), false),
    (74, "fsync", About::Descriptor(0), false),
    (75, "fdatasync", About::Descriptor(0), false),
    (77, "ftruncate", About::Descriptor(0), false),
    (82, "rename", About::Name(1), false),
    (87, "unlink", About::Name(0), false),
    (91, "fchmod", About::Descriptor(0), false),
    (93, "fchown", About::Descriptor(0), false),
    (217, "getdents64", About::Descriptor(0), false),
    (257, "openat", About::Name(1), false),
    (262, "newfstatat", About::Name(1), false),
    (263, "unlinkat", About::Name(1), false),
    (264, "renameat", About::Name(3), false),
    (265, "linkat", About::Name(3), false),
    (285, "fallocate", About::Descriptor(0), false),
    (316, "renameat2", About::Name(3), false),
    (326, "copy_file_range", About::Descriptor(2), false),
    (332, "statx", About::Name(1), false),
];

/// The largest name that is read.
const NAME_BYTES: usize = 4096;

/// Runs the command, with this fault if any.
///
/// # Errors
/// When the system does not let a process debug another.
pub fn run(command: &mut Command, directory: &Path, fault: Option<Fault>) -> std::io::Result<Traced> {
    // SAFETY: the call is allowed between fork and exec.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    let child = command.spawn()?;
    let root = Pid::from_raw(child.id().cast_signed());
    // The first stop is the exec.
    waitpid(root, Some(WaitPidFlag::__WALL))?;
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(root, options)?;
    ptrace::syscall(root, None)?;
    let traced = Traced { code: None, signal: None, calls: BTreeMap::new(), has_failed: false };
    let directory = directory.canonicalize()?;
    let mut tracer = Tracer { root, directory, fault, traced, inside: BTreeMap::new() };
    // Only what this thread traces: other tests have children of their own.
    let any = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    while !tracer.follow(waitpid(None, Some(any))?) {}
    Ok(tracer.traced)
}

struct Tracer {
    root: Pid,
    directory: PathBuf,
    fault: Option<Fault>,
    traced: Traced,
    /// What the threads that are in a call are to be told by it.
    inside: BTreeMap<Pid, Option<Errno>>,
}

impl Tracer {
    /// Sees what happened to a thread, and lets it go on. Says whether the command has ended.
    fn follow(&mut self, status: WaitStatus) -> bool {
        let (process, signal) = match status {
            WaitStatus::Exited(process, code) if process == self.root => {
                self.traced.code = Some(code);
                return true;
            }
            WaitStatus::Signaled(process, signal, _) if process == self.root => {
                self.traced.signal = Some(signal);
                return true;
            }
            WaitStatus::PtraceSyscall(process) => {
                self.at_call(process);
                (process, None)
            }
            // A new thread begins with a stop.
            WaitStatus::Stopped(process, Signal::SIGSTOP | Signal::SIGTRAP)
            | WaitStatus::PtraceEvent(process, ..) => (process, None),
            WaitStatus::Stopped(process, signal) => (process, Some(signal)),
            _ => return false,
        };
        // One that has just ended is told of next.
        let _ = ptrace::syscall(process, signal);
        false
    }

    /// A thread enters a call, or leaves one.
    fn at_call(&mut self, process: Pid) {
        if let Some(told) = self.inside.remove(&process) {
            if let (Some(errno), Ok(mut registers)) = (told, ptrace::getregs(process)) {
                registers.rax = i64::from(-(errno as i32)).cast_unsigned();
                let _ = ptrace::setregs(process, registers);
            }
            return;
        }
        let told = ptrace::getregs(process).ok().and_then(|registers| self.enter(process, registers));
        self.inside.insert(process, told);
    }

    fn enter(&mut self, process: Pid, mut registers: user_regs_struct) -> Option<Errno> {
        let number = registers.orig_rax.cast_signed();
        let (_, name, about, can_halve) = CALLS.into_iter().find(|(known, ..)| *known == number)?;
        let file = self.file(process, &registers, about)?;
        let count = self.traced.calls.entry(name).or_default();
        let call = *count;
        *count += 1;
        let fault = self.fault.filter(|fault| fault.name == name && fault.call == call)?;
        self.traced.has_failed = true;
        match fault.kind {
            Kind::Error(errno) => {
                // A call that there is not.
                registers.orig_rax = u64::MAX;
                ptrace::setregs(process, registers).ok()?;
                return Some(errno);
            }
            Kind::Half if can_halve && registers.rdx > 1 => {
                registers.rdx /= 2;
                ptrace::setregs(process, registers).ok()?;
            }
            Kind::Half => {}
            Kind::Shrink(beginning) => {
                file.file_name()?.to_str()?.strip_prefix(beginning)?;
                let file = File::options().write(true).open(file).ok()?;
                file.set_len(file.metadata().ok()?.len() / 2).ok()?;
            }
        }
        None
    }

    /// The file that a call is about, if it is one of the directory's.
    fn file(&self, process: Pid, registers: &user_regs_struct, about: About) -> Option<PathBuf> {
        let arguments =
            [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
        let file = match about {
            About::Descriptor(argument) => {
                // Descriptors are ints; -1 is none.
                let descriptor = u32::try_from(arguments[argument]).ok()?;
                std::fs::read_link(format!("/proc/{process}/fd/{descriptor}")).ok()?
            }
            About::Name(argument) => {
                let memory = File::open(format!("/proc/{process}/mem")).ok()?;
                let mut name = vec![0; NAME_BYTES];
                let read = memory.read_at(&mut name, arguments[argument]).ok()?;
                let end = name[..read].iter().position(|byte| *byte == 0)?;
                if end == 0 {
                    // With `AT_EMPTY_PATH`, it is the descriptor before.
                    return self.file(process, registers, About::Descriptor(argument - 1));
                }
                PathBuf::from(String::from_utf8(name[..end].to_vec()).ok()?)
            }
        };
        file.starts_with(&self.directory).then_some(file)
    }
}
