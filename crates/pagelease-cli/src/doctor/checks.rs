//! Every check, in the order of the table: what is found, whether that is good, and the command that would change it.

use std::fmt::Display;

use anyhow::Result;
use pagelease_sys::uffd::{self, Features, OpenPath};
use pagelease_sys::{Errno, mem, page_size, thread};
use rustix::process::Signal;

use super::machine::{self, HugePages, Privilege};
use super::{Attempt, Check, Mode, Report, Thread, Threads, Userfaultfd, trial};

/// The features worth a line, and what each gives.
const FEATURES: [(Features, &str); 8] = [
    (Features::MINOR_SHMEM, "traps touches of memory files (5.14)"),
    (Features::MINOR_HUGETLBFS, "traps touches of huge pages of a pool (5.13)"),
    (Features::THREAD_ID, "names the thread that touched (4.14)"),
    (Features::EXACT_ADDRESS, "says which byte was touched (5.18)"),
    (Features::SIGBUS, "lets the touching thread serve itself (4.14)"),
    (Features::WP_HUGETLBFS_SHMEM, "lets the CPU read what a device may not see change (5.19)"),
    (Features::MOVE, "lets existing private memory be adopted (6.8)"),
    (Features::RWP, "revokes pages without unmapping them (7.3)"),
];

/// Examines everything. `pid`: whose threads; the doctor's own if `None`.
pub(super) fn examine(pid: Option<u32>) -> Report {
    let attempts = uffd::probe();
    let in_force = attempts.iter().find_map(|(path, answer)| Some((*path, answer.ok()?)));
    let privilege = Privilege::read();
    let huge_pages = HugePages::read();
    // Before any trial starts a thread.
    let [bus, segv] = [Signal::BUS, Signal::SEGV].map(|signal| threads(pid, signal));

    let mut list = List(Vec::new());
    list.userfaultfd(&attempts, in_force, &privilege);
    let tried = list.tried(in_force);
    let base = list.kernel();
    list.huge_pages(&huge_pages);
    list.devices();
    list.threads("SIGBUS", "in-thread mode", &bus, pid.is_none());
    list.threads("SIGSEGV", "the mprotect backend", &segv, pid.is_none());

    Report {
        kernel: machine::kernel_release(),
        architecture: std::env::consts::ARCH,
        page_size: page_size(),
        userfaultfd: Userfaultfd {
            path: in_force.map(|(path, _)| path.to_string()),
            attempts: attempts.iter().map(attempt).collect(),
        },
        ready: base && (tried.monitor || tried.in_thread),
        modes: modes(in_force, &tried),
        privilege,
        huge_pages,
        threads_blocking_sigbus: bus,
        threads_blocking_sigsegv: segv,
        checks: list.0,
    }
}

fn attempt((path, answer): &(OpenPath, Result<Features, Errno>)) -> Attempt {
    Attempt {
        path: path.to_string(),
        features: answer.ok().map(|features| features.iter_names().map(|(name, _)| name.to_owned()).collect()),
        error: answer.err().map(|errno| errno.to_string()),
    }
}

/// What the trials showed to work.
#[derive(Default)]
struct Tried {
    monitor: bool,
    /// System calls that touch a device's page wait for it, like any touch.
    system_calls: bool,
    in_thread: bool,
    write_protection: bool,
    read_write_protection: bool,
    huge_page: bool,
    mprotect: bool,
}

pub(super) struct List(Vec<Check>);

impl List {
    pub(super) fn add(
        &mut self,
        section: &'static str,
        name: impl Display,
        ok: bool,
        found: impl Display,
    ) -> &mut Check {
        self.0.push(Check {
            section,
            name: name.to_string(),
            ok,
            needed: false,
            found: found.to_string(),
            remedy: None,
        });
        self.0.last_mut().expect("one was pushed")
    }

    /// A trial: good if it succeeded, and then `say` says what came of it.
    fn trial<T>(
        &mut self,
        section: &'static str,
        name: &str,
        answer: Result<T>,
        say: impl FnOnce(T) -> String,
    ) -> &mut Check {
        match answer {
            Ok(value) => self.add(section, name, true, say(value)),
            Err(error) => self.add(section, name, false, format!("{error:#}")),
        }
    }

