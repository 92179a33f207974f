//! One run of a kernel in an emulated machine: boots it, runs programs there one after another, takes down what each
//! printed. Whoever makes the programs links them statically; the guest has nothing but them and busybox.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Unavailable;
use super::initramfs::Archive;

const INIT: &str = include_str!("init.sh");
const QEMU: &str = "qemu-system-x86_64";
/// All that can be emulated, but for what is slower in emulation: page tables of five levels, and clearing or copying
/// memory by instructions that do a byte at a time.
const CPU: &str = "max,la57=off,erms=off,fsrm=off";
const QEMU_PACKAGES: &str = "qemu-system-x86 and seabios";
/// The parts of busybox that `init.sh` uses.
const TOOLS: [&str; 10] = ["sh", "cat", "env", "mkdir", "mkfifo", "mount", "poweroff", "setsid", "timeout", "uname"];
/// What a kernel may take until it runs the first program, on a busy machine.
const BOOT: Duration = Duration::from_secs(120);

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum Clock {
    /// Two CPUs that run at the same time, as fast as they can. What takes how long in the guest says little.
    Tcg,
    /// One CPU, on which a nanosecond is an instruction executed: times repeat, but no cost of a TLB flush, an exception or
    /// an interrupt is in them.
    Icount,
}

/// A program to run in the guest, in its folder `/job`, as root.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// Of a file of the guest.
    pub(crate) file: String,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// It is killed after this long.
    pub(crate) limit: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// A bzImage.
    pub(crate) kernel: PathBuf,
    /// More arguments of the kernel.
    pub(crate) kernel_arguments: Vec<String>,
    /// What lies in `/job`, by name, executable.
    pub(crate) files: Vec<(String, PathBuf)>,
    pub(crate) programs: Vec<Program>,
    pub(crate) clock: Clock,
    pub(crate) memory_mib: u32,
    /// Huge pages of 2 MiB to reserve.
    pub(crate) huge_pages: u32,
    /// The whole machine is stopped after this long.
    pub(crate) limit: Duration,
    /// For the initial file system and what comes out of the serial ports.
    pub(crate) folder: PathBuf,
}

/// What one program came to.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) end: End,
    /// In the guest's own time, as far as it ran.
    pub(crate) seconds: f32,
}

#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// With this status; 128 and more: by a signal.
    Exit(u32),
    /// The guest was stopped, or stopped by itself, while it ran.
    CutOff,
    /// The guest did not come to it.
    NotBegun,
}

/// What a guest came to: one [`Ran`] for each program.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// `uname -r` and `uname -v`, if it came that far.
    pub(crate) kernel: Option<String>,
    pub(crate) ran: Vec<Ran>,
    /// The last lines of the kernel's console, if the guest did not switch itself off.
    pub(crate) trouble: Option<String>,
    pub(crate) took: Duration,
}

impl Guest {
    /// Boots it, and waits until it has switched itself off or its limit is over.
    pub(crate) fn run(&self) -> Result<Output> {
        fs::create_dir_all(&self.folder).with_context(|| format!("{} cannot be made", self.folder.display()))?;
        let initramfs = self.folder.join("initramfs");
        fs::write(&initramfs, self.initramfs()?)
            .with_context(|| format!("{} cannot be written", initramfs.display()))?;
        let ports = ["console", "stdout", "stderr"].map(|name| self.folder.join(format!("{name}.txt")));
        let begin = Instant::now();
        let mut machine = Machine(self.start(&initramfs, &ports)?);
        let status = self.wait(&mut machine, &ports[1], begin)?;
        let [console, stdout, stderr] = ports.each_ref().map(|port| text(port));
        let over = stdout.lines().any(|line| line == "@@ over");
        let trouble = (!over).then(|| {
            let how = match status {
                Some(status) => format!("the guest stopped before its programs had ended ({status})"),
                None => format!("the guest was stopped after {} s, its limit", self.limit.as_secs()),
            };
            let lines: Vec<_> = console.lines().filter(|line| !line.is_empty()).collect();
            format!("{how}; the last lines of its console:\n  {}", lines[lines.len().saturating_sub(25)..].join("\n  "))
        });
        Ok(Output {
            kernel: kernel_of(&stdout).map(str::to_owned),
            ran: (0..self.programs.len()).map(|number| ran(number, &stdout, &stderr)).collect(),
            trouble,
            took: begin.elapsed(),
        })
    }

