//! Debian's kernel packages, fetched by apt itself, from the mirror that this machine's own apt sources name, without a
//! change to the machine: with a configuration, lists and a cache of their own, all in the build folder. Signatures are
//! checked with the machine's keyring; where that is too old for a suite, with a newer one that it vouches for.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use super::Unavailable;
use super::guest::missing;

/// Where kernels are looked for. Security's own suite lies on a mirror of its own.
const SUITES: &str = "bookworm bookworm-updates bookworm-backports trixie-backports";
const SECURITY: &str = "bookworm-security";
/// A suite's name begins with one of these.
const DEBIAN: [&str; 10] =
    ["bullseye", "bookworm", "trixie", "forky", "duke", "sid", "unstable", "testing", "stable", "oldstable"];
/// Debian's keys, below the root of the machine or of an unpacked package. Its name has changed.
const KEYRINGS: [&str; 2] =
    ["usr/share/keyrings/debian-archive-keyring.pgp", "usr/share/keyrings/debian-archive-keyring.gpg"];

/// A mirror of Debian, as this machine's apt sources name it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Mirrors {
    main: Option<String>,
    security: Option<String>,
}

/// The kernels that can be had, and those that have been fetched, all below one folder.
pub(crate) struct Packages {
    folder: PathBuf,
    /// The names of the packages in the suites' lists.
    names: String,
    /// What is wrong with the lists, or with some of them.
    pub(crate) trouble: Option<String>,
}

