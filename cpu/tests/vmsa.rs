//! The VM save area: registers into a page and back, checks of a page that is not sound, and first pages as loaders and
//! guests make them.

mod common;

use std::sync::Arc;

use common::{CODE, STACK, flat, long_mode_of, run};
use cpu::vmsa::{self, Resumed, VMSA_FIELDS, VMSA_LEN, VmsaError, VmsaSegment};
use cpu::{DescriptorTable, Event, Exit, SegReg, SegmentAttributes, SevRefused, SoftwareKind, Stepped, Vcpu};
use cpu::{VcpuConfig, VcpuState};
use emu_core::cpu_model::CpuModel;
use emu_core::cpuid::Feature;
use emu_core::memory::SystemMemory;
use emu_core::regs::{Cr0, Cr4, Dr6, Dr7, Efer, Rflags, Xcr0};
use emu_core::rng::Seed;
use emu_core::sev::{SevFeatures, Vmpl};
use emu_core::{Exception, Gva, PageFaultCode, Spa};
use proptest::prelude::*;

type Page = [u8; VMSA_LEN];

fn processor(code: &[u8]) -> (Vcpu, Arc<SystemMemory>) {
    long_mode_of(CpuModel::amd_snp(), code)
}

/// Another processor of the machine, after RESET.
fn another(memory: &Arc<SystemMemory>, apic_id: u32) -> Vcpu {
    let config = VcpuConfig { model: CpuModel::amd_snp(), apic_id, cpu_count: 2, seed: Seed(1) };
    Vcpu::new(Arc::clone(memory), &config)
}

/// The page that a guest with the state of `vcpu` would have.
fn page_of(vcpu: &mut Vcpu) -> Page {
    let mut page = [0; VMSA_LEN];
    vcpu.save_vmsa(&mut page);
    let efer = vmsa::EFER.get(&page) | Efer::SVME.bits();
    vmsa::EFER.set(&mut page, efer);
    vmsa::SEV_FEATURES.set(&mut page, SevFeatures::SNP_ACTIVE.bits());
    page
}

/// Long, protected and real mode, with every register that a program or a system can set.
fn states() -> impl Strategy<Value = VcpuState> {
    let words = (any::<[u64; 16]>(), any::<[u64; 16]>(), any::<[[u64; 4]; 16]>(), any::<[[u8; 10]; 8]>());
    (words, 0..3_u8, 0..4_u8, any::<[u16; 8]>()).prop_map(|((gpr, more, ymm, st), mode, cpl, small)| {
        let mut state = processor(&[]).0.state();
        state.gpr = gpr;
        state.rflags = Rflags::from_bits_truncate(more[0]) - Rflags::VM | Rflags::FIXED;
        state.rip = canonical(more[1]);
        for (n, reg) in SegReg::ALL.into_iter().enumerate() {
            let segment = &mut state.segments.regs[reg as usize];
            (segment.selector, segment.limit) = (small[n], more[2] as u32);
            segment.base = canonical(more[3].rotate_left(n as u32));
            segment.attributes.set_dpl(cpl);
        }
        state.segments.tr.base = canonical(more[4]);
        state.segments.gdtr = DescriptorTable { base: Gva::new(canonical(more[5])), limit: small[6] };
        state.segments.idtr = DescriptorTable { base: Gva::new(canonical(more[6])), limit: small[7] };
        state.cr2 = more[7];
        state.cr3 = more[8] & (1 << 51 | ((1 << 48) - 1));
        state.cr4 |= Cr4::PKE | Cr4::SMEP;
        state.pkru = more[9] as u32;
        state.dr6 = Dr6::from_bits_retain(more[10] & 0xe00f) | Dr6::FIXED;
        state.dr7 = Dr7(more[11] & 0xffff_0000 | 0x400);
        state.ymm = ymm;
        state.mxcsr = more[12] as u32 & 0xffff;
        let x87 = &mut state.x87;
        x87.fcw = more[13] as u16 & 0x1f3f | 0x40;
        let pending = if more[14] as u16 & !x87.fcw & 0x3f != 0 { 0x8080 } else { 0 };
        x87.fsw = more[14] as u16 & 0x7f7f | pending;
        (x87.ftw, x87.fop) = (more[15] as u8, small[0] & 0x7ff);
        (x87.fip, x87.fdp, x87.st) = (gpr[0], gpr[1], st);
        match mode {
            0 => {}
            1 => {
                state.efer = Efer::empty();
                state.segments.regs[SegReg::Cs as usize].attributes.set_l(false);
                state.rip &= 0xffff_ffff;
            }
            _ => {
                state.cr0 = Cr0::ET | Cr0::CD | Cr0::NW;
                state.efer = Efer::LME;
                state.rip &= 0xffff_ffff;
            }
        }
        state
    })
}

