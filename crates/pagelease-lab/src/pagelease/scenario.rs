//! Scenarios: who does what, each a small program.
//!
//! Most programs are finite: whatever goes round for ever is then the protocol's doing. The **endless** ones repeat theirs, and
//! ask whether what others do again and again keeps a touch, or a device's operation, from being made at all. There nothing is
//! counted, so that the states stay finite, and minimum residency is in force.

use pagelease_protocol::Access;

/// What an actor does next.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Op {
    /// Loads from a page.
    Read(u8),
    /// Adds one to a page, atomically.
    Add(u8),
    /// Its device claims the pages from the first up to and without the second.
    Claim {
        /// The first page.
        from: u8,
        /// The page behind the last.
        to: u8,
        /// Which of the actor's leases this becomes: 0 or 1.
        lease: u8,
        /// What it asks for; `None` for what the design says.
        access: Option<Access>,
        /// The device has the pages already.
        again: bool,
    },
    /// Its device adds one to the page, if it may use it: a load, then a store.
    Operate(u8),
    /// Ends a lease.
    End(u8),
    /// Gives the device's view of the region up: everything of it goes back to the CPU.
    DropView,
    /// Drops the region: every device is stopped.
    DropRegion,
    /// Writes to a page through a pin that was taken long ago, past every mapping: a word that no device uses.
    Pinned(u8),
    /// Goes back to the first.
    Repeat,
    /// Goes back to the first unless its device has been able to work on what it claimed.
    Retry,
}

/// Who acts.
#[derive(Copy, Clone, Debug, Eq, PartialEq)]
pub enum Role {
    /// A thread of the program.
    Thread,
    /// A thread of this device: it claims, and works on what it has.
    Device(u8),
    /// Serves faults. Present in every scenario, idle in in-thread mode.
    Monitor,
}

/// An actor and its program.
#[derive(Copy, Clone, Debug)]
pub struct Actor {
    /// Its lane's name.
    pub name: &'static str,
    /// Who it is.
    pub role: Role,
    /// What it does, in order.
    pub ops: &'static [Op],
    /// A signal handler that adds one to this page may interrupt any of its claims, once.
    pub signal: Option<u8>,
}

/// A small program.
#[derive(Copy, Clone, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is about, in one line.
    pub what: &'static str,
    /// How many pages there are: 1 or 2. None exists yet.
    pub pages: u8,
    /// Whether the hold limit may pass at any moment; otherwise it never does.
    pub limited: bool,
    /// Who takes part. The monitor, if there is one, is the last.
    pub actors: &'static [Actor],
}

const MONITOR: Actor = Actor { name: "monitor", role: Role::Monitor, ops: &[], signal: None };

const fn cpu(name: &'static str, ops: &'static [Op]) -> Actor {
    Actor { name, role: Role::Thread, ops, signal: None }
}

const fn device(name: &'static str, device: u8, ops: &'static [Op]) -> Actor {
    Actor { name, role: Role::Device(device), ops, signal: None }
}

const fn claim(from: u8, to: u8) -> Op {
    Op::Claim { from, to, lease: 0, access: None, again: false }
}

const fn again(lease: u8) -> Op {
    Op::Claim { from: 0, to: 1, lease, access: None, again: true }
}

const WORK: &[Op] = &[claim(0, 1), Op::Operate(0), Op::End(0)];
const WORK_ON: &[Op] = &[claim(0, 1), Op::Operate(0), Op::End(0), Op::Operate(0)];
const BOTH: &[Op] = &[claim(0, 2), Op::Operate(0), Op::Operate(1), Op::End(0)];
const NEVER_ENDS: &[Op] = &[claim(0, 1), Op::Operate(0)];