    fn initramfs(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        for folder in ["bin", "dev", "proc", "sys", "tmp", "job"] {
            archive.folder(folder);
        }
        // The first process's own output, and a place for it before devtmpfs is mounted.
        archive.device("dev/console", 5, 1);
        archive.file("bin/busybox", &busybox()?);
        for tool in TOOLS {
            archive.link(&format!("bin/{tool}"), "busybox");
        }
        archive.file("init", INIT.as_bytes());
        archive.file("job/commands", self.commands().as_bytes());
        for (name, path) in &self.files {
            let content = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
            archive.file(&format!("job/{name}"), &content);
        }
        Ok(archive.finish())
    }

    /// What `init.sh` includes: one call of its function for each program.
    fn commands(&self) -> String {
        let mut commands = String::new();
        for (number, program) in self.programs.iter().enumerate() {
            let _ = write!(commands, "program {number} {}", program.limit.as_secs());
            for (name, value) in &program.environment {
                let _ = write!(commands, " {}", quoted(&format!("{name}={value}")));
            }
            let _ = write!(commands, " {}", quoted(&format!("./{}", program.file)));
            for argument in &program.arguments {
                let _ = write!(commands, " {}", quoted(argument));
            }
            commands.push('\n');
        }
        commands
    }

    fn start(&self, initramfs: &Path, ports: &[PathBuf; 3]) -> Result<Child> {
        let (threads, cpus) = if self.clock == Clock::Tcg { ("multi", "2") } else { ("single", "1") };
        // A calibrated clock would be a guess in an emulated machine, and its timer looks broken to a kernel that counts what it
        // does in ten milliseconds of a busy host; a kernel that panics shall end, not wait.
        let append = format!(
            "console=ttyS0 quiet tsc=reliable no_timer_check panic=-1 hugepages={} {}",
            self.huge_pages,
            self.kernel_arguments.join(" ")
        );
        let mut command = Command::new(QEMU);
        command.args(["-machine", "q35", "-cpu", CPU, "-smp", cpus, "-m", &self.memory_mib.to_string()]);
        command.args(["-accel", &format!("tcg,thread={threads}")]);
        if self.clock == Clock::Icount {
            command.args(["-icount", "shift=0,sleep=off,align=off"]);
        }
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        for port in ports {
            // qemu makes the files; a run that does not get so far shall not find those of the last.
            let _ = fs::remove_file(port);
            command.arg("-serial").arg(prefixed("file:", port));
        }
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(initramfs).args(["-append", append.trim_end()]);
        command.stdin(Stdio::null()).spawn().map_err(|error| missing(QEMU, QEMU_PACKAGES, &error))
    }

