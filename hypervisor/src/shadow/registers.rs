//! Roots: which shadow pages a vCPU starts from, and what the guest's changes of registers and flushes mean for them
//! (`kvm_mmu_load`, `kvm_mmu_new_pgd`, `kvm_invalidate_pcid`, `kvm_handle_invpcid`).

use emu_core::Gva;
use emu_core::regs::Cr4;
use emu_core::sync::Task;
use mmu::{GuestPaging, Invpcid, PagingChange, PagingState, Pcid};

use super::fetch::Means;
use super::pages::Standing;
use super::vcpus::{CachedRoot, PREVIOUS, Root, RootSpec, VcpuShadow, effective, root_specs};
use super::{Origin, RoleControls, ShadowVm, TableFormat};
use crate::config::VmError;
use crate::flush::Owed;
use crate::vcpu::VcpuId;
use crate::vm::Vm;

/// A change of the guest's registers that could not be made good.
type Loaded = Result<PagingState, VmError>;

impl Vm {
    /// Takes note of the guest's paging registers on `vcpu` after `change`, synchronises what the change flushes, and
    /// gives the registers that the processor is to run with.
    pub fn set_guest_paging(&self, vcpu: VcpuId, guest: &PagingState, change: PagingChange, task: &Task<'_>) -> Loaded {
        let shadow = self.shadow()?;
        let mut state = shadow.vcpu(vcpu)?.lock(task);
        let state = &mut *state;
        let old = *state.paging.state();
        state.paging = GuestPaging::new(&shadow.features, guest);
        let like = |a: &PagingState, b: &PagingState| {
            TableFormat::of(a.mode()) == TableFormat::of(b.mode())
                && a.mode() == b.mode()
                && RoleControls::of(a) == RoleControls::of(b)
        };
        let flushes = match change {
            PagingChange::MovCr3 => Some(Scope::Pcid(guest.pcid())),
            PagingChange::MovCr3NoFlush | PagingChange::ProtectionKeys | PagingChange::WorldSwitch => None,
            PagingChange::MovCr4 if (old.cr4 ^ guest.cr4).intersects(FLUSHING) => Some(Scope::All),
            PagingChange::MovCr4 => None,
            PagingChange::MovCr0 | PagingChange::WriteEfer if like(&old, guest) => None,
            PagingChange::MovCr0 | PagingChange::WriteEfer | PagingChange::Reset => Some(Scope::All),
        };
        if !like(&old, guest) {
            self.drop_roots(state, task);
        } else if !same_root(&old, guest) {
            self.leave_root(state, &old, task);
        }
        if let Some(scope) = flushes {
            self.invalidate(shadow, state, scope, task);
        }
        self.load(vcpu, state, task)
    }

    /// The registers for `vcpu`'s next entry, if what it runs with is no longer good: its root was zapped.
    pub fn reload_guest_paging(&self, vcpu: VcpuId, task: &Task<'_>) -> Result<Option<PagingState>, VmError> {
        let shadow = self.shadow()?;
        if !shadow.reloads.take(usize::from(vcpu.0)) {
            return Ok(None);
        }
        let mut state = shadow.vcpu(vcpu)?.lock(task);
        self.load(vcpu, &mut state, task).map(Some)
    }

    /// Whether `vcpu` must take [`Vm::reload_guest_paging`], or in an SNP guest [`Vm::snp_reload_save_area`], before it runs
    /// the guest. Asked once more when it has entered: whoever takes something away from then on waits for it.
    pub fn must_reload(&self, vcpu: VcpuId) -> bool {
        if self.snp.is_some() {
            let vcpu = self.vcpus.get(usize::from(vcpu.0));
            return vcpu.is_some_and(|vcpu| vcpu.area_stale.load(core::sync::atomic::Ordering::Acquire));
        }
        self.shadow.as_ref().is_some_and(|shadow| shadow.reloads.is_asked(usize::from(vcpu.0)))
    }

    /// INVLPG on `vcpu`: the page of `gva`, under every root it has (`kvm_mmu_invlpg`).
    pub fn shadow_invlpg(&self, vcpu: VcpuId, gva: Gva, task: &Task<'_>) -> Result<(), VmError> {
        let shadow = self.shadow()?;
        let mut state = shadow.vcpu(vcpu)?.lock(task);
        self.invalidate(shadow, &mut state, Scope::Address { gva, pcid: None }, task);
        Ok(())
    }