fn change(page: &mut Page, field: vmsa::VmsaField<u64>, how: impl Fn(u64) -> u64) {
    let value = field.get(page);
    field.set(page, how(value));
}

fn canonical(address: u64) -> u64 {
    ((address << 16) as i64 >> 16) as u64
}

proptest! {
    #[test]
    fn what_was_saved_is_restored(state in states(), other in states()) {
        let (mut vcpu, _) = processor(&[]);
        vcpu.set_state(&state);
        let page = page_of(&mut vcpu);
        let mut meanwhile = other;
        meanwhile.dr = state.dr;
        vcpu.set_state(&meanwhile);
        vcpu.load_vmsa(&page).expect("a state that runs is a state that can be loaded");
        let expected = VcpuState { efer: state.efer | Efer::SVME, ..state };
        prop_assert_eq!(vcpu.state(), expected);
    }

    #[test]
    fn what_was_loaded_is_saved_and_nothing_else_is_touched(
        state in states(),
        noise in any::<[u64; 32]>(),
        msrs in any::<[u64; 8]>(),
        vmpl in 0..4_u8,
    ) {
        let (mut vcpu, memory) = processor(&[]);
        vcpu.set_state(&state);
        let mut page = page_of(&mut vcpu);
        vmsa::VMPL.set(&mut page, vmpl);
        vmsa::STAR.set(&mut page, msrs[0]);
        vmsa::LSTAR.set(&mut page, canonical(msrs[1]));
        vmsa::CSTAR.set(&mut page, canonical(msrs[2]));
        vmsa::KERNEL_GS_BASE.set(&mut page, canonical(msrs[3]));
        vmsa::SFMASK.set(&mut page, msrs[4] & 0xffff_ffff);
        vmsa::SYSENTER_EIP.set(&mut page, msrs[5] & 0xffff_ffff);
        vmsa::TSC_AUX.set(&mut page, msrs[6] as u32);
        vmsa::G_PAT.set(&mut page, 0x0007_0406_0007_0406);
        let mut loaded = another(&memory, 0);
        loaded.load_vmsa(&page).unwrap();
        // Everything the processor writes is noise before it writes it.
        let mut saved: Page = core::array::from_fn(|n| (noise[n % 32] >> (n / 32 % 8 * 8)) as u8);
        let before = saved;
        loaded.save_vmsa(&mut saved);
        let mut known = [false; VMSA_LEN];
        for field in VMSA_FIELDS {
            let bytes = field.offset..field.offset + field.len_bytes;
            known[bytes.clone()].fill(true);
            match field.name {
                // Selector and attributes of a table mean nothing; of VINTR_CTRL the processor has one bit.
                "GDTR" | "IDTR" => {
                    let (a, b) = (&saved[bytes.clone()], &page[bytes.clone()]);
                    prop_assert_eq!((&a[4..6], &a[8..]), (&b[4..6], &b[8..]));
                }
                "VINTR_CTRL" => prop_assert_eq!(vmsa::VINTR_CTRL.get(&saved) >> 10 & 1, 0),
                _ => prop_assert_eq!(&saved[bytes.clone()], &page[bytes], "{}", field.name),
            }
        }
        for n in (0..VMSA_LEN).filter(|&n| !known[n]) {
            prop_assert_eq!(saved[n], before[n], "byte {:#x} is not the processor's", n);
        }
        prop_assert_eq!(loaded.sev_guest().map(|guest| guest.vmpl), Vmpl::new(vmpl as u64));
    }
}

