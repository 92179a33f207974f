//! A vCPU's thread: takes a lane from the queue, runs it in the guest until it returns or has to stop.

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::PoisonError;
use std::time::Instant;

use crate::engine::{Core, Once};
use crate::error::{Access, Exception, JobError};
use crate::job::Task;
use crate::kick::{self, Kick, Timer};
use crate::vcpu::{Stop, Vcpu};

/// How long a vCPU stays outside before it looks whether it may enter again.
const OUTSIDE: Duration = Duration::from_micros(20);

pub(crate) fn run(core: &Core, index: usize, vcpu: Vcpu, begun: &Once) {
    // For good: what makes it leave the guest is a signal that it blocks outside, and that may be pending at its end.
    std::mem::forget(pagelease_sys::thread::block_all_signals());
    let timer = match Timer::for_this_thread() {
        Ok(timer) => timer,
        Err(errno) => {
            let _ = begun.set(Err(errno));
            return;
        }
    };
    let _ = core.handle.vcpus[index].set(Kick::for_this_thread());
    let _ = begun.set(Ok(()));
    let mut worker = Worker { core, index, vcpu, timer };
    while let Some(task) = worker.next() {
        let result = worker.lane(&task);
        // What it held goes back before anybody learns that it is over, and what it used is the device's by its word, too.
        if result.is_ok() {
            core.settle(index);
        }
        core.holds.end_of(index);
        task.finish(result);
    }
}

struct Worker<'a> {
    core: &'a Core,
    index: usize,
    vcpu: Vcpu,
    timer: Timer,
}

impl Worker<'_> {
    fn next(&self) -> Option<Task> {
        let mut queue = self.core.queue.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(task) = queue.tasks.pop_front() {
                return Some(task);
            }
            if queue.closed {
                return None;
            }
            queue = self.core.submitted.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lane(&mut self, task: &Task) -> Result<u64, JobError> {
        if task.is_cancelled() {
            return Err(JobError::Cancelled);
        }
        let _ = self.core.take_failure(self.index);
        self.vcpu.enter(task.entry(), task.arguments()).map_err(|errno| JobError::Run { errno })?;
        task.begin(self.index);
        self.timer.set(self.core.config.deadline);
        self.core.handle.running.fetch_add(1, Ordering::SeqCst);
        let result = self.run(task);
        self.core.handle.running.fetch_sub(1, Ordering::SeqCst);
        self.timer.set(Duration::ZERO);
        task.end(self.index);
        if result.is_err() && self.vcpu.reset().is_err() {
            self.core.handle.declare_lost();
        }
        result
    }

    fn run(&mut self, task: &Task) -> Result<u64, JobError> {
        let begun = Instant::now();
        loop {
            self.check(task, begun)?;
            match self.core.handle.inside(|| self.vcpu.run()) {
                None => std::thread::sleep(OUTSIDE),
                Some(Ok(Stop::Interrupted)) => kick::consume(),
                Some(Ok(Stop::Returned(value))) => return Ok(value),
                Some(Ok(stop)) => return Err(stopped(stop)),
                Some(Err(errno)) => {
                    // The page that it wanted could not be had, and whoever found out may just be saying so.
                    self.check(task, begun)?;
                    return Err(JobError::Run { errno });
                }
            }
        }
    }

    /// Whether the lane is to stop.
    fn check(&self, task: &Task, begun: Instant) -> Result<(), JobError> {
        if let Some(lost) = self.core.handle.lost() {
            return Err(lost.into());
        }
        if let Some(failure) = self.core.take_failure(self.index) {
            return Err(failure);
        }
        if task.is_cancelled() {
            return Err(JobError::Cancelled);
        }
        let limit = self.core.config.deadline;
        if begun.elapsed() >= limit {
            return Err(JobError::Deadline { limit, instruction: self.vcpu.instruction() });
        }
        Ok(())
    }
}

fn stopped(stop: Stop) -> JobError {
    match stop {
        Stop::PageFault { address, error, instruction } => {
            let access = match error {
                error if error & 1 << 4 != 0 => Access::Execute,
                error if error & 1 << 1 != 0 => Access::Write,
                _ => Access::Read,
            };
            JobError::Outside { address, instruction, access }
        }
        Stop::NoMemory { gpa, write, instruction } => {
            let access = if write { Access::Write } else { Access::Read };
            JobError::Outside { address: gpa, instruction, access }
        }
        Stop::Fault { vector, error, instruction } => {
            JobError::Fault { exception: Exception::from(vector), error, instruction }
        }
        Stop::Broken { what, instruction } => JobError::Broken { what, instruction },
        Stop::Returned(_) | Stop::Interrupted => unreachable!("not a failure"),
    }
}
