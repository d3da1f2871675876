use super::*;
use crate::regs::Efer;

fn models() -> [CpuModel; 2] {
    [CpuModel::amd_v3(), CpuModel::intel_v3()]
}

/// Every register of the table, runs spelt out.
fn all() -> impl Iterator<Item = (Msr, &'static MsrEntry)> {
    MSRS.iter().flat_map(|entry| (0..entry.count).map(move |index| (entry.first.offset(index), entry)))
}

/// Values that separate the rules: every single bit, every single byte, and the corners.
fn values() -> impl Iterator<Item = u64> {
    let bits = (0..64).map(|bit| 1 << bit);
    let bytes = (0..=255_u64).flat_map(|byte| [byte, byte * 0x0101_0101_0101_0101]);
    bits.chain(bytes).chain([u64::MAX, 0xffff_8000_0000_0000, 0x00ff_ffff_ffff_ffff, 0x8000_0000_0000_0000])
}

#[test]
fn lookup_finds_every_register_and_nothing_between() {
    for (msr, entry) in all() {
        assert_eq!(msr.entry().unwrap().name, entry.name);
    }
    for pair in MSRS.windows(2) {
        let after = pair[0].first.offset(pair[0].count);
        assert!(after == pair[1].first || after.entry().is_none(), "{after}");
    }
    for outside in [Msr(0), Msr(0xf), Msr(u32::MAX)] {
        assert!(outside.entry().is_none());
        for model in models() {
            assert!(matches!(model.msr(outside), Err(MsrRefused::Unknown(msr)) if msr == outside));
            assert_eq!(validate_write(&model, outside, 0, 0), Err(MsrRefused::Unknown(outside)));
        }
    }
}

#[test]
fn storage_has_a_place_of_its_own_for_every_stored_register() {
    let mut file = MsrFile::reset();
    for (msr, entry) in all() {
        match entry.class {
            MsrClass::Register(reg) => {
                assert_eq!(file.get(msr), reset_value(reg));
                file.set(msr, u64::from(msr.0) + 1);
            }
            _ => file.set(msr, 7),
        }
    }
    let mut stored = 0;
    for (msr, entry) in all() {
        if let MsrClass::Register(_) = entry.class {
            assert_eq!(file.get(msr), u64::from(msr.0) + 1, "{msr}");
            stored += 1;
        } else {
            assert_eq!(file.get(msr), 0);
        }
    }
    assert_eq!(stored, MSR_SLOTS);
}

#[test]
fn an_accepted_value_is_accepted_again_and_unchanged() {
    for model in models() {
        for (msr, entry) in all().filter(|(msr, _)| model.msr(*msr).is_ok()) {
            for value in values() {
                let Ok(stored) = validate_write(&model, msr, 0, value) else { continue };
                if !matches!(entry.write, WriteRule::Command(_)) {
                    assert_eq!(validate_write(&model, msr, stored, stored), Ok(stored), "{msr} {value:#x}");
                }
            }
        }
    }
}

#[test]
fn a_reset_value_may_be_written_back() {
    for model in models() {
        let file = MsrFile::reset();
        for (msr, _) in all() {
            match model.msr(msr).map(|entry| entry.write) {
                Ok(WriteRule::ReadOnly) | Err(_) => {}
                Ok(_) => {
                    assert_eq!(validate_write(&model, msr, file.get(msr), file.get(msr)), Ok(file.get(msr)), "{msr}")
                }
            }
        }
    }
}