impl Packages {
    /// Fetches the lists of packages. Does not fail where there are none: kernels unpacked before can still be used.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let mut packages = Self { folder: folder.to_owned(), names: String::new(), trouble: None };
        if let Err(error) = packages.fetch_lists() {
            packages.trouble = Some(error.downcast::<Unavailable>()?.0);
        }
        Ok(packages)
    }

    /// The image of the newest kernel of a series. `flavour` ends the package's name.
    pub(crate) fn kernel(&self, series: &str, flavour: &str) -> Result<PathBuf> {
        if let Some(version) = newest(&self.names, series, flavour) {
            if !self.images().join(&version).is_dir() {
                // Since 7.3 the image lies in a package of its own, on which linux-image depends.
                let (own, whole) = (format!("linux-binary-{version}"), format!("linux-image-{version}"));
                self.unpack(if self.names.lines().any(|name| name == own) { &own } else { &whole }, &version)?;
            }
            return self.image(&version);
        }
        let unpacked = fs::read_dir(self.images()).into_iter().flatten().flatten();
        let unpacked: String =
            unpacked.map(|entry| format!("linux-image-{}\n", entry.file_name().to_string_lossy())).collect();
        let Some(version) = newest(&unpacked, series, flavour) else {
            let suites = if self.names.is_empty() { String::new() } else { format!(" in {SUITES} or {SECURITY}") };
            bail!(Unavailable(format!("{series}: there is no package linux-image-{series}.*-{flavour}{suites}")));
        };
        eprintln!("xtask: {series}: no package can be had; using {version}, which was unpacked before");
        self.image(&version)
    }

    fn images(&self) -> PathBuf {
        self.folder.join("images")
    }

    fn image(&self, version: &str) -> Result<PathBuf> {
        let folder = self.images().join(version);
        let mut files =
            fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?.flatten();
        let image = files.next().map(|file| file.path());
        image.with_context(|| format!("{} has no kernel image: remove it, and run this again", folder.display()))
    }

    fn fetch_lists(&mut self) -> Result<()> {
        if !cfg!(target_arch = "x86_64") {
            bail!(Unavailable("the kernels are x86-64's, and so must be the programs built here".to_owned()));
        }
        let mirrors = mirrors(&sources()?);
        let Some(main) = &mirrors.main else {
            bail!(Unavailable("this machine's apt sources name no mirror of Debian".to_owned()));
        };
        for folder in ["apt/state/lists/partial", "apt/cache/archives/partial", "images", "download"] {
            let folder = self.folder.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        }
        self.write("apt/status", "")?;
        self.write("apt/configuration", &self.configuration())?;
        let write_sources = |root: &Path| {
            let keyring = KEYRINGS.iter().map(|keyring| root.join(keyring)).find(|keyring| keyring.is_file());
            let Some(keyring) = keyring else {
                bail!(Unavailable("Debian's keys are missing here: install debian-archive-keyring".to_owned()));
            };
            self.write("apt/all.sources", &stanzas(main, mirrors.security.as_deref(), &keyring))
        };
        write_sources(Path::new("/"))?;
        let mut errors = self.apt("apt-get", &["update"])?.1;
        if errors.contains("NO_PUBKEY") || errors.contains("Missing key") {
            // Every release of Debian's keyring package comes with the keys of the next release.
            eprintln!(
                "xtask: this machine's keyring is too old for some suites; fetching a newer one that it vouches for"
            );
            if let Err(error) = self.unpack_keyring() {
                errors = format!("{errors}{:#}", error.downcast::<Unavailable>()?);
            } else {
                write_sources(&self.folder.join("apt/keyring"))?;
                errors = self.apt("apt-get", &["update"])?.1;
            }
        }
        self.names = self.apt("apt-cache", &["pkgnames", "linux-"])?.0;
        if !errors.is_empty() {
            self.trouble = Some(format!("apt-get update says:\n{}", errors.trim_end()));
        }
        Ok(())
    }

    /// What differs from the machine's own configuration, which apt reads first (it may name a proxy).
    fn configuration(&self) -> String {
        let folder = self.folder.join("apt");
        let folder = folder.display();
        // Hooks would tidy the machine's own cache. The sandbox's user may not be able to read the build folder.
        format!(
            "#clear APT::Update::Post-Invoke;\n\
             #clear APT::Update::Post-Invoke-Success;\n\
             #clear APT::Architectures;\n\
             APT::Architecture \"amd64\";\n\
             APT::Sandbox::User \"root\";\n\
             Dir::State \"{folder}/state\";\n\
             Dir::State::status \"{folder}/status\";\n\
             Dir::Cache \"{folder}/cache\";\n\
             Dir::Etc::sourcelist \"{folder}/all.sources\";\n\
             Dir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::preferences \"/dev/null\";\n\
             Dir::Etc::preferencesparts \"/dev/null\";\n\
             Acquire::Languages \"none\";\n\
             Acquire::PDiffs \"false\";\n\
             Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
             Acquire::Retries \"1\";\n\
             Acquire::http::Timeout \"20\";\n\
             Acquire::https::Timeout \"20\";\n"
        )
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, content).with_context(|| format!("{} cannot be written", path.display()))
    }

    /// Runs one of apt's programs, and returns what it printed and what it complained about.
    fn apt(&self, program: &str, arguments: &[&str]) -> Result<(String, String)> {
        let Output { stdout, stderr, .. } = Command::new(program)
            .arg("--config-file")
            .arg(self.folder.join("apt/configuration"))
            .args(arguments)
            .current_dir(self.folder.join("download"))
            // Its messages are looked at.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| missing(program, "apt (the kernels are Debian's)", &error))?;
        Ok((String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr).into_owned()))
    }

    /// Fetches a package, and returns its file.
    fn download(&self, package: &str) -> Result<PathBuf> {
        let folder = self.folder.join("download");
        eprintln!("xtask: fetching {package}");
        let (_, errors) = self.apt("apt-get", &["download", package])?;
        let begin = format!("{package}_");
        let mut files =
            fs::read_dir(&folder).with_context(|| format!("{} cannot be read", folder.display()))?.flatten();
        let Some(file) = files.find(|file| file.file_name().to_string_lossy().starts_with(&begin)) else {
            bail!(Unavailable(format!("apt-get download {package} brought nothing:\n{}", errors.trim_end())));
        };
        Ok(file.path())
    }

    /// The image alone: the modules are twenty times its size, and what the programs need is built in.
    fn unpack(&self, package: &str, version: &str) -> Result<()> {
        let file = self.download(package)?;
        let unfinished = self.folder.join("download").join(version);
        fs::create_dir_all(&unfinished).with_context(|| format!("{} cannot be made", unfinished.display()))?;
        let mut archive = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(&file)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| missing("dpkg-deb", "dpkg", &error))?;
        let tar = Command::new("tar")
            .arg("--directory")
            .arg(&unfinished)
            .args(["--extract", "--wildcards", "--transform=s,.*/,,", "*/vmlinuz*"])
            .stdin(archive.stdout.take().context("dpkg-deb has an output")?)
            .status();
        let unpacked = archive.wait().context("dpkg-deb cannot be waited for")?;
        let tar = tar.map_err(|error| missing("tar", "tar", &error))?;
        if !unpacked.success() || !tar.success() {
            bail!("{} has no kernel image that could be unpacked (dpkg-deb: {unpacked}; tar: {tar})", file.display());
        }
        let image = self.images().join(version);
        fs::rename(&unfinished, &image).with_context(|| format!("{} cannot be made", image.display()))?;
        fs::remove_file(&file).with_context(|| format!("{} cannot be removed", file.display()))
    }

    fn unpack_keyring(&self) -> Result<()> {
        let file = self.download("debian-archive-keyring")?;
        let unpacked = Command::new("dpkg-deb")
            .arg("--extract")
            .arg(&file)
            .arg(self.folder.join("apt/keyring"))
            .status()
            .map_err(|error| missing("dpkg-deb", "dpkg", &error))?;
        if !unpacked.success() {
            bail!("{} cannot be unpacked ({unpacked}): remove it, and run this again", file.display());
        }
        fs::remove_file(&file).with_context(|| format!("{} cannot be removed", file.display()))
    }
}

