//! The VM save area of a guest with encrypted state: its registers in a page that the hypervisor cannot write.
//!
//! APM vol. 2, "VMCB Layout", State Save Area of SEV-ES; the table is in [`layout`], declared once. [`Vcpu::load_vmsa`] is
//! what VMRUN does with such a page, [`Vcpu::save_vmsa`] what #VMEXIT does; [`Vcpu::resume_from`] leaves the load out when
//! the page is as it was saved. A loader makes a first page with the fields' own `set`.
//!
//! Always true: what a guest can change of its registers is in the page, but for DR0 to DR3 (which such a guest shares with its
//! hypervisor) and what the hypervisor emulates; a page that is refused has changed nothing; fields that the processor does
//! not know keep their bytes.
//!
//! Decisions, where the manual leaves room: x87 registers lie in the order of the stack, as in every other image; an event
//! whose delivery the exit interrupted is in GUEST_EXITINTINFO and delivered again after a load; an interrupt shadow comes
//! back as that of STI, because there is one bit for both; bases and system-call targets are made canonical by sign extension,
//! as VMRUN makes bases. CPL counts, and SS takes its DPL from it. TLB_ID is left alone.
//!
//! Left out: shadow stacks, performance counters, last-branch records, SPEC_CTRL and guest-owned intercepts, none of which
//! the models have.

mod area;
mod check;
mod event;
mod layout;

use emu_core::Gva;
use emu_core::msr::Msr;
use emu_core::regs::{Dr6, Rflags};
use mmu::PagingChange;

pub use area::InvalidGuestState;
pub use check::VmsaError;
pub use layout::*;

use crate::cpu::Cpu;
use crate::event::InterruptShadow;
use crate::mode::Mode;
use crate::op::RIP as RIP_SLOT;
use crate::segment::{DescriptorTable, SegReg, Segment};
use crate::simd::VectorState;
use crate::softfloat::F80;
use crate::system::debug::{dr6_of, dr7_of};
use crate::vcpu::Vcpu;
use check::Checked;
use event::Raised;

/// A page.
type Page = [u8; VMSA_LEN];

/// VINTR_CTRL: interrupts are held back for one instruction.
const INT_SHADOW: u64 = 1 << 10;

/// The places of the general registers by number; RSP and RAX among them.
const GENERAL: [VmsaField<u64>; 16] = [RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15];
/// The places of the segment registers by number.
const SEGMENTS: [VmsaField<VmsaSegment>; 6] = [ES, CS, SS, DS, FS, GS];
/// The places of registers that are nothing but stored, and which MSR they are.
const STORED_MSRS: [(VmsaField<u64>, Msr); 10] = [
    (STAR, Msr::STAR),
    (LSTAR, Msr::LSTAR),
    (CSTAR, Msr::CSTAR),
    (SFMASK, Msr::FMASK),
    (KERNEL_GS_BASE, Msr::KERNEL_GS_BASE),
    (SYSENTER_CS, Msr::SYSENTER_CS),
    (SYSENTER_ESP, Msr::SYSENTER_ESP),
    (SYSENTER_EIP, Msr::SYSENTER_EIP),
    (G_PAT, Msr::PAT),
    (DBGCTL, Msr::DEBUGCTL),
];

/// Whether a processor had to load a page to go on from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// The page was as it was saved: registers and translations are still there.
    AsSaved,
    /// The page was loaded, and no translation is remembered.
    Loaded,
}

impl Vcpu {
    /// #VMEXIT: puts the guest's registers into `page`. Its other bytes stay.
    pub fn save_vmsa(&mut self, page: &mut Page) {
        self.engine.cpu.save_vmsa(page);
        match &mut self.saved {
            Some(saved) => saved.copy_from_slice(page),
            None => self.saved = Some(Box::new(*page)),
        }
    }

    /// VMRUN: checks `page` and takes the guest's registers from it. No translation and no half-done instruction survives;
    /// NMIs that wait, and the GHCB's MSR, are the hypervisor's and do.
    ///
    /// # Errors
    /// [`VmsaError`], and nothing has changed: VMEXIT_INVALID.
    pub fn load_vmsa(&mut self, page: &Page) -> Result<(), VmsaError> {
        let checked = check::check(&self.engine.cpu.model, page)?;
        self.saved = None;
        self.engine.cpu.load_vmsa(page, checked)
    }

    /// VMRUN from the page that the last exit saved into: as [`Vcpu::load_vmsa`], but only if somebody has changed it since.
    /// What has run without being saved goes on too: an exit that nobody looks into need not be saved.
    pub fn resume_from(&mut self, page: &Page) -> Result<Resumed, VmsaError> {
        if self.saved.as_deref() == Some(page) {
            return Ok(Resumed::AsSaved);
        }
        self.load_vmsa(page)?;
        Ok(Resumed::Loaded)
    }
}

