//! What both programs do: heat spreads over a ring of cells, which a shader computes; walkers go where it is coldest and warm it
//! up, which the program computes. Where they go depends on what the shader wrote.

/// Eight mebibytes of cells.
pub(crate) const CELLS: usize = 2 << 20;
pub(crate) const ROUNDS: usize = 100;
pub(crate) const HEAT: u32 = 1 << 16;

/// Cells of a workgroup: 64 invocations, four each.
pub(crate) const GROUP: usize = 64 * 4;

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

pub(crate) const SHADER: &str = "
    @group(0) @binding(0) var<storage, read> before: array<vec4<u32>>;
    @group(0) @binding(1) var<storage, read_write> after: array<vec4<u32>>;
    @compute @workgroup_size(64) fn spread(@builtin(global_invocation_id) id: vec3<u32>) {
        let i = id.x;
        let last = arrayLength(&before) - 1u;
        let here = before[i];
        let left = before[select(i - 1u, last, i == 0u)].w;
        let right = before[select(i + 1u, 0u, i == last)].x;
        after[i] = (vec4(left, here.xyz) + 2u * here + vec4(here.yzw, right)) >> vec4(2u);
    }";

/// The coldest cell next to `at`.
pub(crate) fn next(at: usize, heat: impl Fn(usize) -> u32) -> usize {
    let (left, right) = ((at + CELLS - 1) % CELLS, (at + 1) % CELLS);
    if heat(left) < heat(right) { left } else { right }
}

/// The same, all of it by the CPU: what the cells must come to.
pub(crate) fn expected() -> Vec<u32> {
    let (mut cells, mut walkers) = (vec![0; CELLS], WALKERS);
    for _ in 0..ROUNDS {
        let before = cells.clone();
        for (i, cell) in cells.iter_mut().enumerate() {
            *cell = (before[(i + CELLS - 1) % CELLS] + 2 * before[i] + before[(i + 1) % CELLS]) / 4;
        }
        for at in &mut walkers {
            *at = next(*at, |i| cells[i]);
            cells[*at] += HEAT;
        }
    }
    cells
}
