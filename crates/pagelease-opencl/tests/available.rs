//! Why there is no OpenCL: in processes of their own, since a loader is loaded once.

use std::path::Path;
use std::process::Command;

use pagelease_opencl::available;

const PROBE: &str = "PAGELEASE_OPENCL_PROBE";

/// Not a test: what the others run, with an environment that lacks something.
#[test]
fn probe() {
    if std::env::var_os(PROBE).is_none() {
        return;
    }
    match available() {
        Ok(found) => found.iter().for_each(|found| println!("found: {found}")),
        Err(why) => println!("why: {why}\nremedy: {}", why.remedy()),
    }
}

fn probe_with(name: &str, value: &Path) -> String {
    let mut probe = Command::new(std::env::current_exe().expect("this program"));
    let output =
        probe.args(["--exact", "probe", "--nocapture"]).env(PROBE, "1").env(name, value).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Whether this machine has a loader; the tests that take its drivers away need one.
fn has_loader() -> bool {
    let has = !matches!(available(), Err(pagelease_opencl::Unavailable::NoLoader { .. }));
    let needed = std::env::var_os("PAGELEASE_NEEDS_DEVICES").is_some();
    assert!(has || !needed, "no OpenCL loader");
    has
}

/// A library that the dynamic linker cannot take: its own words are in the reason.
#[test]
fn no_loader() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-loader");
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(
        folder.join("libOpenCL.so.1"),
        "not a library, though long enough to have a header of an ELF file\n".repeat(4),
    )
    .expect("a file");
    let said = probe_with("LD_LIBRARY_PATH", &folder);
    assert!(said.contains("why: no OpenCL loader: ") && said.contains("libOpenCL.so.1"), "{said}");
    assert!(said.contains("remedy: sudo apt install ocl-icd-libopencl1"), "{said}");
}

/// A loader whose folder of drivers is not there.
#[test]
fn no_driver() {
    if !has_loader() {
        return println!("skipped: no OpenCL loader");
    }
    let said = probe_with("OCL_ICD_VENDORS", Path::new("/nonexistent"));
    assert!(said.contains("found no driver (CL_PLATFORM_NOT_FOUND_KHR) in /nonexistent"), "{said}");
    assert!(said.contains("remedy: unset OCL_ICD_VENDORS"), "{said}");
}

/// A driver that is there, and finds no device: PoCL can be told not to.
#[test]
fn no_device() {
    let pocl = "Portable Computing Language";
    match available() {
        Ok(found) if found.iter().all(|found| found.platform == pocl) => {
            let said = probe_with("POCL_DEVICES", Path::new("none"));
            assert!(said.contains(&format!("why: no device: {pocl} found none")), "{said}");
        }
        Ok(_) => println!("skipped: other drivers than PoCL have devices"),
        Err(why) => println!("skipped: {why}"),
    }
}