/// The version, as a package's name has it, of the newest kernel of a series among the names of packages.
fn newest(names: &str, series: &str, flavour: &str) -> Option<String> {
    let (begin, end) = (format!("linux-image-{series}."), format!("-{flavour}"));
    let of_series = names.lines().filter(|name| name.starts_with(&begin) && name.ends_with(&end));
    // What lies between is numbers and Debian's mark (+deb12): another flavour has a word of its own.
    let versions = of_series.filter_map(|name| {
        let middle = name.strip_prefix(&begin)?.strip_suffix(&end)?;
        let numbers: Vec<u32> = middle.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect();
        let own = middle.replace("+deb", "").chars().all(|c| c.is_ascii_digit() || c == '.' || c == '-');
        own.then(|| (numbers, format!("{series}.{middle}{end}")))
    });
    versions.max().map(|(_, version)| version)
}

/// Every file of this machine's apt sources: whether it is of the new format (deb822), and what it says.
fn sources() -> Result<Vec<(bool, String)>> {
    let etc = Path::new("/etc/apt");
    let mut files = vec![etc.join("sources.list")];
    files.extend(fs::read_dir(etc.join("sources.list.d")).into_iter().flatten().flatten().map(|file| file.path()));
    files.sort();
    let mut sources = Vec::new();
    for file in files.iter().filter(|file| file.is_file()) {
        let deb822 = match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => false,
            Some("sources") => true,
            _ => continue,
        };
        let text = fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
        sources.push((deb822, text));
    }
    Ok(sources)
}

/// The first mirrors of Debian that the sources name.
fn mirrors(sources: &[(bool, String)]) -> Mirrors {
    let mut mirrors = Mirrors::default();
    for (deb822, text) in sources {
        for (uri, suites) in if *deb822 { of_stanzas(text) } else { of_lines(text) } {
            let debian =
                suites.iter().any(|suite| DEBIAN.iter().any(|name| suite.split(['-', '/']).next() == Some(name)));
            // Other repositories have suites of the same names. A path may end in a file that lists mirrors.
            let lies_in = |folder| uri.split('/').any(|part| part.strip_suffix(".list").unwrap_or(part) == folder);
            if debian && lies_in("debian") {
                mirrors.main.get_or_insert(uri);
            } else if debian && lies_in("debian-security") {
                mirrors.security.get_or_insert(uri);
            }
        }
    }
    mirrors
}