#[test]
fn a_page_that_is_not_sound_is_refused_and_nothing_changes() {
    let (mut vcpu, _) = processor(&[]);
    let good = page_of(&mut vcpu);
    let before = vcpu.state();
    type Spoil = fn(&mut Page);
    type Expected = fn(VmsaError) -> bool;
    let cases: &[(Spoil, Expected)] = &[
        (|p| change(p, vmsa::EFER, |v| v & !Efer::SVME.bits()), |e| matches!(e, VmsaError::Svme(_))),
        (|p| change(p, vmsa::EFER, |v| v | 1 << 40), |e| matches!(e, VmsaError::Efer(_))),
        (|p| change(p, vmsa::EFER, |v| v | Efer::FFXSR.bits()), |e| matches!(e, VmsaError::Efer(_))),
        (|p| change(p, vmsa::CR0, |v| v | 1 << 32), |e| matches!(e, VmsaError::Cr0(_))),
        (|p| change(p, vmsa::CR0, |v| v | Cr0::NW.bits()), |e| matches!(e, VmsaError::Cr0(_))),
        (|p| vmsa::CR0.set(p, Cr0::PG.bits()), |e| matches!(e, VmsaError::Cr0(_))),
        (|p| vmsa::CR3.set(p, 1 << 52), |e| matches!(e, VmsaError::Cr3(_))),
        (|p| change(p, vmsa::CR4, |v| v | 1 << 50), |e| matches!(e, VmsaError::Cr4(_))),
        (|p| change(p, vmsa::CR4, |v| v | Cr4::LA57.bits()), |e| matches!(e, VmsaError::Cr4(_))),
        (|p| vmsa::CR4.set(p, 0), |e| matches!(e, VmsaError::LongMode { .. })),
        (
            |p| {
                let cs = vmsa::CS.get(p);
                vmsa::CS.set(p, VmsaSegment { attributes: cs.attributes.with_db(true), ..cs });
            },
            |e| matches!(e, VmsaError::LongMode { .. }),
        ),
        (|p| vmsa::DR6.set(p, 1 << 32), |e| matches!(e, VmsaError::DebugRegisters { .. })),
        (|p| vmsa::DR7.set(p, 1 << 63), |e| matches!(e, VmsaError::DebugRegisters { .. })),
        (|p| vmsa::G_PAT.set(p, 2), |e| e == VmsaError::Pat(2)),
        (|p| vmsa::XCR0.set(p, 0), |e| matches!(e, VmsaError::States { .. })),
        (|p| vmsa::XSS.set(p, 1 << 11), |e| matches!(e, VmsaError::States { .. })),
        (|p| vmsa::MXCSR.set(p, 1 << 16), |e| e == VmsaError::Mxcsr(1 << 16)),
        (|p| vmsa::VMPL.set(p, 4), |e| e == VmsaError::Vmpl(4)),
        (|p| vmsa::SEV_FEATURES.set(p, 1 << 30), |e| e == VmsaError::UnknownFeatures(1 << 30)),
        (|p| vmsa::SEV_FEATURES.set(p, 0b11), |e| e == VmsaError::Features(SevRefused::Unsupported(SevFeatures::VTOM))),
    ];
    for (n, (spoil, is_expected)) in cases.iter().enumerate() {
        let mut page = good;
        spoil(&mut page);
        let refused = vcpu.load_vmsa(&page).expect_err("spoilt");
        assert!(is_expected(refused), "case {n}: {refused}");
        assert_eq!((vcpu.state(), vcpu.sev_guest()), (before.clone(), None), "case {n}");
    }
    vcpu.load_vmsa(&good).unwrap();
    let (mut plain, _) = common::long_mode(&[]);
    let no = SevRefused::NoFeature(Feature::SevSnp);
    assert_eq!(plain.load_vmsa(&good), Err(VmsaError::Features(no)));
}