    /// `None` when the limit was over. Says which program has begun, since all of it takes minutes.
    fn wait(&self, machine: &mut Machine, stdout: &Path, begin: Instant) -> Result<Option<ExitStatus>> {
        let mut begun = 0;
        loop {
            if let Some(status) = machine.0.try_wait().context("the emulator cannot be waited for")? {
                return Ok(Some(status));
            }
            let so_far = text(stdout);
            while let Some(program) = self.programs.get(begun).filter(|_| so_far.contains(&mark("begin", begun))) {
                eprintln!("xtask: {:4} s: {} {}", begin.elapsed().as_secs(), program.file, program.arguments.join(" "));
                begun += 1;
            }
            if begin.elapsed() > self.limit || (begun == 0 && begin.elapsed() > BOOT) {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The emulator, which is ended with whatever ends the run.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Fails if this machine lacks what a guest takes.
pub(crate) fn prepared() -> Result<()> {
    let emulator = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status();
    emulator.map_err(|error| missing(QEMU, QEMU_PACKAGES, &error))?;
    busybox().map(drop)
}

/// Busybox, checked to need no libraries: the guest has none.
fn busybox() -> Result<Vec<u8>> {
    let found = std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).map(|folder| folder.join("busybox")).find(|file| file.is_file()));
    let Some(path) = found else {
        bail!(Unavailable("busybox is not installed: install busybox-static".to_owned()));
    };
    let content = fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    if interpreted(&content) {
        bail!(Unavailable(format!("{} needs shared libraries: install busybox-static instead", path.display())));
    }
    Ok(content)
}

/// Whether a 64-bit ELF program names a loader of shared libraries (the program header `PT_INTERP`).
fn interpreted(elf: &[u8]) -> bool {
    const INTERP: u64 = 3;
    let number = |at: usize, bytes: usize| {
        let little_endian = elf.get(at..at + bytes).unwrap_or_default().iter().rev();
        little_endian.fold(0, |number, &byte| number << 8 | u64::from(byte))
    };
    let (first, size, count) = (number(0x20, 8), number(0x36, 2), number(0x38, 2));
    let headers = (0..count).filter_map(|n| usize::try_from(first.checked_add(n * size)?).ok());
    headers.filter(|&at| at < elf.len()).any(|at| number(at, 4) == INTERP)
}

/// An error about a program that could not be started.
pub(crate) fn missing(program: &str, packages: &str, error: &std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::NotFound => Unavailable(format!("{program} is not installed: install {packages}")).into(),
        _ => anyhow::anyhow!("{program} cannot be run: {error}"),
    }
}

/// In qemu's list of options a comma is written twice.
fn prefixed(prefix: &str, path: &Path) -> String {
    format!("{prefix}{}", path.display().to_string().replace(',', ",,"))
}

/// For a shell: between single quotes.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What a serial port has sent so far: nothing yet, if it has not been opened. Its lines end as a terminal's do.
fn text(port: &Path) -> String {
    String::from_utf8_lossy(&fs::read(port).unwrap_or_default()).replace('\r', "")
}

fn mark(what: &str, number: usize) -> String {
    // A port's first line begins the text: there is no line break before it.
    format!("@@ {what} {number}\n")
}

fn kernel_of(stdout: &str) -> Option<&str> {
    stdout.lines().find_map(|line| line.strip_prefix("@@ kernel ")?.split_once(' ')).map(|(_booted, name)| name)
}

/// What program `number` printed between its two marks, and how it ended.
fn ran(number: usize, stdout: &str, stderr: &str) -> Ran {
    let (printed, last) = section(number, stdout);
    let (errors, _) = section(number, stderr);
    let (end, seconds) = match last.and_then(ending) {
        Some((status, seconds)) => (End::Exit(status), seconds),
        None if printed.is_some() => (End::CutOff, 0.0),
        None => (End::NotBegun, 0.0),
    };
    let own = |text: Option<&str>| text.unwrap_or_default().trim_end().to_owned();
    Ran { stdout: own(printed), stderr: own(errors), end, seconds }
}

/// What the second mark says: the status, and how long it took, from the guest's uptimes before and after.
fn ending(last: &str) -> Option<(u32, f32)> {
    let mut words = last.split(' ');
    let status = words.next()?.parse().ok()?;
    let begun: f32 = words.next()?.parse().ok()?;
    let now: f32 = words.next()?.parse().ok()?;
    Some((status, now - begun))
}

/// The text between the two marks of a program, and what stands on the second mark's line.
fn section(number: usize, text: &str) -> (Option<&str>, Option<&str>) {
    let Some((_, after)) = text.split_once(&mark("begin", number)) else { return (None, None) };
    match after.split_once(&format!("\n@@ end {number} ")) {
        Some((printed, last)) => (Some(printed), last.lines().next()),
        None => (Some(after), None),
    }
}

#[cfg(test)]
mod tests {
    use super::{End, kernel_of, quoted, ran};

    const STDOUT: &str = "@@ kernel 1.23 6.1.0 #1 SMP\n@@ begin 0\nfine\n\n@@ end 0 0 1.50 2.75\n@@ begin 1\nbro";
    const STDERR: &str = "@@ begin 0\n\n@@ end 0 0 1.50 2.75\n@@ begin 1\nwhy\n";

    #[test]
    fn what_programs_printed_is_told_apart() {
        assert_eq!(kernel_of(STDOUT), Some("6.1.0 #1 SMP"));
        let programs: Vec<_> = (0..3).map(|number| ran(number, STDOUT, STDERR)).collect();
        assert_eq!((programs[0].stdout.as_str(), programs[0].stderr.as_str()), ("fine", ""));
        assert_eq!((programs[0].end, programs[0].seconds), (End::Exit(0), 1.25));
        assert_eq!((programs[1].stdout.as_str(), programs[1].stderr.as_str()), ("bro", "why"));
        assert_eq!(programs[1].end, End::CutOff);
        assert_eq!(programs[2].end, End::NotBegun);
    }

    #[test]
    fn a_shell_reads_a_quoted_word_as_it_was() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
