//! What both programs do: heat spreads over a ring of cells, which a kernel computes; walkers go where it is coldest and warm it
//! up, which the program computes. Where they go depends on what the kernel wrote.

/// Eight mebibytes of cells.
pub(crate) const CELLS: usize = 1 << 20;
pub(crate) const ROUNDS: usize = 100;
pub(crate) const HEAT: u64 = 1 << 40;

/// Where the walkers begin.
pub(crate) const WALKERS: [usize; 16] = {
    let mut walkers = [0; 16];
    let mut n = 0;
    while n < walkers.len() {
        walkers[n] = n * CELLS / walkers.len();
        n += 1;
    }
    walkers
};

pub(crate) const KERNEL: &str = "
    kernel void spread(global const ulong *from, global ulong *to) {
        size_t i = get_global_id(0), n = get_global_size(0);
        ulong left = from[i == 0 ? n - 1 : i - 1], right = from[i == n - 1 ? 0 : i + 1];
        to[i] = (left + 2 * from[i] + right) / 4;
    }";

/// The coldest cell next to `at`.
pub(crate) fn next(at: usize, heat: impl Fn(usize) -> u64) -> usize {
    let (left, right) = ((at + CELLS - 1) % CELLS, (at + 1) % CELLS);
    if heat(left) < heat(right) { left } else { right }
}

/// The same, all of it by the CPU: what the cells must come to.
pub(crate) fn expected() -> Vec<u64> {
    let (mut cells, mut walkers) = (vec![0; CELLS], WALKERS);
    for _ in 0..ROUNDS {
        let from = cells.clone();
        for (i, cell) in cells.iter_mut().enumerate() {
            *cell = (from[(i + CELLS - 1) % CELLS] + 2 * from[i] + from[(i + 1) % CELLS]) / 4;
        }
        for at in &mut walkers {
            *at = next(*at, |i| cells[i]);
            cells[*at] += HEAT;
        }
    }
    cells
}