proptest! {
    /// A guest makes the pages of its processors: whatever is in them, they are refused or they run.
    #[test]
    fn no_page_does_harm(
        state in states(),
        fields in prop::collection::vec((0..VMSA_FIELDS.len(), any::<u64>(), 0..4_u8), 0..6),
        noise in prop::collection::vec((0..VMSA_LEN, any::<u8>()), 0..4),
        code in any::<[u8; 32]>(),
    ) {
        let (mut vcpu, memory) = processor(&code);
        vcpu.set_state(&state);
        let mut page = page_of(&mut vcpu);
        for (n, value, shape) in fields {
            let field = VMSA_FIELDS[n];
            // All of it, its low byte, one bit, or an address of the code.
            let value = match shape {
                0 => value,
                1 => value & 0xff,
                2 => 1 << (value % 64),
                _ => CODE + value % 32,
            };
            for (at, byte) in (field.offset..field.offset + field.len_bytes).zip(value.to_le_bytes()) {
                page[at] = byte;
            }
        }
        for (at, byte) in noise {
            page[at] = byte;
        }
        let mut other = another(&memory, 1);
        if other.load_vmsa(&page).is_ok() {
            for _ in 0..8 {
                run(&mut other, 16);
                let mut saved = page;
                other.save_vmsa(&mut saved);
                prop_assert!(other.load_vmsa(&saved).is_ok(), "what runs can be saved and loaded");
            }
        }
    }
}

#[test]
fn a_page_is_loaded_again_only_if_somebody_has_changed_it() {
    let (mut vcpu, memory) = processor(&[]);
    let mut page = page_of(&mut vcpu);
    assert_eq!(vmsa::PCPU_ID.get(&page), 1, "which processor ran it");
    assert_eq!(vcpu.resume_from(&page), Ok(Resumed::Loaded), "the features are new");
    vcpu.save_vmsa(&mut page);
    assert_eq!(vcpu.resume_from(&page), Ok(Resumed::AsSaved));
    assert_eq!(vcpu.resume_from(&page), Ok(Resumed::AsSaved));
    vmsa::PCPU_ID.set(&mut page, 0);
    assert_eq!(vcpu.resume_from(&page), Ok(Resumed::Loaded), "its translations are to be forgotten");
    vcpu.save_vmsa(&mut page);
    vmsa::RBX.set(&mut page, 77);
    assert_eq!(vcpu.resume_from(&page), Ok(Resumed::Loaded));
    assert_eq!(vcpu.state().gpr[3], 77);
    vcpu.save_vmsa(&mut page);
    let state = vcpu.state();
    vcpu.set_state(&state);
    assert_eq!(vcpu.resume_from(&page), Ok(Resumed::Loaded), "registers were replaced behind the page's back");
    assert_eq!(another(&memory, 1).resume_from(&page), Ok(Resumed::Loaded));
    // INIT, too, is nothing that the page knows.
    vcpu.save_vmsa(&mut page);
    vcpu.init();
    assert_eq!(vcpu.state().efer, Efer::SVME);
    assert_eq!(vcpu.resume_from(&page), Ok(Resumed::Loaded));
}

#[test]
fn an_interrupt_shadow_travels_with_the_page() {
    // sti ; nop ; nop
    let (mut vcpu, memory) = processor(&[0xfb, 0x90, 0x90]);
    let page = page_of(&mut vcpu);
    vcpu.load_vmsa(&page).unwrap();
    run(&mut vcpu, 1);
    let mut page = [0; VMSA_LEN];
    vmsa::VINTR_CTRL.set(&mut page, 1 << 63);
    vcpu.save_vmsa(&mut page);
    assert_eq!(vmsa::VINTR_CTRL.get(&page), 1 << 63 | 1 << 10);
    let mut other = another(&memory, 1);
    other.load_vmsa(&page).unwrap();
    assert!(other.interrupts_enabled() && !other.can_take_interrupt());
    run(&mut other, 1);
    assert!(other.can_take_interrupt());
}

