//! How a submission's commands are put into the queue.
//!
//! ```text
//!   in place          the commands
//!   otherwise         write each range to its buffer, from where it lies
//!                     the commands
//!                     read each range from its buffer, to where it lies
//! ```
//!
//! That a `CL_MEM_USE_HOST_PTR` buffer is written from and read to its own memory is how OpenCL has the two brought in line. All of
//! it lies between the claim and the fence, and concerns only pages that the submission has: a driver that copies overwrites
//! nobody's stores.

use opencl3::command_queue::{enqueue_read_buffer, enqueue_write_buffer};
use opencl3::event::Event;
use opencl3::types::{CL_FALSE, cl_event, cl_mem};
use pagelease::PageRange;
use pagelease::submit::{Submission, Submitter, Use};
use pagelease_sys::fork;

use crate::buffers::{Buffers, Part};
use crate::error::{DriverError, SubmitError, of};
use crate::fence::Fence;
use crate::queue::OpenClQueue;

/// What a submission uses: each range once, none overlapping another.
pub(crate) struct Ranges {
    parts: Vec<Part>,
}

impl Ranges {
    pub(crate) fn new<'a>(
        queue: &OpenClQueue,
        named: impl Iterator<Item = (&'a Buffers, PageRange)>,
    ) -> Result<Self, SubmitError> {
        if fork::in_child() {
            return Err(SubmitError::Forked);
        }
        let mut parts: Vec<Part> = Vec::new();
        for (buffers, pages) in named {
            if !buffers.queue().is(queue) {
                return Err(SubmitError::ForeignDevice { what: format!("the buffer of {pages}") });
            }
            match parts.iter().find(|part| part.of.is(buffers) && part.pages.overlaps(pages)) {
                Some(part) if part.pages == pages => {}
                Some(part) => return Err(SubmitError::Overlap { first: part.pages, second: pages }),
                None => parts.push(buffers.part(pages)?),
            }
        }
        Ok(Self { parts })
    }

    /// The buffer of a range that was named.
    pub(crate) fn buffer_of(&self, buffers: &Buffers, pages: PageRange) -> cl_mem {
        let part = self.parts.iter().find(|part| part.of.is(buffers) && part.pages == pages);
        part.expect("it was named").buffer()
    }

    /// Claims the pages, and puts the commands into the queue.
    pub(crate) fn submit(
        self,
        submitter: &Submitter<OpenClQueue>,
        commands: impl FnOnce(&OpenClQueue, &Self, &[cl_event]) -> Result<Event, SubmitError>,
    ) -> Result<Submission<OpenClQueue>, SubmitError> {
        let uses: Vec<_> = self.parts.iter().map(|part| (part.of.clone(), part.pages)).collect();
        let uses: Vec<_> = uses.iter().map(|(of, pages)| Use { view: of.view(), pages: *pages }).collect();
        // Why it was refused, in more words than a driver has.
        let mut refused = None;
        let submission = submitter.submit(&uses, |queue| {
            let (last, why) = self.enqueue(queue, commands);
            let failed = why.as_ref().map(|_| DriverError::new("enqueuing the submission", 0));
            refused = why;
            match last {
                Some(last) => Ok(Fence::new(last, self.parts)),
                None => Err(failed.expect("nothing was enqueued only if something failed")),
            }
        });
        match (submission, refused) {
            // What was enqueued before it failed ends by itself, and the pages are held until then.
            (_, Some(refused)) => Err(refused),
            (Ok(submission), None) => Ok(submission),
            (Err(error), None) => Err(error.into()),
        }
    }

    /// The event of the last command that was enqueued, if any was, and why there are not more.
    fn enqueue(
        &self,
        queue: &OpenClQueue,
        commands: impl FnOnce(&OpenClQueue, &Self, &[cl_event]) -> Result<Event, SubmitError>,
    ) -> (Option<Event>, Option<SubmitError>) {
        let mut chain = Chain { queue, last: None };
        let result = self.enqueue_on(&mut chain, commands);
        let flushed = queue.commands().flush().map_err(of("clFlush"));
        (chain.last, result.err().or_else(|| flushed.err().map(SubmitError::from)))
    }

    fn enqueue_on(
        &self,
        chain: &mut Chain<'_>,
        commands: impl FnOnce(&OpenClQueue, &Self, &[cl_event]) -> Result<Event, SubmitError>,
    ) -> Result<(), SubmitError> {
        if !chain.queue.in_place() {
            self.parts.iter().try_for_each(|part| chain.write(part))?;
        }
        let queue = chain.queue;
        chain.add(|wait| commands(queue, self, wait))?;
        if !chain.queue.in_place() {
            self.parts.iter().try_for_each(|part| chain.read(part))?;
        }
        Ok(())
    }
}

/// Commands one after the other, also in a queue that is out of order.
struct Chain<'a> {
    queue: &'a OpenClQueue,
    last: Option<Event>,
}

impl Chain<'_> {
    fn add<E>(&mut self, command: impl FnOnce(&[cl_event]) -> Result<Event, E>) -> Result<(), E> {
        let wait: Vec<_> = self.last.iter().map(Event::get).collect();
        self.last = Some(command(&wait)?);
        Ok(())
    }

    /// The device's copy of a range becomes what lies in memory.
    fn write(&mut self, part: &Part) -> Result<(), DriverError> {
        let (queue, buffer, host) = (self.queue.commands().get(), part.buffer(), part.host().as_ptr());
        self.add(|wait| {
            let (count, list) = raw(wait);
            // SAFETY: the buffer is as long, and so is its memory, which stays until the fence has ended; the events are alive.
            unsafe { enqueue_write_buffer(queue, buffer, CL_FALSE, 0, part.len, host, count, list) }
                .map(Event::new)
                .map_err(|code| DriverError::new("clEnqueueWriteBuffer", code))
        })
    }

    /// And the other way round.
    fn read(&mut self, part: &Part) -> Result<(), DriverError> {
        let (queue, buffer, host) = (self.queue.commands().get(), part.buffer(), part.host().as_ptr());
        self.add(|wait| {
            let (count, list) = raw(wait);
            // SAFETY: as above.
            unsafe { enqueue_read_buffer(queue, buffer, CL_FALSE, 0, part.len, host, count, list) }
                .map(Event::new)
                .map_err(|code| DriverError::new("clEnqueueReadBuffer", code))
        })
    }
}

/// A list of events, of which there is one or none, as OpenCL takes it.
fn raw(wait: &[cl_event]) -> (u32, *const cl_event) {
    (u32::from(!wait.is_empty()), wait.first().map_or(core::ptr::null(), core::ptr::from_ref))
}

#[cfg(test)]
mod tests;
