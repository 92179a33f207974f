//! `cargo xtask kernels`: the tests on real memory, on Debian's own kernels, booted under emulation. What the runtime does
//! depends on the kernel, and this machine has only one.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use entries::{PATIENCE, SAMPLE, What, entries};
use guest::{Clock, Guest, Output, Program, Ran};
use packages::Packages;
use programs::Built;
use table::Row;

mod compare;
mod entries;
mod guest;
mod initramfs;
mod packages;
mod programs;
mod table;

const TESTS: [&str; 2] = ["conformance", "stress"];
const BINARIES: [&str; 1] = ["pagelease"];
/// The kernels that are meant if none is named, and the flavours of their packages.
const SERIES: [(&str, &str); 3] = [("6.1", "amd64"), ("6.12", "amd64"), ("7.3", "cloud-amd64")];
/// Of any other series: the smallest.
const FLAVOUR: &str = "cloud-amd64";

/// For all guests together: with a build and the packages, that stays below the bound of `ci/kernels.sh`. What one of them may
/// take follows from the limits of its programs.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// What `cargo xtask kernels` cannot do without is not to be had here. That says nothing about the tests.
#[derive(Debug)]
pub(crate) struct Unavailable(pub(crate) String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// A kernel to boot.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Kernel {
    /// The newest package of a series.
    Series(String),
    Image(PathBuf),
}

impl Kernel {
    fn parse(word: &str) -> Result<Self, String> {
        let number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
        if word.split_once('.').is_some_and(|(major, minor)| number(major) && number(minor)) {
            return Ok(Self::Series(word.to_owned()));
        }
        let image = fs::read(word)
            .map_err(|error| format!("--kernel {word}: not a series such as 6.1, nor a file: {error}"))?;
        // The boot protocol's signature.
        if image.get(0x202..0x206) != Some(b"HdrS".as_slice()) {
            return Err(format!("--kernel {word}: not a bzImage; give the vmlinuz of an x86-64 kernel"));
        }
        let path = std::path::absolute(word).map_err(|error| format!("--kernel {word}: {error}"))?;
        Ok(Self::Image(path))
    }

    /// In the table, and as the name of a folder.
    fn name(&self) -> String {
        match self {
            Self::Series(series) => series.clone(),
            Self::Image(path) => path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        }
    }
}

/// What is asked for on the command line.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Options {
    kernels: Vec<Kernel>,
    /// For `conformance`, which is then all that runs.
    arguments: Option<Vec<String>>,
    /// Whose own device-exclusive memory the runtime is to be compared with; then nothing else runs.
    compare: Option<Kernel>,
}

impl Options {
    /// On bad input, says what is bad.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { kernels: Vec::new(), arguments: None, compare: None };
        while let Some(word) = words.next() {
            if word == "--" {
                options.arguments = Some(words.collect());
                break;
            }
            if let Some(image) = compare::option(&word, &mut words)? {
                options.compare = Some(image);
                continue;
            }
            let kernel = match word.strip_prefix("--kernel") {
                Some("") => words.next().ok_or("--kernel needs a series or a file")?,
                Some(rest) if rest.starts_with('=') => rest[1..].to_owned(),
                _ => return Err(format!("{word}: no such option; what the tests shall be given comes after --")),
            };
            options.kernels.push(Kernel::parse(&kernel)?);
        }
        if options.compare.is_some() && (options.arguments.is_some() || !options.kernels.is_empty()) {
            return Err("--compare takes a kernel of its own, and runs nothing else".to_owned());
        }
        if options.kernels.is_empty() {
            options.kernels = SERIES.iter().map(|(series, _)| Kernel::Series((*series).to_owned())).collect();
        }
        Ok(options)
    }
}

/// Runs what is asked for, and shows it. `true` if nothing failed; [`Unavailable`] if a kernel is not to be had, and on the
/// others nothing failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in the workspace")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = std::path::absolute(target.join("kernels")).context("the build folder has no path")?;
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    // First what may not be there.
    guest::prepared()?;
    if let Some(kernel) = &options.compare {
        return compare::run(root, &folder, kernel);
    }
    let mut absent = Vec::new();
    let images = images(&options.kernels, &folder, &mut absent)?;
    if images.is_empty() {
        bail!(Unavailable(absent.join("\n")));
    }
    let built = programs::build(root, &folder.join("build"), &TESTS, &BINARIES)?;
    let mut rows = Vec::new();
    let begin = Instant::now();
    for (name, image) in images {
        let limit = LIMIT.saturating_sub(begin.elapsed());
        let guest = guest(root, folder.join(&name), image, &built, options.arguments.as_deref(), limit);
        eprintln!("xtask: {name}: booting");
        let output = guest.run()?;
        println!("{name}: {}", summary(&guest, &output));
        if let (Some(arguments), Some(ran)) = (&options.arguments, output.ran.first()) {
            println!("$ conformance {}\n{}\n{}", arguments.join(" "), ran.stdout, ran.stderr);
            rows.extend(table::of_tests(&name, "conformance", &[], ran));
        } else {
            rows.extend(all(&name, &output.ran, &built)?);
        }
        if let Some(trouble) = output.trouble {
            let details = vec![trouble];
            rows.push(Row { kernel: name, what: "the guest".to_owned(), failed: 1, details, ..Row::default() });
        }
    }
    let passed = table::show(&rows);
    if rows.is_empty() {
        bail!("no test ran: is there one of that name?");
    }
    if passed && !absent.is_empty() {
        bail!(Unavailable(absent.join("\n")));
    }
    absent.iter().for_each(|why| eprintln!("xtask: {why}"));
    Ok(passed)
}

