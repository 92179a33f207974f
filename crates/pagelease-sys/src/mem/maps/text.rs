//! Reading `/proc/self/maps`, a line a mapping, in the order of addresses:
//!
//! ```text
//! 7f0c4a1d2000-7f0c4a1f8000 r--p 00000000 fe:01 1835         /usr/lib/x86_64-linux-gnu/libc.so.6
//! ```
//!
//! The file is read piece by piece; a [`Line`] takes it byte by byte, so that a line may be longer than a piece.
//! The kernel breaks no line between two reads by the same reader.

use rustix::fd::AsFd;
use rustix::io::Errno;

use super::{Area, kind};
use crate::Span;

/// What one read asks for. Small, since it is on the stack of a signal handler, maybe.
const PIECE: usize = 1024;
/// Enough of a name to tell what it names.
const NAME_MAX: usize = 32;

/// The mapping at or after `address`, from the beginning of `file`. Signal-safe, for one reader at a time.
pub(super) fn area(file: impl AsFd, address: usize) -> Result<Option<Area>, Errno> {
    let mut piece = [0; PIECE];
    let mut line = Line::default();
    let mut offset = 0;
    loop {
        let len = match rustix::io::pread(&file, &mut piece, offset) {
            Ok(0) => return Ok(None),
            Ok(len) => len,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        for byte in &piece[..len] {
            if *byte != b'\n' {
                line.take(*byte);
                continue;
            }
            let area = line.area()?;
            line = Line::default();
            if area.span.end() > address {
                return Ok(Some(area).filter(|area| area.span.start() <= isize::MAX.cast_unsigned()));
            }
        }
        offset += len as u64;
    }
}

/// A line, as far as it has been read.
#[derive(Default)]
struct Line {
    field: Field,
    start: usize,
    end: usize,
    protection: [u8; 4],
    protection_len: usize,
    inode: u64,
    name: [u8; NAME_MAX],
    name_len: usize,
}

/// The field that the next byte belongs to.
#[derive(Copy, Clone, Default)]
enum Field {
    #[default]
    Start,
    End,
    Protection,
    Offset,
    Device,
    Inode,
    Name,
}

impl Line {
    fn take(&mut self, byte: u8) {
        use Field::{Device, End, Inode, Name, Offset, Protection, Start};
        let next = match (self.field, byte) {
            (Start, b'-') => End,
            (End, b' ') => Protection,
            (Protection, b' ') => Offset,
            (Offset, b' ') => Device,
            (Device, b' ') => Inode,
            (Inode, b' ') => Name,
            (field, _) => {
                self.digit(byte);
                field
            }
        };
        self.field = next;
    }

    /// A byte that is part of the current field.
    fn digit(&mut self, byte: u8) {
        match self.field {
            Field::Start => self.start = self.start << 4 | nibble(byte),
            Field::End => self.end = self.end << 4 | nibble(byte),
            Field::Protection => keep(&mut self.protection, &mut self.protection_len, byte),
            Field::Inode => self.inode = self.inode.saturating_mul(10).saturating_add(u64::from(byte & 0xF)),
            // The name stands in a column of its own, after any number of spaces.
            Field::Name if byte == b' ' && self.name_len == 0 => {}
            Field::Name => keep(&mut self.name, &mut self.name_len, byte),
            Field::Offset | Field::Device => {}
        }
    }

    fn area(&self) -> Result<Area, Errno> {
        let span = Span::new(self.start, self.end.wrapping_sub(self.start)).ok_or(Errno::OVERFLOW)?;
        let [readable, writable, executable, shared] = self.protection;
        Ok(Area {
            span,
            readable: readable == b'r',
            writable: writable == b'w',
            executable: executable == b'x',
            shared: shared == b's',
            kind: kind(&self.name[..self.name_len], self.inode != 0),
        })
    }
}

fn nibble(digit: u8) -> usize {
    usize::from(if digit.is_ascii_digit() { digit & 0xF } else { (digit & 0xF) + 9 })
}

/// Appends a byte while there is room.
fn keep(room: &mut [u8], len: &mut usize, byte: u8) {
    if let Some(place) = room.get_mut(*len) {
        *place = byte;
        *len += 1;
    }
}
