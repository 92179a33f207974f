//! `PROCMAP_QUERY` (6.11).

use core::mem::{MaybeUninit, size_of};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::ioctl::opcode;

use super::{Area, AreaKind, kind};
use crate::Span;
use crate::request::{self, request};

/// Room for a name. A longer one is a file's.
const NAME_MAX: usize = 256;

const READABLE: u64 = 0x01;
const WRITABLE: u64 = 0x02;
const EXECUTABLE: u64 = 0x04;
const SHARED: u64 = 0x08;
const COVERING_OR_NEXT: u64 = 0x10;

/// `struct procmap_query`.
#[repr(C)]
#[derive(Default)]
pub(super) struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    /// In: room for a name. Out: its length with the zero at its end, or zero when it has none.
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

request!(Query = opcode::read_write::<Query>(b'f', 17), 0xC068_6611);

/// The mapping at or after `address`. Signal-safe.
pub(super) fn area(fd: impl AsFd, address: usize) -> Result<Option<Area>, Errno> {
    let mut name = [MaybeUninit::<u8>::uninit(); NAME_MAX];
    let mut query = ask(address);
    query.vma_name_addr = name.as_mut_ptr().expose_provenance() as u64;
    query.vma_name_size = u32::try_from(NAME_MAX).unwrap_or(0);
    let named = match request::call(&fd, &mut query) {
        Err(Errno::NAMETOOLONG) => {
            query = ask(address);
            request::call(&fd, &mut query).map(|_| None)
        }
        answer => answer.map(|_| Some(query.vma_name_size as usize)),
    };
    let kind = match named {
        Ok(Some(size)) => {
            let len = size.min(NAME_MAX).saturating_sub(1);
            // SAFETY: the kernel wrote `size` bytes of it, the zero at the end included.
            let name = unsafe { core::slice::from_raw_parts(name.as_ptr().cast::<u8>(), len) };
            kind(name, query.has_file())
        }
        Ok(None) if query.has_file() => AreaKind::File,
        Ok(None) => AreaKind::Other,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let exact = |word: u64| usize::try_from(word).map_err(|_| Errno::OVERFLOW);
    let (start, end) = (exact(query.vma_start)?, exact(query.vma_end)?);
    let span = Span::new(start, end.wrapping_sub(start)).ok_or(Errno::OVERFLOW)?;
    let may = |flag| query.vma_flags & flag != 0;
    Ok(Some(Area {
        span,
        readable: may(READABLE),
        writable: may(WRITABLE),
        executable: may(EXECUTABLE),
        shared: may(SHARED),
        kind,
    }))
}

fn ask(address: usize) -> Query {
    Query {
        size: size_of::<Query>() as u64,
        query_flags: COVERING_OR_NEXT,
        query_addr: address as u64,
        ..Query::default()
    }
}

impl Query {
    /// A file has an inode, on some device.
    fn has_file(&self) -> bool {
        self.inode != 0
    }
}
