//! Where an actor is: every step of the model, under the name of the kernel's function that it is a step of.

use zerocopy::{Immutable, IntoBytes};

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $variant:ident $name:literal)+) => {
        /// The step that an actor takes next.
        #[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, IntoBytes, Immutable)]
        #[repr(u8)]
        pub enum Pc { $($(#[doc = $doc])+ $variant,)+ }

        impl Pc {
            /// Every step.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The function that it is a step of.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

steps! {
    /// Not in a fault.
    None "-"
    /// The program is at its end.
    Done "done"
    /// The child waits to be born.
    Unborn "copy_process"

    /// A CPU access through the page table.
    Access "access"

    /// A fault begins.
    FaultLock "do_user_addr_fault: mmap_read_lock"
    /// What kind of fault it is.
    HandlePte "handle_pte_fault"
    /// A device-exclusive entry: lock its folio.
    FolioLock "remove_device_exclusive_entry: folio_lock_or_retry"
    /// Notify.
    RestoreStart "remove_device_exclusive_entry: mmu_notifier_invalidate_range_start"
    /// Restore the entry if it is still there; unlock.
    RestorePte "restore_exclusive_pte, folio_unlock"
    /// End of it.
    RestoreEnd "remove_device_exclusive_entry: mmu_notifier_invalidate_range_end"
    /// A copy on write: notify.
    CowStart "wp_page_copy: mmu_notifier_invalidate_range_start"
    /// Put the copy.
    CowPte "wp_page_copy: ptep_clear_flush, set_pte_at"
    /// End of it.
    CowEnd "wp_page_copy: mmu_notifier_invalidate_range_end"

    /// The device loads.
    DeviceLoad "device: load"
    /// The device stores.
    DeviceStore "device: store"

    /// The interval notifier is inserted.
    Insert "mmu_interval_notifier_insert"
    /// The driver's loop begins.
    ReadBegin "mmu_interval_read_begin"
    /// The claim begins.
    ClaimMmap "driver: mmap_read_lock"
    /// Split: notify.
    SplitStart "__split_huge_pmd: mmu_notifier_invalidate_range_start"
    /// Split.
    SplitPmd "__split_huge_pmd_locked"
    /// End of it.
    SplitEnd "__split_huge_pmd: mmu_notifier_invalidate_range_end"
    /// Walk, writing.
    Gup "get_user_page_vma_remote"
    /// Lock the folio, or try.
    ClaimLock "make_device_exclusive: folio_lock_killable"
    /// Notify.
    ExclusiveStart "make_device_exclusive: mmu_notifier_invalidate_range_start"
    /// Look again, and put the exclusive entry.
    ExclusivePte "make_device_exclusive: set_pte_at"
    /// End of it.
    ExclusiveEnd "make_device_exclusive: mmu_notifier_invalidate_range_end"
    /// The claiming thread touches the page itself.
    OwnTouch "claiming thread: access"
    /// Unlock before the page is mapped.
    UnlockEarly "folio_unlock"
    /// The driver's mutex.
    MutexLock "mutex_lock"
    /// Compare the sequence.
    ReadRetry "mmu_interval_read_retry"
    /// Map it for the device, unlock the mutex.
    Map "driver: map, mutex_unlock"
    /// Unlock the folio.
    FolioUnlock "folio_unlock"
    /// Unmap it from the device before the folio is unlocked: for a driver without notifier.
    Unmap "driver: unmap"
    /// Give the page back: the device is done.
    Eager "driver: restore"

    /// munmap or DONTNEED begins.
    ZapMmap "zap: mmap_lock"
    /// Notify.
    ZapStart "zap: mmu_notifier_invalidate_range_start"
    /// Zap.
    ZapPte "zap_pte_range"
    /// End of it.
    ZapEnd "zap: mmu_notifier_invalidate_range_end"

    /// mprotect begins.
    ProtectMmap "mprotect_fixup: mmap_write_lock"
    /// Notify.
    ProtectStart "change_protection: mmu_notifier_invalidate_range_start"
    /// Write-protect.
    ProtectPte "change_pte_range"
    /// End of it.
    ProtectEnd "change_protection: mmu_notifier_invalidate_range_end"

    /// mremap begins.
    MoveMmap "mremap: mmap_write_lock"
    /// Notify.
    MoveStart "move_page_tables: mmu_notifier_invalidate_range_start"
    /// Move.
    MovePte "move_ptes"
    /// End of it.
    MoveEnd "move_page_tables: mmu_notifier_invalidate_range_end"

    /// fork begins.
    ForkMmap "dup_mmap: mmap_write_lock"
    /// Restore first.
    ForkRestore "fork: restore first"
    /// Notify.
    ForkStart "copy_page_range: mmu_notifier_invalidate_range_start"
    /// Copy.
    ForkCopy "copy_pte_range"
    /// End of it.
    ForkEnd "copy_page_range: mmu_notifier_invalidate_range_end"

    /// A third party takes a pin.
    PinWalk "pin_user_pages_remote"
    /// It writes through it.
    PinWrite "write through the pin, unpin"

    /// Reclaim tries the folio lock.
    ReclaimLock "shrink_folio_list: folio_trylock"
    /// Notify.
    ReclaimStart "try_to_unmap_one: mmu_notifier_invalidate_range_start"
    /// Unmap.
    ReclaimPte "try_to_unmap_one: set_pte_at, folio_unlock"
    /// End of it.
    ReclaimEnd "try_to_unmap_one: mmu_notifier_invalidate_range_end"
}