impl Cpu {
    fn save_vmsa(&mut self, page: &mut Page) {
        for (field, &value) in GENERAL.iter().zip(&self.gpr) {
            field.set(page, value);
        }
        for (field, segment) in SEGMENTS.iter().zip(&self.segments.regs) {
            field.set(page, out(segment));
        }
        LDTR.set(page, out(&self.segments.ldtr));
        TR.set(page, out(&self.segments.tr));
        GDTR.set(page, table_out(&self.segments.gdtr, &GDTR.get(page)));
        IDTR.set(page, table_out(&self.segments.idtr, &IDTR.get(page)));
        CPL.set(page, self.cpl);
        RFLAGS.set(page, self.flags.rflags().bits());
        for (field, msr) in STORED_MSRS {
            field.set(page, self.stored_msr(msr));
        }
        TSC_AUX.set(page, self.msr.tsc_aux as u32);
        if let Some(guest) = self.sev {
            VMPL.set(page, guest.vmpl as u8);
            SEV_FEATURES.set(page, guest.features.bits());
        }
        PCPU_ID.set(page, self.pcpu_id());
        let shadow = if self.shadow == InterruptShadow::None { 0 } else { INT_SHADOW };
        VINTR_CTRL.set(page, VINTR_CTRL.get(page) & !INT_SHADOW | shadow);
        // An event that is on its way has been raised, whether or not its delivery was tried yet.
        if let Some(event) = self.event {
            self.note_raised(event);
        }
        let (info, asked_at) = self.event.map_or((0, None), event::encode);
        GUEST_EXITINTINFO.set(page, info);
        RIP.set(page, asked_at.unwrap_or(self.rip()));
        GUEST_NRIP.set(page, if asked_at.is_some() { self.rip() } else { 0 });
        let c = &self.control;
        CR0.set(page, c.cr0.bits());
        CR2.set(page, c.cr2);
        CR3.set(page, c.cr3);
        CR4.set(page, c.cr4.bits());
        EFER.set(page, c.efer.bits());
        XCR0.set(page, c.xcr0.bits());
        XSS.set(page, self.msr.file.get(Msr::XSS));
        PKRU.set(page, c.pkru);
        DR6.set(page, c.dr6.bits());
        DR7.set(page, c.dr7.0);
        self.save_media(page);
    }

    fn save_media(&self, page: &mut Page) {
        let x87 = &self.x87;
        X87_DP.set(page, x87.fdp);
        X87_RIP.set(page, x87.fip);
        X87_DS.set(page, x87.fds);
        X87_CS.set(page, x87.fcs);
        X87_FOP.set(page, x87.fop);
        X87_FCW.set(page, x87.fcw);
        X87_FSW.set(page, x87.fsw);
        X87_FTW.set(page, x87.full_tags());
        let mut registers = [0; 80];
        for i in 0..8 {
            let bytes = x87.st(i).to_bytes();
            let i = i as usize;
            registers[8 * i..8 * i + 8].copy_from_slice(&bytes[..8]);
            registers[64 + 2 * i..66 + 2 * i].copy_from_slice(&bytes[8..]);
        }
        X87_REGISTERS.set(page, registers);
        MXCSR.set(page, self.vector.mxcsr);
        let (mut low, mut high) = ([0; 256], [0; 256]);
        for (n, words) in self.vector.to_quadwords().iter().enumerate() {
            for (half, to) in [(&words[..2], &mut low), (&words[2..], &mut high)] {
                for (w, word) in half.iter().enumerate() {
                    to[16 * n + 8 * w..][..8].copy_from_slice(&word.to_le_bytes());
                }
            }
        }
        XMM.set(page, low);
        YMM_HIGH.set(page, high);
    }

