//! Scenarios: what the actors do. Each is small, and explored whole, for every design.

use super::state::Pte;
use super::symmetry::Symmetry;

/// One operation of an actor's program. A number is a page.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// A CPU load.
    Load(u8),
    /// A CPU atomic add of one.
    Add(u8),
    /// A device's atomic add of one: a load, then a store. Its fault is the driver's claim.
    DeviceAdd(u8),
    /// The same by a device's engine that does not wait for its driver: without a mapping it goes without.
    Work(u8),
    /// The driver claims a page, mapped already or not.
    Claim(u8),
    /// The driver claims both pages in one go.
    ClaimBoth,
    /// The driver claims a page, and the claiming thread adds one to it in the middle of it.
    ClaimTouching(u8),
    /// munmap of everything.
    Munmap,
    /// `madvise(MADV_DONTNEED)` of everything.
    DontNeed,
    /// `mprotect(PROT_READ)` of everything.
    Protect,
    /// mremap of page 0 to the place of page 1.
    Move,
    /// fork.
    Fork,
    /// GUP by a third party (ptrace, `O_DIRECT`), a write through it, and its end.
    Pin(u8),
    /// A split of the huge mapping that nobody here asked for.
    Split,
    /// Reclaim of a page.
    Reclaim(u8),
}

/// Who runs a program.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Role {
    /// A thread of the parent.
    Thread,
    /// A thread of the child: it does not run before fork has ended well.
    Child,
    /// This device and its driver: the device waits while its driver claims.
    Device(u8),
    /// A second engine of this device: it works while the driver claims.
    Engine(u8),
}

/// An actor: a name, a role, a program.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Program {
    /// The name of its lane.
    pub name: &'static str,
    /// Who runs it.
    pub role: Role,
    /// What it does.
    pub ops: &'static [Op],
}

/// A scenario.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens, in one line.
    pub what: &'static str,
    /// The pages' entries at the beginning. One of `None` that nobody but mremap uses is no mapping.
    pub pages: [Pte; 2],
    /// Whether both pages are one folio, mapped by one huge entry.
    pub huge: bool,
    /// The actors, at most five.
    pub programs: &'static [Program],
    /// Whether it is explored only for the designs that ship and the one that sums up: it is the largest.
    pub main_only: bool,
    /// What of it can be swapped.
    pub symmetry: Symmetry,
    /// Whether a second claim here is of a page that the device has already, undisturbed.
    pub repeat: bool,
}

const fn cpu(name: &'static str, ops: &'static [Op]) -> Program {
    Program { name, role: Role::Thread, ops }
}

const fn device(index: u8, ops: &'static [Op]) -> Program {
    Program { name: if index == 0 { "device 0" } else { "device 1" }, role: Role::Device(index), ops }
}

const CHILD: Program = Program { name: "child", role: Role::Child, ops: &[Op::Load(0)] };
const ONE: [Pte; 2] = [Pte::Rw(0), Pte::None];
const TWO: [Pte; 2] = [Pte::Rw(0), Pte::Rw(3)];

const BASE: Scenario = Scenario {
    name: "",
    what: "",
    pages: ONE,
    huge: false,
    programs: &[],
    main_only: false,
    symmetry: Symmetry::None,
    repeat: false,
};