    /// INVPCID on `vcpu` (`kvm_handle_invpcid`).
    pub fn shadow_invpcid(&self, vcpu: VcpuId, what: Invpcid, task: &Task<'_>) -> Result<(), VmError> {
        let shadow = self.shadow()?;
        let mut state = shadow.vcpu(vcpu)?.lock(task);
        let scope = match what {
            Invpcid::Address { pcid, gva } => Scope::Address { gva, pcid: Some(pcid) },
            Invpcid::Single { pcid } => Scope::Pcid(pcid),
            Invpcid::AllWithGlobals | Invpcid::All => Scope::All,
        };
        self.invalidate(shadow, &mut state, scope, task);
        Ok(())
    }

    /// Synchronises what a flush of the guest covers.
    fn invalidate(&self, shadow: &ShadowVm, state: &mut VcpuShadow, scope: Scope, task: &Task<'_>) {
        if matches!(scope, Scope::Address { .. }) && !shadow.known.any_unsync() {
            // Every page follows its guest table: there is nothing to bring up to date (`is_unsync_root`).
            return;
        }
        let VcpuShadow { paging, root, previous, .. } = state;
        let current = paging.state().pcid();
        let tables = self.mmu.write(task);
        let mut pages = tables.shadow.lock(task);
        let Some(pages) = pages.as_deref_mut() else { return };
        let mut owed = Owed::default();
        let flush = |owed: &Owed| self.flush(owed, task);
        match scope {
            Scope::Address { gva, pcid } => {
                if pcid.is_none_or(|pcid| pcid == current) {
                    pages.sync_address(*root, gva, paging, &mut owed, task);
                }
                for cached in previous.iter() {
                    if pcid.is_none_or(|pcid| pcid == Pcid::new(cached.cr3 as u16)) {
                        pages.sync_address(Root::Long(cached.page), gva, paging, &mut owed, task);
                    }
                }
            }
            Scope::Pcid(pcid) => {
                if pcid == current {
                    pages.sync_root(*root, paging, &flush, &mut owed, task);
                }
                // Without PCIDs every way back to a root synchronises it.
                if paging.state().cr4.contains(Cr4::PCIDE) {
                    previous.retain(|cached| {
                        let stays = Pcid::new(cached.cr3 as u16) != pcid;
                        if !stays {
                            pages.put_root(cached.page);
                        }
                        stays
                    });
                }
            }
            Scope::All => {
                pages.sync_root(*root, paging, &flush, &mut owed, task);
                previous.drain(..).for_each(|cached| pages.put_root(cached.page));
            }
        }
        self.flush(&owed, task);
        pages.bury(&self.host, task);
    }

    /// Gives every root of a vCPU up.
    fn drop_roots(&self, state: &mut VcpuShadow, task: &Task<'_>) {
        let tables = self.mmu.write(task);
        let mut pages = tables.shadow.lock(task);
        let Some(pages) = pages.as_deref_mut() else { return };
        state.root.pages().for_each(|page| pages.put_root(page));
        state.root = Root::None;
        state.previous.drain(..).for_each(|cached| pages.put_root(cached.page));
        let everything = {
            let mut owed = Owed::default();
            owed.all();
            owed
        };
        // A table that is freed may still be in this processor's paging-structure caches.
        self.flush(&everything, task);
        pages.bury(&self.host, task);
    }

    /// Puts the current root, which was that of `old`, into the cache.
    fn leave_root(&self, state: &mut VcpuShadow, old: &PagingState, task: &Task<'_>) {
        let tables = self.mmu.write(task);
        let mut pages = tables.shadow.lock(task);
        let Some(pages) = pages.as_deref_mut() else { return };
        match core::mem::take(&mut state.root) {
            Root::Long(page) => {
                state.previous.insert(0, CachedRoot { cr3: old.cr3, page });
                if state.previous.len() > PREVIOUS
                    && let Some(last) = state.previous.pop()
                {
                    pages.put_root(last.page);
                }
            }
            root => root.pages().for_each(|page| pages.put_root(page)),
        }
    }