/// A guest at an instruction with handlers for 3, 14, 0x40 and 0x80, each of which halts at 0x8001 plus 16 times its number.
fn with_handlers(code: &[u8]) -> (Vcpu, Arc<SystemMemory>) {
    let (mut vcpu, memory) = processor(code);
    memory.store(Spa::new(0x3008), 0x00af_9b00_0000_ffff_u64).unwrap();
    for vector in [3_u64, 14, 0x40, 0x80] {
        let target = 0x8000 + 16 * vector;
        let gate = target as u128 | 8 << 16 | 0xee << 40;
        memory.store(Spa::new(0x4000 + 16 * vector), gate).unwrap();
        memory.write(Spa::new(target), &[0xf4]).unwrap();
    }
    let mut state = vcpu.state();
    state.segments.gdtr = DescriptorTable { base: Gva::new(0x3000), limit: 0x1f };
    state.segments.idtr = DescriptorTable { base: Gva::new(0x4000), limit: 0xfff };
    vcpu.set_state(&state);
    let page = page_of(&mut vcpu);
    vcpu.load_vmsa(&page).unwrap();
    (vcpu, memory)
}

#[test]
fn an_event_on_its_way_arrives_on_the_processor_that_goes_on() {
    let code = PageFaultCode::W | PageFaultCode::U;
    let fault = Exception::PageFault { gva: Gva::new(0xdead_0000), code };
    for (event, vector) in [(Event::Interrupt { vector: 0x40 }, 0x40), (Event::Exception(fault), 14)] {
        let (mut vcpu, memory) = with_handlers(&[0x90]);
        vcpu.inject(event);
        let mut page = [0; VMSA_LEN];
        vcpu.save_vmsa(&mut page);
        assert_eq!(vmsa::GUEST_EXITINTINFO.get(&page) & 0x8000_00ff, 1 << 31 | vector);
        let mut other = another(&memory, 1);
        other.load_vmsa(&page).unwrap();
        assert!(other.has_event());
        assert_eq!(run(&mut other, 10), Exit::Halt);
        assert_eq!(other.state().rip, 0x8001 + 16 * vector);
        if vector == 14 {
            assert_eq!(other.state().cr2, 0xdead_0000);
            assert_eq!(memory.load::<u64>(Spa::new(STACK - 48)).unwrap(), code.bits() as u64);
        }
    }
}

#[test]
fn an_instruction_that_asks_for_an_event_is_saved_at_itself_and_returned_from_behind_it() {
    // int 0x80, and int3
    for (code, vector, kind) in
        [(&[0xcd, 0x80][..], 0x80_u64, SoftwareKind::Int), (&[0xcc], 3, SoftwareKind::Breakpoint)]
    {
        let (mut vcpu, memory) = with_handlers(code);
        let event = Event::Software { vector: vector as u8, rip: CODE, kind };
        assert_eq!(vcpu.step(), Stepped::Event(event));
        let mut page = [0; VMSA_LEN];
        vcpu.save_vmsa(&mut page);
        let behind = CODE + code.len() as u64;
        assert_eq!((vmsa::RIP.get(&page), vmsa::GUEST_NRIP.get(&page)), (CODE, behind));
        let mut other = another(&memory, 1);
        other.load_vmsa(&page).unwrap();
        assert_eq!(run(&mut other, 10), Exit::Halt);
        assert_eq!(other.state().rip, 0x8001 + 16 * vector);
        assert_eq!(memory.load::<u64>(Spa::new(STACK - 40)).unwrap(), behind);
    }
}

