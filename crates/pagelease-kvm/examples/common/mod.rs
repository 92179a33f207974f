//! What both examples share: the index, and how a C function becomes position-independent machine code.

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Chains of the index.
const BUCKETS: usize = 1 << 20;
/// Its keys: 0 and up.
const KEYS: usize = 1 << 20;
/// Words of a node: the pointer to the next one, the key, the count, and one to spare.
const NODE: usize = 4;
/// Words of all of it: 40 MiB.
pub(crate) const WORDS: usize = BUCKETS + KEYS * NODE;
/// Keys that each side counts a round.
pub(crate) const ROUND: usize = 16;
/// Rounds.
pub(crate) const ROUNDS: usize = 20;

/// A hash table of chained nodes, with **real pointers**, in memory that somebody else may write to: so of atomics.
pub(crate) struct Index<'a>(&'a [AtomicU64]);

impl<'a> Index<'a> {
    /// Builds it in `words`, of which there must be [`WORDS`]. Where a node lies says nothing about its key.
    pub(crate) fn build(words: &'a [AtomicU64]) -> Self {
        for key in 0..KEYS {
            let node = BUCKETS + key * 0x9_E377 % KEYS * NODE;
            let bucket = &words[bucket(key)];
            words[node].store(bucket.load(Relaxed), Relaxed);
            words[node + 1].store(key as u64, Relaxed);
            bucket.store(words[node..].as_ptr().addr() as u64, Relaxed);
        }
        Self(words)
    }

    /// The program's side of the job: counts `key`.
    pub(crate) fn count(&self, key: u64) {
        self.node(key)[2].fetch_add(1, Relaxed);
    }

    /// How often `key` was counted.
    pub(crate) fn counted(&self, key: u64) -> u64 {
        self.node(key)[2].load(Relaxed)
    }

    fn node(&self, key: u64) -> &[AtomicU64] {
        let index = |word: u64| usize::try_from(word).expect("64-bit machines");
        let mut pointer = self.0[bucket(index(key))].load(Relaxed);
        loop {
            let node = &self.0[(index(pointer) - self.0.as_ptr().addr()) / 8..][..NODE];
            if node[1].load(Relaxed) == key {
                return node;
            }
            pointer = node[0].load(Relaxed);
        }
    }
}

fn bucket(key: usize) -> usize {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44
}

/// The keys of a round: the device's, and the program's. Some are both's.
pub(crate) fn keys(round: usize) -> (Vec<u64>, Vec<u64>) {
    let some = |from: usize| (0..ROUND).map(|i| ((from + i) * (i + 7919) % KEYS) as u64).collect();
    (some(round * ROUND), some(round * ROUND + ROUND / 2))
}

/// Whether each key was counted as often as it should have been.
pub(crate) fn check(index: &Index<'_>) {
    let mut expected = std::collections::HashMap::new();
    for round in 0..ROUNDS {
        let (device, program) = keys(round);
        device.into_iter().chain(program).for_each(|key| *expected.entry(key).or_insert(0) += 1);
    }
    expected.into_iter().for_each(|(key, count)| assert_eq!(index.counted(key), count, "key {key}"));
}

/// The machine code of `source`, a C file of one function without constants of its own, beside this one.
pub(crate) fn code(source: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(source);
    let object = std::env::temp_dir().join(format!("pagelease-kernel-{}.o", std::process::id()));
    let binary = object.with_extension("bin");
    // No call of what a library would have, and no table of jumps beside the code.
    let alone = ["-ffreestanding", "-fno-stack-protector", "-fno-jump-tables", "-fcf-protection=none"];
    run(Command::new("cc").args(["-c", "-O2", "-fPIC"]).args(alone).arg(&source).arg("-o").arg(&object))?;
    run(Command::new("objcopy").args(["-O", "binary", "-j", ".text"]).arg(&object).arg(&binary))?;
    let code = std::fs::read(&binary)?;
    std::fs::remove_file(object)?;
    std::fs::remove_file(binary)?;
    Ok(code)
}

fn run(command: &mut Command) -> Result<(), Box<dyn Error>> {
    let status =
        command.status().map_err(|error| format!("{command:?}: {error}; install a C compiler and binutils"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}
