//! Reading a history.

use core::str::FromStr;

use pagelease::{Access, Faults, PageRange, RestorePolicy};

use super::history::{Actor, Doing, History, Kind, Operation, Setting, Step};
use super::word::{Change, Word};

impl FromStr for History {
    type Err = String;

    /// Reads the text of a history, or of the part above its steps: then it has none.
    ///
    /// # Errors
    /// Which line is wrong, and why.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut draft = Draft::default();
        let mut steps = None;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.split('#').next().unwrap_or_default().trim();
            let read = match (&mut steps, line) {
                (_, "") => Ok(()),
                (None, "steps:") => {
                    steps = Some(Vec::new());
                    Ok(())
                }
                (None, line) => draft.line(line),
                (Some(steps), line) => draft.step(line, number).map(|step| steps.push(step)),
            };
            read.map_err(|why| format!("line {number}: {why}"))?;
        }
        draft.finish(steps.unwrap_or_default())
    }
}

/// What was read above the steps.
#[derive(Default)]
struct Draft {
    faults: Option<Faults>,
    access: Option<Access>,
    policy: Option<RestorePolicy>,
    limit_passes: Option<bool>,
    pages: Option<u32>,
    actors: Vec<Actor>,
}

impl Draft {
    fn line(&mut self, line: &str) -> Result<(), String> {
        let (name, value) = line.split_once(':').ok_or("neither `NAME: VALUE` nor `steps:`")?;
        let (name, value) = (name.trim(), value.trim());
        match name {
            "faults" => {
                choose(&mut self.faults, value, &[("monitor", Faults::Monitor), ("in-thread", Faults::InThread)])
            }
            "access" => {
                let known = [("exclusive", Access::Exclusive), ("exclusive-write", Access::ExclusiveWrite)];
                choose(&mut self.access, value, &known)
            }
            "policy" => {
                choose(&mut self.policy, value, &[("lazy", RestorePolicy::Lazy), ("eager", RestorePolicy::Eager)])
            }
            "limit" => choose(&mut self.limit_passes, value, &[("never", false), ("passes", true)]),
            "pages" => {
                let pages = value.parse().ok().filter(|pages| (1..=64).contains(pages));
                self.pages = Some(pages.ok_or_else(|| format!("`{value}` is no number of pages from 1 to 64"))?);
                Ok(())
            }
            name => self.actor(name, value),
        }
    }

    fn actor(&mut self, name: &str, program: &str) -> Result<(), String> {
        if self.actors.iter().any(|actor| actor.name == name) {
            return Err(format!("there is an actor {name} already"));
        }
        let kind = kind(name).ok_or_else(|| {
            format!("`{name}` is no setting, and no actor: those are cpuN, deviceN, deviceNx (N from 1 on) and monitor")
        })?;
        let program: Vec<_> = program
            .split(';')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| operation(part, kind))
            .collect::<Result<_, _>>()?;
        check_leases(&program)?;
        self.actors.push(Actor { name: name.to_owned(), kind, program });
        Ok(())
    }

    fn step(&self, line: &str, number: usize) -> Result<Step, String> {
        let (name, rest) =
            line.split_once(char::is_whitespace).ok_or("a step is `ACTOR PAGE BEFORE -> AFTER`, or `ACTOR runs`")?;
        let actor = self.actors.iter().position(|actor| actor.name == name);
        let actor = actor.ok_or_else(|| format!("there is no actor `{name}`"))?;
        let rest = rest.trim();
        if rest == "runs" {
            return Ok(Step { line: number, actor, doing: Doing::Runs });
        }
        let change =
            rest.split_once(char::is_whitespace).and_then(|(page, words)| Some((page, words.split_once("->")?)));
        let (page, (before, after)) = change.ok_or("a step is `ACTOR PAGE BEFORE -> AFTER`, or `ACTOR runs`")?;
        let change = Change { page: self.page(page)?, before: Word::parse(before)?, after: Word::parse(after)? };
        if change.before == change.after {
            return Err("it changes nothing".to_owned());
        }
        Ok(Step { line: number, actor, doing: Doing::Makes(change) })
    }

    fn page(&self, text: &str) -> Result<u32, String> {
        let pages = self.pages.unwrap_or(0);
        text.parse().ok().filter(|&page| page < pages).ok_or_else(|| format!("`{text}` is none of {pages} pages"))
    }

    fn finish(self, steps: Vec<Step>) -> Result<History, String> {
        let missing = |what: &str| format!("the history does not say `{what}:`");
        let setting = Setting {
            faults: self.faults.ok_or_else(|| missing("faults"))?,
            access: self.access.ok_or_else(|| missing("access"))?,
            policy: self.policy.ok_or_else(|| missing("policy"))?,
            limit_passes: self.limit_passes.unwrap_or(false),
            pages: self.pages.ok_or_else(|| missing("pages"))?,
        };
        let monitored = self.actors.iter().any(|actor| actor.kind == Kind::Monitor);
        if monitored != (setting.faults == Faults::Monitor) {
            return Err("there is an actor `monitor` exactly where faults are served by one".to_owned());
        }
        for Actor { name, program, .. } in &self.actors {
            for operation in program {
                let end = match *operation {
                    Operation::Touch(page) | Operation::Add(page) | Operation::Load(page) => page + 1,
                    Operation::Prefetch(pages) | Operation::Claim(pages) => pages.end(),
                    Operation::Drop => 0,
                };
                if end > setting.pages {
                    return Err(format!("{name}: `{operation}` goes behind the last of {} pages", setting.pages));
                }
            }
        }
        let devices = devices(&self.actors);
        if let Some(missing) = (1..=devices.iter().copied().max().unwrap_or(0)).find(|id| !devices.contains(id)) {
            return Err(format!("there is no device{missing}: devices are numbered without a gap"));
        }
        Ok(History { setting, actors: self.actors, steps })
    }
}