#[test]
fn constants_never_change_and_read_only_means_refused() {
    for model in models() {
        for (msr, entry) in all().filter(|(msr, _)| model.msr(*msr).is_ok()) {
            let constant = matches!(entry.class, MsrClass::Constant(_));
            let fixed = matches!(entry.write, WriteRule::ReadOnly | WriteRule::Discarded);
            assert_eq!(constant, fixed, "{msr}");
            for value in values() {
                match entry.write {
                    WriteRule::ReadOnly => {
                        assert_eq!(validate_write(&model, msr, 5, value), Err(MsrRefused::ReadOnly(msr)))
                    }
                    WriteRule::Discarded => assert_eq!(validate_write(&model, msr, 5, value), Ok(5)),
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn presence_is_asked_before_anything_else() {
    let [amd, intel] = models();
    for (model, absent) in
        [(&amd, Msr::MISC_ENABLE), (&amd, Msr::SPEC_CTRL), (&amd, Msr::TSC_ADJUST), (&intel, Msr::HWCR)]
    {
        assert!(matches!(model.msr(absent), Err(MsrRefused::NotOnModel { .. })), "{absent}");
        assert!(matches!(validate_write(model, absent, 0, 0), Err(MsrRefused::NotOnModel { .. })));
    }
    for &feature in Feature::ALL {
        let Ok(without) = amd.clone().without(feature) else { continue };
        for (msr, entry) in all() {
            if entry.presence == Presence::With(feature) {
                assert!(without.msr(msr).is_err(), "{msr} without {feature:?}");
            }
        }
    }
    assert!(matches!(intel.readable_msr(Msr::PRED_CMD), Err(MsrRefused::WriteOnly(_))));
    assert!(intel.msr(Msr::PRED_CMD).is_ok());
    assert_eq!(validate_write(&intel, Msr::PRED_CMD, 0, 1), Ok(1));
}

#[test]
fn canonical_registers_refuse_exactly_the_hole() {
    for model in models().into_iter().flat_map(|m| [m.clone(), m.without(Feature::La57).unwrap()]) {
        let half = 1_u64 << (model.linear_width() - 1);
        for (msr, _) in all().filter(|(_, entry)| entry.write == WriteRule::Canonical) {
            for value in [0, half - 1, half.wrapping_neg(), u64::MAX] {
                assert_eq!(validate_write(&model, msr, 0, value), Ok(value));
            }
            for value in [half, !half, 1 << 62] {
                assert_eq!(validate_write(&model, msr, 0, value), Err(MsrRefused::NotCanonical { msr, value }));
            }
        }
    }
}

#[test]
fn vendors_differ_on_32_bit_registers() {
    let [amd, intel] = models();
    let wide = 0x1_2345_6789;
    for msr in [Msr::TSC_AUX, Msr::FMASK] {
        assert_eq!(validate_write(&amd, msr, 0, wide), Ok(0x2345_6789));
        assert_eq!(validate_write(&intel, msr, 0, wide), Err(MsrRefused::Reserved { msr, bits: 0x1_0000_0000 }));
    }
    let kernel = 0xffff_ffff_8100_0000;
    assert_eq!(validate_write(&amd, Msr::SYSENTER_EIP, 0, kernel), Ok(0x8100_0000));
    assert_eq!(validate_write(&intel, Msr::SYSENTER_EIP, 0, kernel), Ok(kernel));
    assert!(validate_write(&intel, Msr::SYSENTER_EIP, 0, 1 << 60).is_err());
}

#[test]
fn efer_reserves_what_the_model_lacks_and_keeps_lma() {
    let msr = Msr::EFER;
    for model in models() {
        for bit in 0..64 {
            let result = validate_write(&model, msr, 0, 1 << bit);
            if Efer::from_bits_retain(1 << bit) == Efer::LMA {
                assert_eq!(result, Ok(0), "software cannot set LMA");
            } else if model.efer_allowed().bits() >> bit & 1 != 0 {
                assert_eq!(result, Ok(1 << bit));
            } else {
                assert_eq!(result, Err(MsrRefused::Reserved { msr, bits: 1 << bit }));
            }
        }
        let long = (Efer::LME | Efer::LMA).bits();
        assert_eq!(validate_write(&model, msr, long, long | 1), Ok(long | 1));
        assert_eq!(validate_write(&model, msr, long, Efer::LME.bits()), Ok(long), "nor clear it");
        assert!(matches!(validate_write(&model, msr, long, 0), Err(MsrRefused::Transition { .. })));
    }
}

#[test]
fn memory_types_are_judged_byte_by_byte() {
    for model in models() {
        for byte in 0..8_u8 {
            for encoding in 0..=255_u8 {
                let value = u64::from(encoding) << (8 * byte);
                let refused = |msr| Err(MsrRefused::MemoryType { msr, byte, encoding });
                let pat = if matches!(encoding, 0 | 1 | 4..=7) { Ok(value) } else { refused(Msr::PAT) };
                assert_eq!(validate_write(&model, Msr::PAT, 0, value), pat);
                let fixed = Msr::MTRR_FIX4K.offset(3);
                let mtrr = if matches!(encoding, 0 | 1 | 4..=6) { Ok(value) } else { refused(fixed) };
                assert_eq!(validate_write(&model, fixed, 0, value), mtrr);
            }
        }
    }
}

#[test]
fn variable_mtrrs_stay_within_the_physical_address() {
    for model in models() {
        let top = 1_u64 << model.maxphyaddr();
        let (base, mask) = (Msr::MTRR_PHYS.offset(2), Msr::MTRR_PHYS.offset(3));
        assert_eq!(validate_write(&model, base, 0, (top >> 1) | 6), Ok((top >> 1) | 6));
        assert_eq!(validate_write(&model, base, 0, top | 6), Err(MsrRefused::Reserved { msr: base, bits: top }));
        assert!(matches!(validate_write(&model, base, 0, 2), Err(MsrRefused::MemoryType { .. })));
        assert!(matches!(validate_write(&model, base, 0, 7), Err(MsrRefused::MemoryType { .. })));
        assert_eq!(validate_write(&model, mask, 0, (top - 0x1000) | 1 << 11), Ok((top - 0x1000) | 1 << 11));
        assert_eq!(validate_write(&model, mask, 0, 1 << 10), Err(MsrRefused::Reserved { msr: mask, bits: 1 << 10 }));
        assert_eq!(validate_write(&model, Msr::MTRR_DEF_TYPE, 0, 0xc06), Ok(0xc06));
        assert!(validate_write(&model, Msr::MTRR_DEF_TYPE, 0, 0xc07).is_err());
        assert!(validate_write(&model, Msr::MTRR_DEF_TYPE, 0, 1 << 12).is_err());
    }
    let encrypted = CpuModel::amd_v3().with_c_bit(47).unwrap();
    assert!(validate_write(&encrypted, Msr::MTRR_PHYS, 0, 1 << 47).is_err(), "the C-bit is no address bit");
}

#[test]
fn apic_base_changes_modes_as_the_diagram_says() {
    // The four combinations of EN (bit 11) and EXTD (bit 10), from and to.
    const DISABLED: u64 = 0;
    const XAPIC: u64 = 1 << 11;
    const X2APIC: u64 = 1 << 11 | 1 << 10;
    const INVALID: u64 = 1 << 10;
    let permitted = [
        (DISABLED, DISABLED),
        (DISABLED, XAPIC),
        (XAPIC, DISABLED),
        (XAPIC, XAPIC),
        (XAPIC, X2APIC),
        (X2APIC, X2APIC),
        (X2APIC, DISABLED),
    ];
    let page = 0xfee0_0000;
    for model in models() {
        for from in [DISABLED, XAPIC, X2APIC] {
            for to in [DISABLED, XAPIC, X2APIC, INVALID] {
                let result = validate_write(&model, Msr::APIC_BASE, page | from | 1 << 8, page | to);
                if permitted.contains(&(from, to)) {
                    assert_eq!(result, Ok(page | to | 1 << 8), "BSP is read-only");
                } else {
                    assert!(matches!(result, Err(MsrRefused::Transition { .. })), "{from:#x} to {to:#x}");
                }
            }
        }
        let beyond = 1 << model.maxphyaddr();
        assert!(validate_write(&model, Msr::APIC_BASE, page | XAPIC, beyond | XAPIC).is_err());
        let old = model.without(Feature::X2apic).unwrap();
        assert!(matches!(
            validate_write(&old, Msr::APIC_BASE, page | XAPIC, page | X2APIC),
            Err(MsrRefused::Reserved { bits: 0x400, .. })
        ));
    }
}

#[test]
fn machine_check_status_takes_only_zero() {
    for model in models() {
        for index in 0..16 {
            let msr = Msr::MC_BANKS.offset(index);
            assert_eq!(validate_write(&model, msr, 9, 0), Ok(0));
            // Control all on or all off, status cleared alone, the rest free.
            assert_eq!(validate_write(&model, msr, 0, u64::MAX).is_ok(), index % 4 != 1);
            assert_eq!(validate_write(&model, msr, 0, 0xaaaa << 47).is_ok(), index % 4 >= 2);
        }
        assert_eq!(Constant::Is(0).value(&model), 0);
        let MsrClass::Constant(cap) = model.msr(Msr::MCG_CAP).unwrap().class else { panic!("MCG_CAP is constant") };
        assert_eq!(cap.value(&model) & 0xff, 4, "as many banks as MC_BANKS has");
    }
}

#[test]
fn what_linux_reads_unguarded_at_boot_is_there() {
    let [amd, intel] = models();
    let both = [
        Msr::EFER,
        Msr::PAT,
        Msr::APIC_BASE,
        Msr::TSC,
        Msr::MTRRCAP,
        Msr::MTRR_DEF_TYPE,
        Msr::MCG_CAP,
        Msr::MCG_STATUS,
        Msr::UCODE_REV,
        Msr::DEBUGCTL,
        Msr::TSC_DEADLINE,
        Msr::X2APIC,
    ];
    for msr in both {
        assert!(amd.readable_msr(msr).is_ok() && intel.readable_msr(msr).is_ok(), "{msr}");
    }
    for msr in [Msr::HWCR, Msr::SYSCFG, Msr::NB_CFG] {
        assert!(amd.readable_msr(msr).is_ok(), "{msr}");
    }
    for msr in [Msr::MISC_ENABLE, Msr::PLATFORM_ID, Msr::ARCH_CAPABILITIES, Msr::SPEC_CTRL] {
        assert!(intel.readable_msr(msr).is_ok(), "{msr}");
    }
    // An invariant TSC that does not count at the P0 rate would draw a warning.
    let MsrClass::Constant(hwcr) = amd.msr(Msr::HWCR).unwrap().class else { panic!("HWCR is constant") };
    assert_eq!(hwcr.value(&amd) >> 24 & 1, 1);
    assert_eq!(Constant::UcodeRev.value(&intel) as u32, 0);
    assert_eq!(Constant::PlatformInfo.value(&intel) >> 8 & 0xff, 10);
}

#[test]
fn messages_name_the_register() {
    let refused = validate_write(&CpuModel::amd_v3(), Msr::MC_BANKS.offset(1), 0, 3).unwrap_err();
    assert_eq!(refused.to_string(), "Msr(0x401 MC_BANKS+1) reserves bits 0x3");
    assert_eq!(Msr(0x12).to_string(), "Msr(0x12)");
}