/// Which kernel it was, and what took how long.
fn summary(guest: &Guest, output: &Output) -> String {
    let kernel = output.kernel.as_deref().unwrap_or("has not come so far as to name itself");
    let ran = guest.programs.iter().zip(&output.ran).filter(|(_, ran)| ran.seconds >= 1.0);
    let times: String = ran.map(|(program, ran)| format!(", {} {:.0} s", program.file, ran.seconds)).collect();
    format!("{kernel}: {} s{times}", output.took.as_secs())
}

/// Kernels by name; in `absent`, why the others are not to be had.
fn images(kernels: &[Kernel], folder: &Path, absent: &mut Vec<String>) -> Result<Vec<(String, PathBuf)>> {
    let any_package = kernels.iter().any(|kernel| matches!(kernel, Kernel::Series(_)));
    let packages = if any_package { Some(Packages::new(folder)?) } else { None };
    let mut images = Vec::new();
    for kernel in kernels {
        let image = match (kernel, &packages) {
            (Kernel::Series(series), Some(packages)) => {
                let known = SERIES.iter().find(|(known, _)| known == series);
                packages.kernel(series, known.map_or(FLAVOUR, |(_, flavour)| flavour))
            }
            (Kernel::Series(_), None) => continue,
            (Kernel::Image(path), _) => Ok(path.clone()),
        };
        match image {
            Ok(image) => images.push((kernel.name(), image)),
            Err(error) => absent.push(error.downcast::<Unavailable>()?.0),
        }
    }
    if let (false, Some(why)) = (absent.is_empty(), packages.and_then(|packages| packages.trouble)) {
        absent.push(why);
    }
    Ok(images)
}

fn guest(
    root: &Path,
    folder: PathBuf,
    kernel: PathBuf,
    built: &[Built],
    only: Option<&[String]>,
    limit: Duration,
) -> Guest {
    let mut files: Vec<_> = built.iter().map(|built| (built.name.clone(), built.path.clone())).collect();
    files.push((SAMPLE.to_owned(), root.join(SAMPLE)));
    let owned = |environment: &[(&str, &str)]| {
        environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let programs = match only {
        Some(arguments) => vec![Program {
            file: "conformance".to_owned(),
            arguments: arguments.to_vec(),
            environment: owned(&[PATIENCE]),
            limit,
        }],
        None => entries()
            .iter()
            .map(|entry| Program {
                file: entry.program.to_owned(),
                arguments: entry.arguments.iter().map(|&argument| argument.to_owned()).collect(),
                environment: owned(entry.environment),
                limit: Duration::from_secs(entry.seconds),
            })
            .collect(),
    };
    Guest {
        kernel,
        kernel_arguments: Vec::new(),
        files,
        programs,
        clock: Clock::Tcg,
        memory_mib: 3072,
        huge_pages: 32,
        limit,
        folder,
    }
}

/// The rows of all entries.
fn all(kernel: &str, ran: &[Ran], built: &[Built]) -> Result<Vec<Row>> {
    let entries = entries();
    let doctor = entries.iter().zip(ran).find(|(entry, _)| matches!(entry.what, What::Doctor));
    let lacks = doctor.map_or_else(Vec::new, |(_, ran)| table::lacks(&ran.stdout));
    let mut rows = Vec::new();
    for (entry, ran) in entries.iter().zip(ran) {
        match &entry.what {
            What::Doctor => rows.push(table::of_doctor(kernel, ran, &lacks)),
            What::Histogram(histogram) => {
                let backend = histogram.served_by(&lacks);
                rows.push(table::of_histogram(kernel, &histogram.row(), ran, histogram.needs, &lacks, backend));
            }
            What::Tests => {
                let program = built.iter().find(|built| built.name == entry.program).context("it was built")?;
                let expected = programs::tests_of(program, &entry.arguments)?;
                rows.extend(table::of_tests(kernel, entry.program, &expected, ran));
            }
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::{Kernel, Options};

    fn parse(words: &[&str]) -> Result<Options, String> {
        Options::parse(words.iter().map(|&word| word.to_owned()))
    }

    #[test]
    fn the_command_line_is_read() {
        assert_eq!(parse(&[]).expect("all of them").kernels.len(), 3);
        let options = parse(&["--kernel", "6.1", "--kernel=7.2", "--", "--exact", "a"]).expect("fine");
        assert_eq!(options.kernels, ["6.1", "7.2"].map(|series| Kernel::Series(series.to_owned())));
        assert_eq!(options.arguments, Some(vec!["--exact".to_owned(), "a".to_owned()]));
        assert_eq!(options.compare, None);
    }

    #[test]
    fn bad_input_is_named() {
        for (words, named) in [
            (vec!["--kernel"], "needs a series or a file"),
            (vec!["--kernel", "6.1.2"], "--kernel 6.1.2: not a series"),
            (vec!["--kernel=/dev/null"], "not a bzImage"),
            (vec!["--kernels", "6.1"], "--kernels: no such option"),
            (vec!["a_test"], "comes after --"),
            (vec!["--compare"], "--compare needs a kernel's image"),
            (vec!["--compare", "7.3"], "--compare 7.3: not an image"),
            (vec!["--compare=/dev/null"], "not a bzImage"),
            (vec!["--compared", "7.3"], "--compared: no such option"),
        ] {
            let error = parse(&words).expect_err("bad");
            assert!(error.contains(named), "{error}");
        }
    }
}