/// All scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "touch",
        what: "a device claims a page, works on it by its lease and after; a thread adds to it and reads it",
        pages: 1,
        limited: false,
        actors: &[device("device", 0, WORK_ON), cpu("thread", &[Op::Add(0), Op::Read(0)]), MONITOR],
    },
    Scenario {
        name: "two-cpus",
        what: "two threads touch the page that a device claims",
        pages: 1,
        limited: false,
        actors: &[
            device("device", 0, WORK),
            cpu("thread A", &[Op::Add(0)]),
            cpu("thread B", &[Op::Read(0), Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "two-devices",
        what: "two devices claim one page, and a thread adds to it",
        pages: 1,
        limited: false,
        actors: &[device("device 0", 0, WORK_ON), device("device 1", 1, WORK), cpu("thread", &[Op::Add(0)]), MONITOR],
    },
    Scenario {
        name: "two-workers",
        what: "two threads of one device claim one page: the second joins the first",
        pages: 1,
        limited: false,
        actors: &[
            device("worker A", 0, &[claim(0, 1), Op::Operate(0), Op::End(0)]),
            device("worker B", 0, &[claim(0, 1), Op::End(0)]),
            cpu("thread", &[Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "repeat",
        what: "a device claims a page that it holds, and once more when it holds it no longer",
        pages: 1,
        limited: false,
        actors: &[
            device(
                "device",
                0,
                &[claim(0, 1), Op::Operate(0), again(1), Op::Operate(0), Op::End(0), Op::End(1), again(0), Op::End(0)],
            ),
            MONITOR,
        ],
    },
    Scenario {
        name: "repeat-touched",
        what: "a device claims a page that it has, while a thread touches it",
        pages: 1,
        limited: true,
        actors: &[
            device("device", 0, &[claim(0, 1), Op::Operate(0), again(1), Op::Operate(0), Op::End(1), Op::End(0)]),
            cpu("thread", &[Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "alone",
        what: "one thread and its device, and nobody who could disturb a claim",
        pages: 2,
        limited: false,
        actors: &[
            device(
                "device",
                0,
                &[
                    Op::Add(0),
                    claim(0, 2),
                    Op::Operate(0),
                    Op::Operate(1),
                    Op::End(0),
                    Op::Add(1),
                    claim(0, 2),
                    Op::Operate(1),
                    Op::End(0),
                ],
            ),
            MONITOR,
        ],
    },
    Scenario {
        name: "after-you",
        what: "one device claims what another has, and nobody disturbs it",
        pages: 1,
        limited: false,
        actors: &[device("device 0", 0, WORK), device("device 1", 1, WORK), MONITOR],
    },
    Scenario {
        name: "own-fault",
        what: "a signal handler touches the page that its thread is just claiming, and so does another thread",
        pages: 1,
        limited: false,
        actors: &[
            Actor { name: "device 0", role: Role::Device(0), ops: WORK, signal: Some(0) },
            device("device 1", 1, WORK),
            cpu("thread", &[Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "crowd",
        what: "as own-fault, with one thread more",
        pages: 1,
        limited: false,
        actors: &[
            Actor { name: "device 0", role: Role::Device(0), ops: WORK, signal: Some(0) },
            device("device 1", 1, WORK),
            cpu("thread A", &[Op::Add(0)]),
            cpu("thread B", &[Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "own-fault-pages",
        what: "a signal handler touches the second of two pages that its thread is just claiming",
        pages: 2,
        limited: false,
        actors: &[
            Actor { name: "device 0", role: Role::Device(0), ops: BOTH, signal: Some(1) },
            device("device 1", 1, &[claim(1, 2), Op::Operate(1), Op::End(0)]),
            cpu("thread", &[Op::Add(1)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "touch-then-claim",
        what: "two threads touch a page, and then claim it: a fault served late must not be taken for the claim's own",
        pages: 1,
        limited: false,
        actors: &[
            device("device 0", 0, &[claim(0, 1), Op::End(0), Op::Add(0), claim(0, 1), Op::Operate(0), Op::End(0)]),
            device("device 1", 1, &[Op::Add(0), claim(0, 1), Op::Operate(0), Op::End(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "own-hold",
        what: "a thread touches the page that it holds itself",
        pages: 1,
        limited: false,
        actors: &[
            device("device", 0, &[claim(0, 1), Op::Operate(0), Op::Add(0), Op::Operate(0), Op::End(0)]),
            cpu("thread", &[Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "hold-limit",
        what: "the hold limit may pass at any moment",
        pages: 1,
        limited: true,
        actors: &[
            device("device", 0, &[claim(0, 1), Op::Operate(0), Op::End(0), claim(0, 1), Op::Operate(0), Op::End(0)]),
            cpu("thread", &[Op::Add(0), Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "stuck-hold",
        what: "a lease never ends: touches break its hold",
        pages: 1,
        limited: true,
        actors: &[
            device("device", 0, NEVER_ENDS),
            cpu("thread A", &[Op::Add(0)]),
            cpu("thread B", &[Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "stuck-claim",
        what: "a lease never ends: another device's claim breaks its hold",
        pages: 1,
        limited: true,
        actors: &[device("device 0", 0, NEVER_ENDS), device("device 1", 1, WORK), MONITOR],
    },
    Scenario {
        name: "stuck-both",
        what: "a lease never ends: another device and a thread want the page",
        pages: 1,
        limited: true,
        actors: &[
            device("device 0", 0, NEVER_ENDS),
            device("device 1", 1, WORK),
            cpu("thread", &[Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "release",
        what: "the region is dropped while devices claim and work",
        pages: 1,
        limited: false,
        actors: &[
            device("device 0", 0, WORK_ON),
            device("device 1", 1, WORK),
            cpu("owner", &[Op::DropRegion]),
            MONITOR,
        ],
    },
    Scenario {
        name: "stuck-release",
        what: "the region is dropped while a claim waits for a lease that never ends",
        pages: 1,
        limited: false,
        actors: &[
            device("device 0", 0, NEVER_ENDS),
            device("device 1", 1, WORK),
            cpu("owner", &[Op::DropRegion]),
            MONITOR,
        ],
    },
    Scenario {
        name: "view",
        what: "a device gives its view up while another device claims the page and a thread touches it",
        pages: 1,
        limited: false,
        actors: &[
            device("device 0", 0, &[claim(0, 1), Op::Operate(0), Op::End(0), Op::DropView]),
            device("device 1", 1, WORK),
            cpu("thread", &[Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "stuck-view",
        what: "a device gives its view up while another takes the page and never ends its lease",
        pages: 1,
        limited: true,
        actors: &[
            device("device 0", 0, &[claim(0, 1), Op::End(0), Op::DropView]),
            device("device 1", 1, NEVER_ENDS),
            MONITOR,
        ],
    },
    Scenario {
        name: "two-pages",
        what: "claims of two pages and of the second, and a thread that touches the second and then the first",
        pages: 2,
        limited: false,
        actors: &[
            device("device 0", 0, BOTH),
            device("device 1", 1, &[claim(1, 2), Op::Operate(1), Op::End(0)]),
            cpu("thread", &[Op::Add(1), Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "crossing",
        what: "two devices claim the same two pages",
        pages: 2,
        limited: false,
        actors: &[device("device 0", 0, BOTH), device("device 1", 1, BOTH), MONITOR],
    },
    Scenario {
        name: "upgrade",
        what: "a device that has a page for writing claims all of it, while a thread reads and adds",
        pages: 1,
        limited: false,
        actors: &[
            device(
                "device",
                0,
                &[
                    Op::Claim { from: 0, to: 1, lease: 0, access: Some(Access::ExclusiveWrite), again: false },
                    Op::Operate(0),
                    Op::End(0),
                    Op::Claim { from: 0, to: 1, lease: 0, access: Some(Access::Exclusive), again: false },
                    Op::Operate(0),
                    Op::End(0),
                ],
            ),
            cpu("thread", &[Op::Read(0), Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "pin",
        what: "somebody goes on writing through a pin that was taken before the claim",
        pages: 1,
        limited: false,
        actors: &[device("device", 0, WORK), cpu("pin", &[Op::Pinned(0)]), MONITOR],
    },
    Scenario {
        name: "endless-claims",
        what: "a device claims a page and works on it again and again, and a thread wants to add to it once",
        pages: 1,
        limited: false,
        actors: &[
            device("device", 0, &[claim(0, 1), Op::Operate(0), Op::End(0), Op::Repeat]),
            cpu("thread", &[Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "endless-holds",
        what: "two threads of a device claim a page again and again, in turn, and a thread wants to add to it once",
        pages: 1,
        limited: false,
        actors: &[
            device("worker A", 0, &[claim(0, 1), Op::End(0), Op::Repeat]),
            device("worker B", 0, &[claim(0, 1), Op::End(0), Op::Repeat]),
            cpu("thread", &[Op::Add(0)]),
            MONITOR,
        ],
    },
    Scenario {
        name: "endless-touches",
        what: "a thread adds to a page again and again, and a device wants to work on it once",
        pages: 1,
        limited: false,
        actors: &[
            device("device", 0, &[claim(0, 1), Op::Operate(0), Op::End(0), Op::Retry]),
            cpu("thread", &[Op::Add(0), Op::Repeat]),
            MONITOR,
        ],
    },
];

impl Scenario {
    /// Whether a program goes round for ever.
    #[must_use]
    pub fn is_endless(&self) -> bool {
        self.actors.iter().any(|actor| actor.ops.contains(&Op::Repeat))
    }

    /// The scenario of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }
}