fn devices(actors: &[Actor]) -> Vec<u8> {
    actors.iter().filter_map(|actor| if let Kind::Device(id) = actor.kind { Some(id) } else { None }).collect()
}

fn choose<T: Copy>(place: &mut Option<T>, value: &str, known: &[(&str, T)]) -> Result<(), String> {
    let found = known.iter().find(|(name, _)| *name == value);
    let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
    *place = Some(found.ok_or_else(|| format!("`{value}` is neither of {}", names.join(", ")))?.1);
    Ok(())
}

fn kind(name: &str) -> Option<Kind> {
    if name == "monitor" {
        return Some(Kind::Monitor);
    }
    if let Some(number) = name.strip_prefix("cpu") {
        return number.parse::<u8>().is_ok().then_some(Kind::Cpu);
    }
    let number = name.strip_prefix("device")?;
    let number = number.strip_suffix(|last: char| last.is_ascii_lowercase()).unwrap_or(number);
    number.parse().ok().filter(|&id| id != 0).map(Kind::Device)
}

fn operation(text: &str, kind: Kind) -> Result<Operation, String> {
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let page = || rest.trim().parse::<u32>().map_err(|_| format!("`{text}`: `{rest}` is no page"));
    let pages = || {
        let (start, end) = rest.split_once("..").unwrap_or((rest, ""));
        let start = start.trim().parse::<u32>().ok();
        let end = if end.is_empty() { start.map(|start| start + 1) } else { end.trim().parse().ok() };
        start
            .zip(end)
            .and_then(|(start, end)| PageRange::new(start, end))
            .ok_or(format!("`{text}`: `{rest}` is no range of pages"))
    };
    match (kind, name) {
        (Kind::Cpu | Kind::Device(_), "touch") => page().map(Operation::Touch),
        (Kind::Cpu | Kind::Device(_), "add") => page().map(Operation::Add),
        (Kind::Cpu, "load") => page().map(Operation::Load),
        (Kind::Cpu, "prefetch") => pages().map(Operation::Prefetch),
        (Kind::Device(_), "claim") => pages().map(Operation::Claim),
        (Kind::Device(_), "drop") if rest.is_empty() => Ok(Operation::Drop),
        _ => Err(format!("`{text}` is nothing that this actor can do")),
    }
}

fn check_leases(program: &[Operation]) -> Result<(), String> {
    let mut leases = 0_u32;
    for operation in program {
        match operation {
            Operation::Claim(_) => leases += 1,
            Operation::Drop => leases = leases.checked_sub(1).ok_or("it drops a lease that it does not have")?,
            _ => {}
        }
    }
    if leases == 0 { Ok(()) } else { Err("it ends with a lease: drop it".to_owned()) }
}
