//! How many mappings a process has, and may have. Signal-safe.

use rustix::fs::{Mode, OFlags};

/// The most mappings that a process may have (`vm.max_map_count`, 65,530 where nobody changed it); `None` when it
/// cannot be read. Signal-safe.
pub fn max_map_count() -> Option<usize> {
    let file = rustix::fs::open("/proc/sys/vm/max_map_count", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut text = [0; 24];
    let len = rustix::io::read(&file, &mut text).ok()?;
    core::str::from_utf8(&text[..len]).ok()?.trim_ascii().parse().ok()
}

/// How many mappings this process has: the lines of `/proc/self/maps`, which on x86-64 has one more than the kernel
/// counts (`[vsyscall]`). `None` when it cannot be read. It takes the time of reading that file: about 0.3 us a
/// mapping. Signal-safe.
pub fn mapping_count() -> Option<usize> {
    let file = super::maps::open_text().ok()?;
    let mut text = [0; 1024];
    let mut lines = 0;
    loop {
        match rustix::io::read(&file, &mut text) {
            Ok(0) => return Some(lines),
            Ok(len) => lines += text[..len].iter().filter(|byte| **byte == b'\n').count(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Mapping, Protection, protect};
    use crate::{Span, page_size};

    #[test]
    fn a_split_mapping_counts() {
        assert!(max_map_count().unwrap() >= 1000);
        // Far more than other tests make and drop meanwhile.
        const PIECES: usize = 2000;
        let memory = Mapping::anonymous(PIECES * page_size()).unwrap();
        let before = mapping_count().unwrap();
        for index in (0..PIECES).step_by(2) {
            let piece = Span::new(memory.span().start() + index * page_size(), page_size()).unwrap();
            // SAFETY: the memory is ours, and not touched.
            unsafe { protect(piece, Protection::Read) }.unwrap();
        }
        let more = mapping_count().unwrap() - before;
        assert!(more.abs_diff(PIECES) < 200, "{more}");
        drop(memory);
        assert!(mapping_count().unwrap().abs_diff(before) < 200);
    }
}