    /// Loads the root of the guest's registers: the one there is, one from the cache, or one found or made now.
    fn load(&self, vcpu: VcpuId, state: &mut VcpuShadow, task: &Task<'_>) -> Loaded {
        let slots = self.slots.read(task);
        let guest = *state.paging.state();
        let specs = root_specs(&guest);
        // Before the tables are looked up: what is found is as old as this.
        let before = self.invalidation.sample();
        let frames: Vec<Option<(RootSpec, Option<emu_core::Sfn>)>> = specs
            .into_iter()
            .map(|spec| {
                let spec = spec?;
                match spec.role.origin {
                    Origin::Direct => Some((spec, None)),
                    Origin::Guest => self.table_frame(&slots, spec.gfn, task).map(|sfn| (spec, Some(sfn))),
                }
            })
            .collect();
        super::fault::top_up(self, &mut state.tables, task)?;
        let tables = self.mmu.write(task);
        let mut pages = tables.shadow.lock(task);
        let Some(pages) = pages.as_deref_mut() else { return Err(VmError::NotShadowing) };
        let mut owed = Owed::default();
        let VcpuShadow { paging, root, previous, tables: cache } = state;
        previous.retain(|cached| {
            let stays = pages.page(cached.page).standing == Standing::Valid;
            if !stays {
                pages.put_root(cached.page);
            }
            stays
        });
        if root.pages().any(|page| pages.page(page).standing == Standing::Invalid) || *root == Root::Dummy {
            root.pages().for_each(|page| pages.put_root(page));
            *root = Root::None;
        }
        if *root == Root::None
            && let Some(at) = previous.iter().position(|cached| same_table(cached.cr3, &guest))
        {
            *root = Root::Long(previous.remove(at).page);
            pages.stats.roots_reused += 1;
        }
        let flush = |owed: &Owed| self.flush(owed, task);
        if *root == Root::None {
            let stale = frames.iter().flatten().any(|(spec, _)| self.invalidation.must_retry(before, spec.gfn, task));
            if stale {
                // A change of backing is under way: the root is looked for again at the next entry.
                self.shadow()?.reloads.ask_one(usize::from(vcpu.0));
            } else {
                pages.stats.roots_loaded += 1;
                pages.make_room(frames.len(), &mut owed, task);
                let is_stale = |_| true;
                // A root has no leaves.
                let mut mark = |_| {};
                let mut found = [None; 4];
                for (place, frame) in found.iter_mut().zip(&frames) {
                    *place = frame.map(|(spec, source)| {
                        let mut means = Means {
                            paging,
                            tables: cache,
                            flush: &flush,
                            is_stale: &is_stale,
                            mark: &mut mark,
                            owed: &mut owed,
                            task,
                        };
                        let page = pages.get_page(spec.gfn, spec.role, source, &mut means);
                        pages.take_root(page);
                        page
                    });
                }
                *root = match (frames.len(), found) {
                    (1, [Some(page), ..]) => Root::Long(page),
                    (1, _) => Root::Dummy,
                    (_, pages) => Root::Pae(pages),
                };
            }
            // What was unsync when it was last used comes back current.
            pages.sync_root(*root, paging, &flush, &mut owed, task);
        } else if !guest.cr4.contains(Cr4::PCIDE) {
            pages.sync_root(*root, paging, &flush, &mut owed, task);
        }
        self.flush(&owed, task);
        let registers = effective(&guest, root, pages);
        pages.bury(&self.host, task);
        Ok(registers)
    }
}

/// Bits of CR4 whose change flushes everything.
const FLUSHING: Cr4 = Cr4::PGE.union(Cr4::PAE).union(Cr4::PSE).union(Cr4::LA57).union(Cr4::PCIDE).union(Cr4::SMEP);

/// What a flush of the guest covers.
#[derive(Clone, Copy)]
enum Scope {
    /// One page, under one PCID or all.
    Address { gva: Gva, pcid: Option<Pcid> },
    /// One PCID.
    Pcid(Pcid),
    /// Everything.
    All,
}

/// Whether a root made for CR3 `cached` serves `guest`: the table and the PCID are the same.
fn same_table(cached: u64, guest: &PagingState) -> bool {
    let mask = if guest.cr4.contains(Cr4::PCIDE) { !(1 << 63) } else { !(1 << 63 | 0xfff) };
    cached & mask == guest.cr3 & mask
}

/// Whether both register sets start from the same tables.
fn same_root(old: &PagingState, new: &PagingState) -> bool {
    same_table(old.cr3, new) && old.pdptes == new.pdptes
}