    fn load_vmsa(&mut self, page: &Page, checked: Checked) -> Result<(), VmsaError> {
        self.enter_sev(checked.guest)?;
        for (slot, field) in self.gpr.iter_mut().zip(GENERAL) {
            *slot = field.get(page);
        }
        for (segment, field) in self.segments.regs.iter_mut().zip(SEGMENTS) {
            *segment = taken(field.get(page));
        }
        self.segments.ldtr = taken(LDTR.get(page));
        self.segments.tr = taken(TR.get(page));
        self.segments.gdtr = table_taken(GDTR.get(page));
        self.segments.idtr = table_taken(IDTR.get(page));
        self.flags.set_rflags(Rflags::from_bits_truncate(RFLAGS.get(page)));
        for (field, msr) in STORED_MSRS {
            let value = match msr {
                Msr::LSTAR | Msr::CSTAR | Msr::KERNEL_GS_BASE => canonical(field.get(page)),
                // 32 bits on AMD.
                Msr::FMASK | Msr::SYSENTER_ESP | Msr::SYSENTER_EIP => field.get(page) & 0xffff_ffff,
                Msr::DEBUGCTL => field.get(page) & 0b11,
                _ => field.get(page),
            };
            match self.msr.field(msr) {
                Some(hot) => *hot = value,
                None => self.msr.file.set(msr, value),
            }
        }
        self.msr.tsc_aux = TSC_AUX.get(page) as u64;
        let c = &mut self.control;
        (c.cr0, c.cr4, c.efer, c.xcr0) = (checked.cr0, checked.cr4, checked.efer, checked.xcr0);
        (c.cr2, c.cr3, c.pdptes) = (CR2.get(page), CR3.get(page), None);
        c.pkru = PKRU.get(page);
        c.dr6 = dr6_of(DR6.get(page));
        c.dr7 = dr7_of(DR7.get(page));
        let mode = Mode::of(c.cr0, c.efer, self.flags.other, &self.segments);
        self.cpl = match mode {
            Mode::Real => 0,
            Mode::Virtual8086 => 3,
            Mode::Protected { .. } | Mode::Long64 => CPL.get(page) & 3,
        };
        if mode != Mode::Real {
            self.segments.regs[SegReg::Ss as usize].attributes.set_dpl(self.cpl);
        }
        self.load_media(page);
        self.take_up(page);
        self.update_paging(PagingChange::Reset);
        self.refresh_mode();
        self.gpr[RIP_SLOT as usize] &= self.ip_mask();
        Ok(())
    }

    /// Where execution goes on, and what happens before.
    fn take_up(&mut self, page: &Page) {
        self.trap = None;
        self.debug_hits = Dr6::empty();
        self.unlinked = None;
        self.latch.clear();
        self.pending.asked = None;
        self.pending.switched_task = false;
        self.pending.between_iterations = false;
        let shadowed = VINTR_CTRL.get(page) & INT_SHADOW != 0;
        self.shadow = if shadowed { InterruptShadow::Sti } else { InterruptShadow::None };
        let (rip, next) = (RIP.get(page), GUEST_NRIP.get(page));
        let asked_at = (next != 0).then_some(rip);
        let raised = Raised { cr2: self.control.cr2, dr6: self.control.dr6 };
        self.event = event::decode(GUEST_EXITINTINFO.get(page), asked_at, raised);
        let after = matches!(self.event, Some(crate::event::Event::Software { .. }));
        self.set_rip(if after { next } else { rip });
    }

    fn load_media(&mut self, page: &Page) {
        let x87 = &mut self.x87;
        x87.fdp = X87_DP.get(page);
        x87.fip = X87_RIP.get(page);
        x87.fds = X87_DS.get(page);
        x87.fcs = X87_CS.get(page);
        x87.fop = X87_FOP.get(page) & 0x7ff;
        x87.fsw = X87_FSW.get(page);
        x87.set_fcw(X87_FCW.get(page));
        x87.set_full_tags(X87_FTW.get(page));
        let registers = X87_REGISTERS.get(page);
        for i in 0..8 {
            let mut bytes = [0; 10];
            bytes[..8].copy_from_slice(&registers[8 * i..8 * i + 8]);
            bytes[8..].copy_from_slice(&registers[64 + 2 * i..66 + 2 * i]);
            let n = x87.physical(i as u8);
            x87.regs[n] = F80::from_bytes(bytes);
        }
        let (low, high) = (XMM.get(page), YMM_HIGH.get(page));
        let word = |bytes: &[u8; 256], at: usize| u64::read(&bytes[at..at + 8]);
        let ymm = core::array::from_fn(|n| {
            let at = 16 * n;
            [word(&low, at), word(&low, at + 8), word(&high, at), word(&high, at + 8)]
        });
        self.vector = VectorState::from_quadwords(&ymm, MXCSR.get(page));
    }

    /// What a VMSA says of the processor that ran it: never 0.
    const fn pcpu_id(&self) -> u64 {
        self.apic_id as u64 + 1
    }
}

fn out(segment: &Segment) -> VmsaSegment {
    let Segment { selector, base, limit, attributes } = *segment;
    VmsaSegment { selector, attributes, limit, base }
}

fn taken(segment: VmsaSegment) -> Segment {
    let VmsaSegment { selector, attributes, limit, base } = segment;
    Segment { selector, base: canonical(base), limit, attributes }
}

/// Of a descriptor table only base and limit mean something.
fn table_out(table: &DescriptorTable, old: &VmsaSegment) -> VmsaSegment {
    VmsaSegment { limit: table.limit as u32, base: table.base.raw(), ..*old }
}

fn table_taken(table: VmsaSegment) -> DescriptorTable {
    DescriptorTable { base: Gva::new(canonical(table.base)), limit: table.limit as u16 }
}

/// Sign-extended from bit 47: models with encrypted guests have no wider linear addresses.
const fn canonical(address: u64) -> u64 {
    ((address << 16) as i64 >> 16) as u64
}