/// `deb [options] URI suite component...`, a line each.
fn of_lines(text: &str) -> Vec<(String, Vec<String>)> {
    let source = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
        let mut words = rest.split_whitespace();
        Some((words.next()?.to_owned(), vec![words.next()?.to_owned()]))
    };
    text.lines().filter_map(source).collect()
}

/// deb822: stanzas of fields, with an empty line between them; what is indented goes on with the field above.
fn of_stanzas(text: &str) -> Vec<(String, Vec<String>)> {
    let mut sources = Vec::new();
    let text: String = text.lines().filter(|line| !line.starts_with('#')).fold(String::new(), |mut text, line| {
        text.push_str(if line.starts_with([' ', '\t']) { " " } else { "\n" });
        text.push_str(line.trim());
        text
    });
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            let fields = stanza.lines().filter_map(|line| line.split_once(':'));
            let mut values = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
            values.next().map(|(_, value)| value.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let is = |name: &str, word: &str| field(name).is_some_and(|words| words.iter().any(|each| each == word));
        if is("Types", "deb") && !is("Enabled", "no") {
            let suites = field("Suites").unwrap_or_default();
            sources.extend(field("URIs").unwrap_or_default().into_iter().map(|uri| (uri, suites.clone())));
        }
    }
    sources
}

/// The private apt sources.
fn stanzas(main: &str, security: Option<&str>, keyring: &Path) -> String {
    let mut text = String::new();
    for (uri, suites) in [(Some(main), SUITES), (security, SECURITY)] {
        if let Some(uri) = uri {
            let keyring = keyring.display();
            let _ =
                write!(text, "Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {keyring}\n\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{mirrors, newest};

    #[test]
    fn the_newest_of_a_series_and_flavour_is_found() {
        let names = "linux-image-6.1.0-9-amd64\nlinux-image-6.1.0-56-amd64\nlinux-image-6.1.0-57-amd64-dbg\n\
                     linux-image-6.1.0-58-rt-amd64\nlinux-image-6.12.90+deb12-amd64\nlinux-image-6.12.90+deb12.1-amd64\n\
                     linux-image-6.12-amd64\nlinux-image-6.12.100+deb12-cloud-amd64\n";
        assert_eq!(newest(names, "6.1", "amd64").as_deref(), Some("6.1.0-56-amd64"));
        assert_eq!(newest(names, "6.12", "amd64").as_deref(), Some("6.12.90+deb12.1-amd64"));
        assert_eq!(newest(names, "6.12", "cloud-amd64").as_deref(), Some("6.12.100+deb12-cloud-amd64"));
        assert_eq!(newest(names, "7.3", "cloud-amd64"), None);
    }

    #[test]
    fn mirrors_are_found_in_both_formats() {
        let lines = "# deb cdrom:[x]/ trixie main\ndeb [arch=amd64 signed-by=/k.gpg] scheme://tool/apt stable main\n\
                     deb-src scheme://source/debian trixie main\ndeb [ signed-by=/k ] scheme://one/debian/ trixie main contrib\n\
                     deb scheme://one/debian-security trixie-security main\n";
        let stanzas = "Types: deb\nURIs: scheme://off/debian\nEnabled: no\nSuites: sid\nComponents: main\n\n\
                       Types: deb deb-src\n# a remark\nURIs:\n scheme://two/debian\nsuites: bookworm bookworm-updates\n\n\n\
                       Types: deb\nURIs: mirror+file:///etc/apt/mirrors/debian-security.list\nSuites: bookworm-security\n";
        let found = mirrors(&[(false, lines.to_owned())]);
        assert_eq!(found.main.as_deref(), Some("scheme://one/debian/"));
        assert_eq!(found.security.as_deref(), Some("scheme://one/debian-security"));
        let found = mirrors(&[(true, stanzas.to_owned())]);
        assert_eq!(found.main.as_deref(), Some("scheme://two/debian"));
        assert_eq!(found.security.as_deref(), Some("mirror+file:///etc/apt/mirrors/debian-security.list"));
        assert_eq!(mirrors(&[(false, "deb scheme://other/ubuntu jammy main".to_owned())]).main, None);
    }
}
