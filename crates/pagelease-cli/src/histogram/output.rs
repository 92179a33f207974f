//! `--out`: the counters as CSV, a line `value,count` for each value, zero or not, under a header.
//!
//! The file is opened before the work is done, so that it does not turn out afterwards that it cannot be written. What was
//! in it stays until there is something to put in its place.

use std::fs::{File, OpenOptions, remove_file};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::input::Input;
use crate::failure::BadInput;

/// A file for the counters.
pub(super) struct Output {
    file: File,
    path: PathBuf,
    /// It was not there before, and has nothing in it yet.
    is_new: bool,
}

impl Output {
    /// Opens the file for writing.
    ///
    /// # Errors
    /// [`BadInput`]: it cannot be written, or it is the input.
    pub(super) fn open(path: &Path, input: &Input) -> Result<Self, BadInput> {
        let bad = |why: &str| BadInput::new(format!("--out {path:?} {why}"));
        let is_new = !path.exists();
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).map_err(|error| {
            bad(&format!("cannot be written: {error}; name a file in a directory that you may write to"))
        })?;
        if file.metadata().is_ok_and(|out| input.is(&out)) {
            return Err(bad("is the file to count; name another"));
        }
        Ok(Self { file, path: path.to_owned(), is_new })
    }

    /// Replaces what the file contains.
    pub(super) fn write(mut self, counters: &[u64]) -> Result<()> {
        self.is_new = false;
        self.try_write(counters).with_context(|| format!("--out {:?}", self.path))
    }

    fn try_write(&self, counters: &[u64]) -> Result<()> {
        // A pipe or a terminal has nothing to replace.
        if self.file.metadata()?.is_file() {
            self.file.set_len(0)?;
        }
        let mut csv = csv::Writer::from_writer(&self.file);
        csv.write_record(["value", "count"])?;
        for row in counters.iter().enumerate() {
            csv.serialize(row)?;
        }
        Ok(csv.flush()?)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_new {
            // The work has failed; what is left behind otherwise is an empty file.
            let _ = remove_file(&self.path);
        }
    }
}
