//! `cargo xtask kernels --compare IMAGE`: what the runtime costs beside the kernel's own device-exclusive memory, on a kernel that
//! has the test driver for it. Costs are instructions executed: the machine is emulated, and its clock counts them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::guest::{Clock, End, Guest, Program};
use super::{Kernel, Unavailable, programs};

const LIMIT: Duration = Duration::from_secs(300);

/// What a guest's clock that counts instructions needs to be trusted, with a clock tick whose times do not depend on load.
const KERNEL_ARGUMENTS: [&str; 3] = ["clocksource=tsc", "nohz=off", "nokaslr"];

/// The image, if `word` is the option for it, on its own or with its value in the next word.
pub(super) fn option(word: &str, rest: &mut impl Iterator<Item = String>) -> Result<Option<Kernel>, String> {
    let image = match word.strip_prefix("--compare") {
        Some("") => rest.next().ok_or("--compare needs a kernel's image")?,
        Some(image) if image.starts_with('=') => image[1..].to_owned(),
        _ => return Ok(None),
    };
    match Kernel::parse(&image) {
        Ok(kernel @ Kernel::Image(_)) => Ok(Some(kernel)),
        Ok(Kernel::Series(_)) => Err(format!("--compare {image}: not an image: no package has CONFIG_TEST_HMM")),
        Err(error) => Err(error.replace("--kernel", "--compare")),
    }
}

/// Runs the bench and shows what it prints. `true` if measuring worked, whatever the figures; [`Unavailable`] on a kernel
/// without the driver.
pub(super) fn run(root: &Path, folder: &Path, kernel: &Kernel) -> Result<bool> {
    let Kernel::Image(image) = kernel else { bail!("no image to compare with") };
    let built = programs::build(root, &folder.join("build"), &[], &["pagelease"])?;
    let guest = Guest {
        kernel: image.clone(),
        kernel_arguments: KERNEL_ARGUMENTS.map(str::to_owned).to_vec(),
        files: built.iter().map(|built| (built.name.clone(), built.path.clone())).collect(),
        programs: vec![Program {
            file: "pagelease".to_owned(),
            arguments: ["bench", "kernel"].map(str::to_owned).to_vec(),
            environment: Vec::new(),
            limit: LIMIT,
        }],
        clock: Clock::Icount,
        memory_mib: 1024,
        huge_pages: 0,
        limit: LIMIT,
        folder: folder.join(format!("compare-{}", kernel.name())),
    };
    eprintln!("xtask: {}: booting", kernel.name());
    let output = guest.run()?;
    if let Some(trouble) = output.trouble {
        bail!(trouble);
    }
    let Some(ran) = output.ran.first() else { bail!("the guest ran nothing") };
    if ran.stderr.contains("skipped") {
        bail!(Unavailable(ran.stderr.clone()));
    }
    println!("{}: {} s, counted in instructions", kernel.name(), output.took.as_secs());
    println!("{}", ran.stdout);
    if !ran.stderr.is_empty() {
        eprintln!("{}", ran.stderr);
    }
    Ok(ran.end == End::Exit(0))
}