#[test]
fn a_processor_that_linux_creates_starts_in_real_mode() {
    let (_, memory) = processor(&[]);
    // mov al, 5 ; hlt
    memory.write(Spa::new(0x9_9200), &[0xb0, 0x05, 0xf4]).unwrap();
    let mut page = [0; VMSA_LEN];
    let data =
        |bits| VmsaSegment { selector: 0, attributes: SegmentAttributes::from_bits(bits), limit: 0xffff, base: 0 };
    for field in [vmsa::DS, vmsa::ES, vmsa::FS, vmsa::GS, vmsa::SS] {
        field.set(&mut page, data(0x93));
    }
    vmsa::CS.set(&mut page, VmsaSegment { selector: 0x9900, base: 0x9_9000, ..data(0x9b) });
    vmsa::GDTR.set(&mut page, data(0));
    vmsa::IDTR.set(&mut page, data(0));
    vmsa::LDTR.set(&mut page, data(0x82));
    vmsa::TR.set(&mut page, data(0x83));
    vmsa::RIP.set(&mut page, 0x200);
    vmsa::CR0.set(&mut page, 0x6000_0010);
    vmsa::CR4.set(&mut page, Cr4::MCE.bits());
    vmsa::EFER.set(&mut page, Efer::SVME.bits());
    vmsa::DR6.set(&mut page, 0xffff_0ff0);
    vmsa::DR7.set(&mut page, 0x400);
    vmsa::RFLAGS.set(&mut page, 2);
    vmsa::G_PAT.set(&mut page, 0x0007_0406_0007_0406);
    vmsa::XCR0.set(&mut page, 1);
    vmsa::MXCSR.set(&mut page, 0x1f80);
    vmsa::X87_FTW.set(&mut page, 0x5555);
    vmsa::X87_FCW.set(&mut page, 0x40);
    vmsa::SEV_FEATURES.set(&mut page, 1);
    let mut vcpu = another(&memory, 1);
    assert_eq!(vcpu.resume_from(&page), Ok(Resumed::Loaded));
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    let state = vcpu.state();
    assert_eq!((state.rip, state.gpr[0]), (0x203, 5));
    assert_eq!((state.x87.fcw, state.x87.ftw, state.xcr0), (0x40, 0xff, Xcr0::X87));
}

#[test]
fn a_kernel_starts_in_64_bit_mode() {
    let (_, memory) = processor(&[0x48, 0x89, 0xf0, 0xf4]);
    let mut page = [0; VMSA_LEN];
    let flat = |segment: cpu::Segment| VmsaSegment {
        selector: segment.selector,
        attributes: segment.attributes,
        limit: segment.limit,
        base: 0,
    };
    for field in [vmsa::DS, vmsa::ES, vmsa::FS, vmsa::GS, vmsa::SS] {
        field.set(&mut page, flat(self::flat(0x18, 3, false, 0)));
    }
    vmsa::CS.set(&mut page, flat(self::flat(0x10, 0xb, true, 0)));
    vmsa::CR0.set(&mut page, 0x8000_0011);
    vmsa::CR3.set(&mut page, 0x1000);
    vmsa::CR4.set(&mut page, 0x60);
    vmsa::EFER.set(&mut page, 0x1d01);
    vmsa::RFLAGS.set(&mut page, 2);
    vmsa::RIP.set(&mut page, CODE);
    vmsa::RSI.set(&mut page, 0x2000);
    vmsa::G_PAT.set(&mut page, 0x0007_0406_0007_0406);
    vmsa::XCR0.set(&mut page, 1);
    vmsa::MXCSR.set(&mut page, 0x1f80);
    vmsa::SEV_FEATURES.set(&mut page, 1);
    let mut vcpu = another(&memory, 0);
    vcpu.load_vmsa(&page).unwrap();
    assert_eq!(run(&mut vcpu, 10), Exit::Halt);
    assert_eq!(vcpu.state().gpr[0], 0x2000);
    assert_eq!(vcpu.state().efer.bits(), 0x1d01);
}