/// Every scenario, small ones first.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "alone",
        what: "a device adds to a writable page, nobody else there",
        programs: &[device(0, &[Op::DeviceAdd(0)])],
        ..BASE
    },
    Scenario {
        name: "repeat",
        what: "a device claims a page that it has, nobody else there",
        programs: &[device(0, &[Op::DeviceAdd(0), Op::Claim(0)])],
        repeat: true,
        ..BASE
    },
    Scenario {
        name: "zero-page",
        what: "a device claims the zero page, nobody else there",
        pages: [Pte::Zero, Pte::None],
        programs: &[device(0, &[Op::DeviceAdd(0)])],
        ..BASE
    },
    Scenario {
        name: "untouched",
        what: "a device claims a page that does not exist yet, nobody else there",
        pages: [Pte::None, Pte::None],
        programs: &[device(0, &[Op::DeviceAdd(0)])],
        ..BASE
    },
    Scenario {
        name: "cow-page",
        what: "fork, then a device claims a page shared with the child",
        programs: &[Program { name: "parent", role: Role::Device(0), ops: &[Op::Fork, Op::DeviceAdd(0)] }, CHILD],
        ..BASE
    },
    Scenario {
        name: "huge-page",
        what: "a device claims a page of a huge mapping, nobody else there",
        pages: TWO,
        huge: true,
        programs: &[device(0, &[Op::DeviceAdd(0)])],
        ..BASE
    },
    Scenario {
        name: "own-fault",
        what: "the claiming thread touches the page in the middle of its claim; a CPU adds meanwhile",
        programs: &[device(0, &[Op::ClaimTouching(0), Op::DeviceAdd(0)]), cpu("CPU 0", &[Op::Add(0)])],
        ..BASE
    },
    Scenario {
        name: "touch",
        what: "a CPU and a device add to one page",
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]),
            cpu("CPU 0", &[Op::Add(0), Op::Load(0), Op::Add(0)]),
        ],
        ..BASE
    },
    Scenario {
        name: "two-cpus",
        what: "two CPUs and a device add to one page",
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]),
            cpu("CPU 0", &[Op::Add(0), Op::Add(0)]),
            cpu("CPU 1", &[Op::Add(0), Op::Add(0)]),
        ],
        symmetry: Symmetry::Cpus,
        ..BASE
    },
    Scenario {
        name: "two-devices",
        what: "two devices add to one page",
        programs: &[device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]), device(1, &[Op::DeviceAdd(0), Op::DeviceAdd(0)])],
        symmetry: Symmetry::Devices,
        ..BASE
    },
    Scenario {
        name: "range",
        what: "a device claims two pages in one go, another adds to one, a CPU to the other",
        pages: TWO,
        programs: &[
            device(0, &[Op::ClaimBoth, Op::DeviceAdd(0), Op::DeviceAdd(1)]),
            device(1, &[Op::DeviceAdd(0)]),
            cpu("CPU 0", &[Op::Add(1)]),
        ],
        ..BASE
    },
    Scenario {
        name: "engine",
        what: "a device claims a page that it has while an engine of it works there, and a CPU adds",
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::Claim(0)]),
            Program { name: "engine", role: Role::Engine(0), ops: &[Op::Work(0)] },
            cpu("CPU 0", &[Op::Add(0)]),
        ],
        ..BASE
    },
    Scenario {
        name: "munmap",
        what: "a device and a CPU add while the page is unmapped",
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]),
            cpu("CPU 0", &[Op::Add(0)]),
            cpu("munmap", &[Op::Munmap]),
        ],
        ..BASE
    },
    Scenario {
        name: "dontneed",
        what: "a device and a CPU add while the contents are dropped",
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]),
            cpu("CPU 0", &[Op::Add(0)]),
            cpu("madvise", &[Op::DontNeed]),
        ],
        ..BASE
    },
    Scenario {
        name: "mprotect",
        what: "a device adds and a CPU loads while the page is made read-only",
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]),
            cpu("CPU 0", &[Op::Load(0), Op::Load(0)]),
            cpu("mprotect", &[Op::Protect]),
        ],
        ..BASE
    },
    Scenario {
        name: "mremap",
        what: "a device adds while the page is moved elsewhere, and a CPU reads it there",
        programs: &[device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]), cpu("mremap", &[Op::Move, Op::Load(1)])],
        ..BASE
    },
    Scenario {
        name: "fork",
        what: "a device and a CPU add while the process forks, and the child reads",
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]),
            cpu("fork", &[Op::Fork]),
            cpu("CPU 0", &[Op::Add(0)]),
            CHILD,
        ],
        ..BASE
    },
    Scenario {
        name: "pin",
        what: "a third party writes through a pin while a device and a CPU add",
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]),
            cpu("GUP", &[Op::Pin(0)]),
            cpu("CPU 0", &[Op::Add(0)]),
        ],
        ..BASE
    },
    Scenario {
        name: "split",
        what: "a device claims a page of a huge mapping, a CPU adds to both, somebody splits it",
        pages: TWO,
        huge: true,
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]),
            cpu("CPU 0", &[Op::Add(0), Op::Add(1)]),
            cpu("splitter", &[Op::Split]),
        ],
        ..BASE
    },
    Scenario {
        name: "reclaim",
        what: "a device and a CPU add while the page is reclaimed",
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(0)]),
            cpu("CPU 0", &[Op::Add(0)]),
            cpu("kswapd", &[Op::Reclaim(0)]),
        ],
        ..BASE
    },
    Scenario {
        name: "crowd",
        what: "two devices, a CPU, and mprotect on two pages",
        pages: TWO,
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(1)]),
            device(1, &[Op::DeviceAdd(1), Op::DeviceAdd(0)]),
            cpu("CPU 0", &[Op::Add(0), Op::Add(1)]),
            cpu("mprotect", &[Op::Protect]),
        ],
        ..BASE
    },
    Scenario {
        name: "mirror",
        what: "two devices and two CPUs, a pair on each of two pages",
        pages: TWO,
        programs: &[
            device(0, &[Op::DeviceAdd(0)]),
            device(1, &[Op::DeviceAdd(1)]),
            cpu("CPU 0", &[Op::Add(0)]),
            cpu("CPU 1", &[Op::Add(1)]),
        ],
        symmetry: Symmetry::Mirror,
        ..BASE
    },
    Scenario {
        name: "throng",
        what: "two devices, a CPU, and DONTNEED on two pages",
        pages: TWO,
        programs: &[
            device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(1)]),
            device(1, &[Op::DeviceAdd(1)]),
            cpu("CPU 0", &[Op::Add(0), Op::Load(1)]),
            cpu("madvise", &[Op::DontNeed]),
        ],
        main_only: true,
        ..BASE
    },
];

/// Scenarios too large to explore: they are sampled (`pagelease lab --random SEED`).
pub const LARGE: &[Scenario] = &[Scenario {
    name: "full",
    what: "two devices and three CPUs on two pages",
    pages: TWO,
    programs: &[
        device(0, &[Op::DeviceAdd(0), Op::DeviceAdd(1), Op::DeviceAdd(0)]),
        device(1, &[Op::DeviceAdd(1), Op::DeviceAdd(0), Op::ClaimBoth]),
        cpu("CPU 0", &[Op::Add(0), Op::Add(1), Op::Load(0)]),
        cpu("CPU 1", &[Op::Add(1), Op::Add(0), Op::Load(1)]),
        cpu("CPU 2", &[Op::Add(0), Op::Load(1), Op::Add(1)]),
    ],
    ..BASE
}];