    fn userfaultfd(
        &mut self,
        attempts: &[(OpenPath, Result<Features, Errno>)],
        in_force: Option<(OpenPath, Features)>,
        privilege: &Privilege,
    ) {
        const SECTION: &str = "userfaultfd";
        // The first two ways are equally good, so either will do.
        let full = matches!(in_force, Some((OpenPath::Device | OpenPath::Syscall, _)));
        for (path, answer) in attempts {
            let (name, state, remedy) = match path {
                OpenPath::Device => match &privilege.device {
                    Some(mode) => {
                        let remedy = "sudo setfacl -m u:$USER:rw /dev/userfaultfd";
                        ("/dev/userfaultfd", format!("mode {mode}"), Some(remedy))
                    }
                    None => ("/dev/userfaultfd", "not there: before 6.1, or a container's /dev".to_owned(), None),
                },
                OpenPath::Syscall => match privilege.unprivileged_userfaultfd {
                    Some(on) => {
                        let state = format!("vm.unprivileged_userfaultfd={}", u8::from(on));
                        ("system call", state, Some("sudo sysctl vm.unprivileged_userfaultfd=1").filter(|_| !on))
                    }
                    None => ("system call", "no setting vm.unprivileged_userfaultfd".to_owned(), None),
                },
                OpenPath::UserModeOnly => {
                    let state = match answer {
                        Ok(_) => "for anybody, but serves no touch by a system call",
                        Err(Errno::NOSYS) => {
                            "the kernel is built without it (CONFIG_USERFAULTFD), or a seccomp filter forbids it"
                        }
                        Err(Errno::INVAL) => "before 5.11",
                        Err(_) => "the kernel lets anybody; a seccomp filter (a container's?) forbids it",
                    };
                    ("UFFD_USER_MODE_ONLY", state.to_owned(), None)
                }
            };
            let found = match answer {
                Ok(_) => state,
                Err(errno) => format!("{errno}; {state}"),
            };
            let check = self.add(SECTION, name, answer.is_ok(), found);
            check.needed = in_force.is_none();
            check.remedy = remedy.filter(|_| !full && answer.is_err()).map(str::to_owned);
        }

        let Some((_, offered)) = in_force else { return };
        for (feature, gives) in FEATURES {
            let name: String = feature.iter_names().map(|(name, _)| name).collect();
            self.add(SECTION, name, offered.contains(feature), gives).needed = trial::NEEDED.contains(feature);
        }
    }

    fn tried(&mut self, in_force: Option<(OpenPath, Features)>) -> Tried {
        const SECTION: &str = "tried";
        if in_force.is_none() {
            self.add(SECTION, "everything else", false, "not without userfaultfd").needed = true;
            return Tried { mprotect: self.mprotect(), ..Tried::default() };
        }
        let served = |what| move |ns| format!("{what} in {}", microseconds(ns));
        let first = self.0.len();
        let say = served("a touch is served by another thread");
        let monitor = self.trial(SECTION, "monitor", trial::monitor(), say).ok;

        let system_calls = match trial::system_call() {
            Ok(Ok(())) => self.add(SECTION, "system call on a page", true, "waits, like any touch").ok,
            Ok(Err(errno)) => {
                let found = format!("{errno}: fails in every mode; see userfaultfd above");
                self.add(SECTION, "system call on a page", false, found).ok
            }
            Err(error) => self.add(SECTION, "system call on a page", false, format!("{error:#}")).ok,
        };

        let blocked = thread::threads_blocking(Signal::BUS.as_raw())
            .is_ok_and(|threads| threads.iter().any(|(tid, _)| *tid == thread::tid()));
        let in_thread = if blocked {
            let found = "not tried: whoever started the doctor blocks SIGBUS";
            self.add(SECTION, "in-thread", false, found)
        } else {
            let say = served("a touch is served by the touching thread");
            self.trial(SECTION, "in-thread", trial::in_thread(), say)
        }
        .ok;
        if !monitor && !in_thread {
            // One of the two is enough.
            self.0[first..].iter_mut().for_each(|check| check.needed = true);
        }

        let say = |()| "a read passes, a write is trapped".to_owned();
        let answer = trial::write_protection();
        let write_protection = self.trial(SECTION, "write protection", answer, say).ok;

        let offered = in_force.is_some_and(|(_, features)| features.contains(Features::RWP));
        let read_write_protection = if offered {
            let say = |()| "a read is trapped, and nothing unmapped".to_owned();
            self.trial(SECTION, "read-write protection", trial::read_write_protection(), say).ok
        } else {
            let found = "not in this kernel (7.3 has it): pages are unmapped and mapped again";
            self.add(SECTION, "read-write protection", false, found).ok
        };
        let huge_page = match trial::huge_page() {
            Ok(trial::HugePage::Works) => self.add(SECTION, "huge page of the pool", true, "revoked and given back").ok,
            Ok(trial::HugePage::EmptyPool) => {
                let found = "not tried: none is free; see huge pages below";
                self.add(SECTION, "huge page of the pool", false, found).ok
            }
            Err(error) => self.add(SECTION, "huge page of the pool", false, format!("{error:#}")).ok,
        };
        let mprotect = self.mprotect();
        Tried { monitor, system_calls, in_thread, write_protection, read_write_protection, huge_page, mprotect }
    }

