//! The CPU's fault: mm/memory.c. Taken by CPU threads, and on behalf of a claim, a GUP, a restore.

use super::design::Mutant;
use super::pc::Pc;
use super::state::{NOTHING, Prot, Pte};
use super::turn::Turn;

impl Turn<'_> {
    /// Whether whoever faults has the mmap lock already, and keeps it.
    fn has_mmap_lock(&self) -> bool {
        matches!(self.me().pc, Pc::Gup | Pc::ZapPte | Pc::ProtectPte | Pc::ForkRestore)
    }

    /// Begins a fault of the page that [`Turn::faulting`] names, where the walk has found it.
    pub(super) fn fault(&mut self) {
        self.me_mut().fault = if self.has_mmap_lock() { Pc::HandlePte } else { Pc::FaultLock };
    }

    /// The fault is over; whoever took it looks again.
    fn fault_done(&mut self) {
        // A child's mmap lock is nobody else's: it is not modelled.
        if !self.has_mmap_lock() && self.mm() == 0 {
            self.mmap_read_unlock();
        }
        let me = self.me_mut();
        (me.fault, me.fault_frame) = (Pc::None, NOTHING);
    }

    fn fault_goto(&mut self, pc: Pc) {
        self.me_mut().fault = pc;
    }

    pub(super) fn fault_step(&mut self, pc: Pc) -> Option<()> {
        self.only()?;
        let (page, write) = self.faulting();
        let mm = self.mm();
        match pc {
            Pc::FaultLock => {
                if mm == 0 {
                    self.mmap_read_lock()?;
                }
                self.fault_goto(Pc::HandlePte);
            }
            Pc::HandlePte => self.handle_pte(mm, page, write)?,
            Pc::FolioLock => {
                if self.kernel.design.residency && self.awaits_operation(self.me().fault_frame) {
                    return None;
                }
                self.lock(self.me().fault_frame)?;
                self.fault_goto(Pc::RestoreStart);
            }
            Pc::RestoreStart => {
                if self.notify()? {
                    self.fault_goto(Pc::RestorePte);
                }
            }
            Pc::RestorePte => {
                let frame = self.me().fault_frame;
                if self.state.pte(mm, page) == Pte::Exclusive(frame) {
                    self.restore(mm, page);
                }
                if self.kernel.design.mutant != Mutant::RestoreKeepsLock {
                    self.unlock(frame);
                }
                self.fault_goto(Pc::RestoreEnd);
            }
            Pc::RestoreEnd | Pc::CowEnd => {
                self.notify_end();
                self.fault_done();
            }
            Pc::CowStart => {
                if self.notify()? {
                    self.fault_goto(Pc::CowPte);
                }
            }
            Pc::CowPte => {
                let old = self.state.pte(mm, page);
                if matches!(old, Pte::Ro(_) | Pte::Zero) {
                    let value = old.frame().map_or(0, |frame| self.state.value(frame));
                    let copy = self.allocate(page, value);
                    self.state.set_pte(mm, page, Pte::Rw(copy));
                }
                self.fault_goto(Pc::CowEnd);
            }
            other => unreachable!("{} is no step of a fault", other.name()),
        }
        Some(())
    }

    fn handle_pte(&mut self, mm: usize, page: usize, write: bool) -> Option<()> {
        let refused = mm == 0 && self.refused(page, write);
        match self.state.pte(mm, page) {
            _ if refused && !self.has_mmap_lock() => self.fault_done(),
            Pte::None => {
                let pte = if write { Pte::Rw(self.allocate(page, 0)) } else { Pte::Zero };
                self.state.set_pte(mm, page, pte);
                self.fault_done();
            }
            Pte::Swap(frame) => {
                // do_swap_page takes the folio lock for as long as it puts the entry.
                if self.locked(frame) {
                    return None;
                }
                let writable = mm == 0 && self.state.prot[page] == Prot::Write && !self.shared(mm, page, frame);
                self.state.set_pte(mm, page, if writable { Pte::Rw(frame) } else { Pte::Ro(frame) });
                self.fault_done();
            }
            Pte::Exclusive(frame) => {
                self.me_mut().fault_frame = frame;
                self.fault_goto(Pc::FolioLock);
            }
            Pte::Ro(frame) if write && !self.shared(mm, page, frame) => {
                // wp_page_reuse: nobody else has it, nobody is told.
                self.state.set_pte(mm, page, Pte::Rw(frame));
                self.fault_done();
            }
            Pte::Ro(_) | Pte::Zero if write => self.fault_goto(Pc::CowStart),
            Pte::Ro(_) | Pte::Zero | Pte::Rw(_) => self.fault_done(),
        }
        Some(())
    }

    /// Whether the other address space has the frame as well.
    pub(super) fn shared(&self, mm: usize, page: usize, frame: u8) -> bool {
        self.state.pte(1 - mm, page).frame() == Some(frame)
    }

    /// `restore_exclusive_pte`: writable if the mapping is, and nobody shares the page.
    pub(super) fn restore(&mut self, mm: usize, page: usize) {
        let Pte::Exclusive(frame) = self.state.pte(mm, page) else { unreachable!("nothing to restore") };
        let writable = self.state.prot[page] == Prot::Write && !self.shared(mm, page, frame);
        self.state.set_pte(mm, page, if writable { Pte::Rw(frame) } else { Pte::Ro(frame) });
    }
}