    /// The way that needs no userfaultfd.
    fn mprotect(&mut self) -> bool {
        let name = "mprotect";
        let blocked = thread::threads_blocking(Signal::SEGV.as_raw())
            .is_ok_and(|threads| threads.iter().any(|(tid, _)| *tid == thread::tid()));
        if blocked {
            return self.add("tried", name, false, "not tried: whoever started the doctor blocks SIGSEGV").ok;
        }
        let say = |ns| format!("a touch of a closed page is served by the touching thread in {}", microseconds(ns));
        self.trial("tried", name, trial::mprotect(), say).ok
    }

    /// Whether what every mode needs is there.
    fn kernel(&mut self) -> bool {
        const SECTION: &str = "kernel";
        let first = self.0.len();
        self.trial(SECTION, "membarrier", trial::membarrier(), |ns| {
            format!("{} while no other thread runs (4.14)", microseconds(ns))
        });
        self.trial(SECTION, "memory file", trial::memfd(), |()| "sealed against resizing".to_owned());
        self.trial(SECTION, "MADV_WIPEONFORK", trial::wipe_on_fork(), |()| {
            "a forked child knows that it is one (4.14)".to_owned()
        });
        let needed = &mut self.0[first..];
        needed.iter_mut().for_each(|check| check.needed = true);
        let all = needed.iter().all(|check| check.ok);

        let answer = trial::process_madvise();
        let say = |()| "drops scattered pages in one call".to_owned();
        let check = self.trial(SECTION, "process_madvise", answer, say);
        if !check.ok {
            check.found += "; one call a page instead (6.13 has it)";
        }
        self.mappings();
        all
    }

    /// How many scattered pages devices may have of regions on `mprotect`: up to two mappings each.
    fn mappings(&mut self) {
        /// What the kernel has where nobody has changed it.
        const USUAL: usize = 65_530;
        let name = "vm.max_map_count";
        let Some(limit) = mem::max_map_count() else {
            self.add("kernel", name, false, format!("cannot be read; {USUAL} is assumed"));
            return;
        };
        // Seven eighths are for regions, less what the program has mapped itself.
        let pages = limit / 16 * 7;
        let found = format!("{limit}: with mprotect, devices may have some {pages} pages at a time");
        let check = self.add("kernel", name, limit >= USUAL, found);
        if limit < USUAL {
            check.remedy = Some(format!("sudo sysctl {name}={USUAL}"));
        }
    }

    fn huge_pages(&mut self, huge: &HugePages) {
        const SECTION: &str = "huge pages";
        let unsupported = || "not in this kernel".to_owned();
        let on =
            |setting: &Option<String>| setting.as_deref().is_some_and(|chosen| !["never", "deny"].contains(&chosen));

        let ok = on(&huge.transparent);
        let found = huge.transparent.clone().unwrap_or_else(unsupported);
        let check = self.add(SECTION, "of private memory", ok, found);
        let enable = |what: &str| format!("echo {what} | sudo tee /sys/kernel/mm/transparent_hugepage/");
        if !ok && huge.transparent.is_some() {
            check.remedy = Some(enable("madvise") + "enabled");
        }

        let ok = on(&huge.shmem);
        let found = huge.shmem.clone().unwrap_or_else(unsupported);
        let check = self.add(SECTION, "of memory files", ok, found);
        if !ok && huge.shmem.is_some() {
            check.remedy = Some(enable("advise") + "shmem_enabled");
        }

        for pool in huge.pools.iter().filter(|pool| pool.page_kib == 2048 || pool.pages > 0) {
            let found = format!("{} pages, {} free", pool.pages, pool.free);
            let name = format!("pool of {} KiB", pool.page_kib);
            let check = self.add(SECTION, name, pool.free > 0, found);
            if pool.page_kib == 2048 && pool.free == 0 {
                check.remedy = Some(format!("sudo sysctl vm.nr_hugepages={}", pool.pages + 64));
            }
        }
    }

    fn threads(&mut self, signal: &'static str, killer: &str, threads: &Threads, own: bool) {
        let whose = if own {
            "of the doctor itself; look at an application's with --pid".to_owned()
        } else {
            format!("of process {}", threads.pid)
        };
        let found = match &threads.threads {
            None => format!("the threads {whose} cannot be looked at"),
            Some(none) if none.is_empty() => format!("blocked by no thread {whose}"),
            Some(some) => {
                let names: Vec<String> =
                    some.iter().map(|thread| format!("{} ({})", thread.tid, thread.name)).collect();
                format!(
                    "blocked by threads {whose}: {}; {killer} kills them when they touch a device's page",
                    names.join(", ")
                )
            }
        };
        let ok = threads.threads.as_ref().is_some_and(Vec::is_empty);
        self.add("threads", signal, ok, found);
    }
}

fn threads(pid: Option<u32>, signal: Signal) -> Threads {
    let pid = pid.unwrap_or_else(std::process::id);
    let found = thread::threads_blocking_in(pid, signal.as_raw()).ok();
    Threads {
        pid,
        threads: found.map(|found| {
            let thread = |(tid, name)| Thread { tid, name };
            found.into_iter().map(thread).collect()
        }),
    }
}

fn modes(in_force: Option<(OpenPath, Features)>, tried: &Tried) -> Vec<Mode> {
    let mode = |name, ok, meaning: &str| Mode { name, ok, meaning: meaning.to_owned() };
    let monitor = match (tried.monitor, tried.system_calls) {
        (true, true) => "transparent: a system call that touches a device's page waits for it",
        (true, false) => "a system call that touches a device's page fails with EFAULT",
        (false, _) => "touches cannot be served by a thread",
    };
    let exclusive_write = if tried.read_write_protection {
        "a device writes, the CPU may still read; ask for BackendKind::Minor"
    } else {
        "a device writes, the CPU may still read"
    };
    let adopts = in_force.is_some_and(|(_, features)| features.contains(Features::MOVE));
    vec![
        mode("monitor", tried.monitor, monitor),
        mode("in-thread", tried.in_thread, "faster; a system call that touches a device's page fails with EFAULT"),
        mode("exclusive write", tried.write_protection, exclusive_write),
        mode("adopted memory", adopts, "private memory that exists already"),
        mode(
            "rwprotect",
            tried.read_write_protection,
            "chosen by itself; a device's pages stay mapped, protected; no exclusive write",
        ),
        mode("huge pages", tried.huge_page, "regions of 2 MiB pages out of the pool"),
        mode(
            "mprotect",
            tried.mprotect,
            "files on a disk, a device's memory, and no userfaultfd at all; in-thread only",
        ),
    ]
}

fn microseconds(ns: u64) -> String {
    format!("{}.{} us", ns / 1000, ns % 1000 / 100)
}
