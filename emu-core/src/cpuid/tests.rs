use core::num::NonZeroU32;

use super::*;
use crate::addr::Gva;
use crate::cpu_model::{CpuModelError, FeatureSet, Signature};
use crate::msr::{MSRS, MsrRefused, Presence, validate_write};
use crate::regs::{Cr0, Efer};

fn models() -> [CpuModel; 2] {
    [CpuModel::amd_v3(), CpuModel::intel_v3()]
}

fn now(cpu_count: u32) -> CpuidDynamic {
    CpuidDynamic {
        cr4: Cr4::empty(),
        xcr0: Xcr0::X87,
        xss: Xcr0::empty(),
        apic: ApicState::Enabled,
        apic_id: cpu_count - 1,
        cpu_count: NonZeroU32::new(cpu_count).unwrap(),
    }
}

/// Every leaf of LEAVES with the subleaves that can have content.
fn all_inputs() -> impl Iterator<Item = (u32, u32)> {
    LEAVES.iter().flat_map(|leaf| (leaf.first..=leaf.last).flat_map(|number| (0..12).map(move |sub| (number, sub))))
}

#[test]
fn every_leaf_up_to_the_highest_is_listed() {
    for model in models() {
        let highest = model.highest_leaves();
        let ranges = [0..=highest.basic, 0x4000_0000..=highest.hypervisor.unwrap(), 0x8000_0000..=highest.extended];
        for leaf in ranges.into_iter().flatten() {
            assert!(LEAVES.iter().any(|entry| (entry.first..=entry.last).contains(&leaf)), "leaf {leaf:#x}");
        }
        assert_eq!(model.cpuid(0, 0, &now(1)).eax, highest.basic);
        assert_eq!(model.cpuid(0x8000_0000, 0, &now(1)).eax, highest.extended);
    }
}

#[test]
fn feature_registers_belong_to_listed_leaves_and_are_not_cut_off() {
    let highest = models().map(|model| model.highest_leaves());
    for register in REGISTERS {
        let entry = LEAVES.iter().find(|leaf| (leaf.first..=leaf.last).contains(&register.leaf)).unwrap();
        assert!(register.subleaf == 0 || entry.subleaves == Subleaves::Indexed);
        for bit in register.bits {
            for (vendor, highest) in [Vendor::Amd, Vendor::Intel].into_iter().zip(highest) {
                let limit = if register.leaf < 0x8000_0000 { highest.basic } else { highest.extended };
                assert!(!bit.default_on(vendor) || register.leaf <= limit, "{} is above the highest leaf", bit.name);
                let subleaf_limit = match vendor {
                    Vendor::Amd => CpuModel::amd_v3(),
                    Vendor::Intel => CpuModel::intel_v3(),
                }
                .cpuid(7, 0, &now(1))
                .eax;
                let cut_off = register.leaf == 7 && register.subleaf > subleaf_limit;
                assert!(!bit.default_on(vendor) || !cut_off, "{} is above the highest subleaf", bit.name);
            }
        }
    }
}

#[test]
fn a_feature_shows_exactly_in_its_bit() {
    for full in models().into_iter().chain([CpuModel::amd_snp()]) {
        for feature in full.features().iter() {
            // Take away what stands on the feature, then the feature itself.
            let mut with = full.clone();
            while let Err(CpuModelError::StillNeeded { by, .. }) = with.clone().without(feature) {
                let mut top = by;
                while let Err(CpuModelError::StillNeeded { by, .. }) = with.clone().without(top) {
                    top = by;
                }
                with = with.without(top).unwrap();
            }
            let without = with.clone().without(feature).unwrap();
            let state = CpuidDynamic { cr4: Cr4::OSXSAVE | Cr4::PKE, ..now(2) };
            for register in REGISTERS {
                let before = with.cpuid(register.leaf, register.subleaf, &state).get(register.reg);
                let after = without.cpuid(register.leaf, register.subleaf, &state).get(register.reg);
                for bit in register.bits {
                    let changed = (before ^ after) >> bit.pos & 1 != 0;
                    let own = bit.feature == Some(feature);
                    let follows = match bit.why {
                        Why::Copies(of) => of == feature && full.vendor() == Vendor::Amd,
                        Why::Mirrors(mirror) => mirror.requires() == Some(feature),
                        _ => false,
                    };
                    assert_eq!(changed, own || follows, "{feature:?} and {}", bit.name);
                }
            }
        }
    }
}

#[test]
fn absent_bits_are_zero_and_give_a_reason() {
    for model in models() {
        let all = [Cr4::all(), Cr4::empty()].map(|cr4| CpuidDynamic { cr4, ..now(4) });
        // Intel answers a leaf above its highest with another one.
        let limit = model.highest_leaves().extended;
        for register in REGISTERS.iter().filter(|register| register.leaf <= limit) {
            for bit in register.bits {
                assert!(!bit.name.is_empty());
                if let Why::Absent(reason) = bit.why {
                    assert!(reason.len() > 3, "{}", bit.name);
                    for state in &all {
                        let value = model.cpuid(register.leaf, register.subleaf, state).get(register.reg);
                        assert_eq!(value >> bit.pos & 1, 0, "{}", bit.name);
                    }
                }
            }
        }
    }
}

#[test]
fn no_feature_is_advertised_without_a_guard() {
    let mut cr4 = Cr4::empty();
    let mut efer = Efer::empty();
    let mut xcr0 = Xcr0::empty();
    for &feature in Feature::ALL {
        assert!(!feature.guards().is_empty(), "{feature:?}");
        for guard in feature.guards() {
            // A control bit has one master.
            match guard {
                Guard::Cr4(bits) => {
                    assert!(!cr4.intersects(*bits), "{feature:?}");
                    cr4 |= *bits;
                }
                Guard::Efer(bits) => {
                    assert!(!efer.intersects(*bits), "{feature:?}");
                    efer |= *bits;
                }
                Guard::Xcr0(bits) => {
                    assert!(!xcr0.intersects(*bits), "{feature:?}");
                    xcr0 |= *bits;
                }
                Guard::Leaves(leaves) => {
                    let mut lacking = CpuModel::amd_v3();
                    if let Ok(without) = lacking.clone().without(feature) {
                        lacking = without;
                        for &leaf in *leaves {
                            assert_eq!(lacking.cpuid(leaf, 0, &now(2)), CpuidResult::ZERO, "{leaf:#x}");
                        }
                    }
                }
                Guard::Msrs(msrs) => assert!(!msrs.is_empty()),
                Guard::MsrBits(msr, bits) => {
                    assert_ne!(*bits, 0);
                    let Some(base) = CpuModel::intel_v3().with(feature).ok() else { panic!("Intel has {feature:?}") };
                    assert_eq!(validate_write(&base, *msr, 0, *bits), Ok(*bits));
                    let lacking = base.without(feature).unwrap();
                    assert_eq!(
                        validate_write(&lacking, *msr, 0, *bits),
                        Err(MsrRefused::Reserved { msr: *msr, bits: *bits })
                    );
                }
                Guard::Instructions(names) => assert!(!names.is_empty()),
                Guard::Group(text) | Guard::Paging(text) | Guard::Promise(text) => assert!(text.len() > 2),
            }
        }
    }
}

#[test]
fn msr_guards_and_the_msr_table_say_the_same() {
    for &feature in Feature::ALL {
        for guard in feature.guards() {
            if let Guard::Msrs(msrs) = guard {
                for msr in *msrs {
                    assert_eq!(msr.entry().unwrap().presence, Presence::With(feature), "{msr}");
                }
            }
        }
    }
    for entry in MSRS {
        if let Presence::With(feature) = entry.presence {
            let listed = feature.guards().iter().any(|guard| match guard {
                Guard::Msrs(msrs) => msrs.contains(&entry.first),
                // EFER is named by its bits.
                Guard::Efer(_) => entry.name == "EFER",
                _ => false,
            });
            assert!(listed, "{} is not among the guards of {feature:?}", entry.name);
        }
    }
}

#[test]
fn needs_are_acyclic_and_kept_by_every_model_one_can_build() {
    fn reaches(from: Feature, to: Feature, fuel: usize) -> bool {
        assert!(fuel > 0, "a cycle of needs");
        from.needs().iter().any(|&need| need == to || reaches(need, to, fuel - 1))
    }
    for &feature in Feature::ALL {
        assert!(!reaches(feature, feature, Feature::ALL.len()));
    }
    for model in models() {
        for &feature in Feature::ALL {
            for built in [model.clone().with(feature), model.clone().without(feature)].into_iter().flatten() {
                for present in built.features().iter() {
                    assert!(present.needs().iter().all(|&need| built.has(need)), "{present:?}");
                    assert!(present.bit().only_of().is_none_or(|only| only == built.vendor()));
                }
            }
        }
    }
}

#[test]
fn builders_refuse_contradictions() {
    let amd = CpuModel::amd_v3();
    assert_eq!(
        amd.clone().without(Feature::Xsave),
        Err(CpuModelError::StillNeeded { feature: Feature::Xsave, by: Feature::Avx })
    );
    assert_eq!(
        amd.clone().with(Feature::Pks),
        Err(CpuModelError::OtherVendor { feature: Feature::Pks, vendor: Vendor::Intel })
    );
    let no_invariant = amd.clone().without(Feature::Rdpid).and_then(|m| m.without(Feature::Rdtscp)).unwrap();
    assert_eq!(
        no_invariant.with(Feature::Rdpid),
        Err(CpuModelError::MissingNeed { feature: Feature::Rdpid, needs: Feature::Rdtscp })
    );
    assert_eq!(amd.clone().with_maxphyaddr(53), Err(CpuModelError::Maxphyaddr(53)));
    assert_eq!(CpuModel::intel_v3().with_c_bit(51), Err(CpuModelError::CBit(51)));
    assert_eq!(amd.clone().with_clocks(0, 1_000_000), Err(CpuModelError::Clock(0)));
    assert_eq!(amd.clone().with_brand(&"x".repeat(48)), Err(CpuModelError::Brand));
    assert_eq!(amd.clone().with_brand("\u{e9}"), Err(CpuModelError::Brand));
    let brand = amd.with_brand(&"x".repeat(47)).unwrap();
    assert_eq!(brand.cpuid(0x8000_0004, 0, &now(1)).edx, u32::from_le_bytes(*b"xxx\0"));
}

#[test]
fn control_masks_follow_the_features() {
    let amd = CpuModel::amd_v3();
    assert_eq!(amd.cr4_allowed(), Cr4::all() - Cr4::VME - Cr4::PVI - Cr4::VMXE - Cr4::CET - Cr4::PKS);
    assert_eq!(amd.efer_allowed(), Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE | Efer::AIBRSE);
    assert_eq!(amd.xcr0_allowed(), Xcr0::all());
    assert_eq!(amd.cr0_allowed(), Cr0::all());
    let intel = CpuModel::intel_v3().with(Feature::Pks).unwrap();
    assert!(intel.cr4_allowed().contains(Cr4::PKS));
    assert_eq!(intel.efer_allowed(), Efer::SCE | Efer::LME | Efer::LMA | Efer::NXE);
    let small = amd.without(Feature::La57).and_then(|m| m.without(Feature::Smap)).unwrap();
    assert!(!small.cr4_allowed().intersects(Cr4::LA57 | Cr4::SMAP));
    assert_eq!(small.linear_width(), 48);
}

#[test]
fn xcr0_values_are_the_legal_combinations() {
    let amd = CpuModel::amd_v3();
    for value in 0..0x800_u64 {
        let legal = value & 1 != 0 && value & !0b10_0000_0111 == 0 && (value & 4 == 0 || value & 2 != 0);
        assert_eq!(amd.xcr0_valid(value).is_some(), legal, "{value:#x}");
    }
    let no_pku = amd.without(Feature::Pku).unwrap();
    assert_eq!(no_pku.xcr0_valid(0x201), None);
    assert_eq!(no_pku.xcr0_valid(7), Some(Xcr0::X87 | Xcr0::SSE | Xcr0::AVX));
}

#[test]
fn canonical_is_sign_extension_at_the_active_width() {
    let model = CpuModel::amd_v3();
    for (cr4, width) in [(Cr4::empty(), 48), (Cr4::LA57, 57)] {
        let half = 1_u64 << (width - 1);
        for (raw, canonical) in
            [(0, true), (half - 1, true), (half, false), (!half, false), (half.wrapping_neg(), true), (u64::MAX, true)]
        {
            assert_eq!(model.is_canonical(Gva::new(raw), cr4), canonical, "{raw:#x} of {width}");
        }
    }
    assert!(model.is_canonical_in_msr(1 << 55));
    assert!(!model.without(Feature::La57).unwrap().is_canonical_in_msr(1 << 55));
}

#[test]
fn the_signature_decodes_to_what_it_was_made_from() {
    for family in [6, 0xf, 0x19] {
        for model in [0, 1, 0x11, 0x8f] {
            let eax = Signature { family, model, stepping: 3 }.eax();
            let base = eax >> 8 & 0xf;
            let decoded = if base == 0xf { base + (eax >> 20 & 0xff) } else { base };
            assert_eq!(decoded, u32::from(family));
            assert_eq!(eax >> 4 & 0xf | (eax >> 16 & 0xf) << 4, u32::from(model));
            assert_eq!(eax & 0xf, 3);
        }
    }
}

#[test]
fn mirrors_follow_their_registers() {
    for model in models() {
        let read = |state: &CpuidDynamic| (model.cpuid(1, 0, state), model.cpuid(7, 0, state));
        let (off, off7) = read(&CpuidDynamic { apic: ApicState::Disabled, ..now(1) });
        let (on, on7) = read(&CpuidDynamic { cr4: Cr4::OSXSAVE | Cr4::PKE, ..now(2) });
        assert_eq!(off.ecx ^ on.ecx, 1 << 27);
        assert_eq!(off.edx ^ on.edx, 1 << 9 | 1 << 28);
        assert_eq!(off7.ecx ^ on7.ecx, 1 << 4);
    }
}

#[test]
fn xsave_sizes_agree_with_the_table() {
    assert_eq!(xsave_standard_len(Xcr0::X87), 576);
    assert_eq!(xsave_standard_len(Xcr0::all()), 840);
    assert_eq!(xsave_compacted_len(Xcr0::X87 | Xcr0::SSE | Xcr0::PKRU), 584);
    for raw in 0..0x400_u64 {
        let Some(states) = Xcr0::from_bits(raw) else { continue };
        let state = CpuidDynamic { xcr0: states, ..now(1) };
        for model in models() {
            let zero = model.cpuid(0xd, 0, &state);
            assert_eq!(zero.ebx, xsave_standard_len(states));
            assert_eq!(u64::from(zero.eax), model.xcr0_allowed().bits());
            assert!(zero.ebx <= zero.ecx);
            assert_eq!(model.cpuid(0xd, 1, &state).ebx, xsave_compacted_len(states));
            // Rebuild the standard length from the subleaves, as an operating system does.
            let rebuilt = (2..63).filter(|&n| raw >> n & 1 != 0).fold(576, |end: u32, n| {
                let leaf = model.cpuid(0xd, n, &state);
                assert_ne!(leaf.eax, 0);
                end.max(leaf.ebx + leaf.eax)
            });
            assert_eq!(rebuilt, zero.ebx);
        }
        let mut end = XSAVE_EXTENDED_OFFSET;
        for one in XSAVE_COMPONENTS.iter().filter(|one| one.placement != Placement::Legacy) {
            match xsave_compacted_offset(states, one) {
                Some(offset) => {
                    assert_eq!(offset, end);
                    end += one.len_bytes;
                }
                None => assert!(!states.contains(one.state)),
            }
        }
        assert_eq!(end, xsave_compacted_len(states));
    }
    let no_pku = CpuModel::amd_v3().without(Feature::Pku).unwrap();
    assert_eq!(no_pku.cpuid(0xd, 9, &now(1)), CpuidResult::ZERO);
    assert_eq!(no_pku.cpuid(0xd, 0, &now(1)).ecx, 832);
}

#[test]
fn out_of_range_leaves_follow_the_vendor() {
    let [amd, intel] = models();
    let bare = intel.clone().without(Feature::Hypervisor).unwrap();
    for leaf in [0x17, 0x1f, 0x100, 0x3fff_ffff, 0x5000_0000, 0x8000_0022, 0xc000_0000, u32::MAX] {
        assert_eq!(amd.cpuid(leaf, 0, &now(2)), CpuidResult::ZERO, "{leaf:#x}");
        assert_eq!(intel.cpuid(leaf, 0, &now(2)), intel.cpuid(0x16, 0, &now(2)), "{leaf:#x}");
    }
    assert_eq!(bare.cpuid(0x4000_0000, 0, &now(2)), bare.cpuid(0x16, 0, &now(2)));
    assert_eq!(intel.cpuid(0x4000_0000, 0, &now(2)).ebx, u32::from_le_bytes(*b"Bifo"));
    assert_eq!(amd.cpuid(0x4000_0010, 0, &now(2)).eax, 1_000_000);
}

#[test]
fn answers_are_total_and_ignore_ecx_where_the_leaf_says_so() {
    for count in [1, 2, 3, 64, 255, 256, 5000, u32::MAX] {
        for model in models() {
            for (leaf, sub) in all_inputs() {
                let answer = model.cpuid(leaf, sub, &now(count));
                let entry = LEAVES.iter().find(|entry| (entry.first..=entry.last).contains(&leaf)).unwrap();
                if entry.subleaves == Subleaves::Ignored {
                    assert_eq!(answer, model.cpuid(leaf, 0, &now(count)));
                }
                model.cpuid(leaf, u32::MAX, &now(count));
            }
        }
    }
}

#[test]
fn topology_names_every_processor_once() {
    for count in [1_u32, 2, 3, 4, 7, 8, 64] {
        for model in models() {
            let core = model.cpuid(0xb, 1, &now(count));
            assert_eq!((core.ebx, core.ecx), (count, 0x201));
            assert!(count <= 1 << core.eax && (count == 1 || count > 1 << (core.eax - 1)));
            assert_eq!(model.cpuid(0xb, 0, &now(count)).ecx, 0x100);
            assert_eq!(model.cpuid(0xb, 5, &now(count)).ecx, 5);
            assert_eq!(core.edx, count - 1);
        }
        let [amd, intel] = models();
        assert_eq!(amd.cpuid(0x8000_0008, 0, &now(count)).ecx & 0xff, count - 1);
        assert_eq!(amd.cpuid(0x8000_001e, 0, &now(count)).eax, count - 1);
        assert_eq!(amd.cpuid(0x8000_001d, 3, &now(count)).eax >> 14 & 0xfff, count - 1);
        assert!((intel.cpuid(4, 3, &now(count)).eax >> 14 & 0xfff) >= count - 1);
        assert!(intel.cpuid(1, 0, &now(count)).ebx >> 16 & 0xff >= count);
    }
}

#[test]
fn cache_leaves_multiply_to_the_cache_sizes() {
    let [amd, intel] = models();
    let size = |answer: CpuidResult| {
        u64::from((answer.ebx >> 22) + 1)
            * u64::from((answer.ebx >> 12 & 0x3ff) + 1)
            * u64::from((answer.ebx & 0xfff) + 1)
            * u64::from(answer.ecx + 1)
    };
    for sub in 0..4 {
        assert_eq!(size(amd.cpuid(0x8000_001d, sub, &now(1))), size(intel.cpuid(4, sub, &now(1))));
    }
    let kib = |bytes: u64| (bytes / 1024) as u32;
    assert_eq!(amd.cpuid(0x8000_0005, 0, &now(1)).ecx >> 24, kib(size(amd.cpuid(0x8000_001d, 0, &now(1)))));
    assert_eq!(amd.cpuid(0x8000_0006, 0, &now(1)).ecx >> 16, kib(size(amd.cpuid(0x8000_001d, 2, &now(1)))));
    assert_eq!((amd.cpuid(0x8000_0006, 0, &now(1)).edx >> 18) * 512, kib(size(amd.cpuid(0x8000_001d, 3, &now(1)))));
    assert_eq!(intel.cpuid(4, 4, &now(1)), CpuidResult::ZERO);
}

#[test]
fn the_tsc_clock_leaf_computes_back_to_the_tsc() {
    for (tsc, apic) in [(1_000_000_000, 1_000_000_000), (2_445_000_000, 100_000_000), (3_000_000_001, 24_000_000)] {
        let model = CpuModel::intel_v3().with_clocks(tsc, apic).unwrap();
        let leaf = model.cpuid(0x15, 0, &now(1));
        assert_eq!(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax), tsc);
        assert_eq!(u64::from(leaf.ecx), apic);
    }
}

#[test]
fn the_models_are_of_x86_64_v3() {
    // psABI, "Micro-architecture levels": everything of v1 to v3.
    const LEVEL_3: &[Feature] = &[
        Feature::Cmov,
        Feature::Cx8,
        Feature::Fpu,
        Feature::Fxsr,
        Feature::Mmx,
        Feature::Syscall,
        Feature::Sse,
        Feature::Sse2,
        Feature::Cx16,
        Feature::Lahf64,
        Feature::Popcnt,
        Feature::Sse3,
        Feature::Sse41,
        Feature::Sse42,
        Feature::Ssse3,
        Feature::Avx,
        Feature::Avx2,
        Feature::Bmi1,
        Feature::Bmi2,
        Feature::F16c,
        Feature::Fma,
        Feature::Abm,
        Feature::Movbe,
        Feature::Xsave,
    ];
    for model in models() {
        for &feature in LEVEL_3 {
            assert!(model.has(feature), "{feature:?}");
        }
    }
    assert_ne!(models()[0].features(), FeatureSet::EMPTY);
    assert_eq!(models()[0].cpuid(0, 0, &now(1)).ebx, u32::from_le_bytes(*b"Auth"));
    assert_eq!(models()[1].cpuid(0, 0, &now(1)).edx, u32::from_le_bytes(*b"ineI"));
}

#[test]
fn a_machine_with_snp_says_what_its_guests_look_for() {
    let snp = CpuModel::amd_snp();
    let leaf = snp.cpuid(0x8000_001f, 0, &now(1));
    assert_eq!(leaf.eax, 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 10);
    assert_eq!(leaf.ebx, 51 | 4 << 6 | 4 << 12 | 1 << 31);
    assert!(leaf.ecx > 0 && leaf.edx > leaf.ecx, "every ASID is for guests with encrypted state");
    assert!(snp.cpuid(0x8000_0000, 0, &now(1)).eax >= 0x8000_001f);
    assert_eq!(snp.cpuid(0x8000_0008, 0, &now(1)).eax & 0xffff, 48 << 8 | 52);
    let features = snp.cpuid(1, 0, &now(1)).ecx;
    assert!(features >> 31 & 1 == 1, "without the hypervisor bit Linux takes itself for the machine's owner");
    assert!(features >> 30 & 1 == 1, "RDRAND finds the C-bit");
    assert_eq!(snp.cpuid(7, 0, &now(1)).ecx >> 16 & 1, 0, "LA57");
    assert_ne!(snp.cpuid(0xd, 1, &now(1)).eax & 0b1010, 0, "XSAVEC or XSAVES");
    assert_eq!(snp.physical_mask(), (1 << 48) - 1);
    assert_eq!(snp.clone().with_maxphyaddr(50).unwrap().physical_width(), 50);
    let amd = CpuModel::amd_v3();
    assert_eq!(amd.cpuid(0x8000_001f, 0, &now(1)), CpuidResult::ZERO);
    assert_eq!(amd.clone().with(Feature::Sev), Err(CpuModelError::NoCBit(Feature::Sev)));
    let needs = Err(CpuModelError::MissingNeed { feature: Feature::SevSnp, needs: Feature::SevEs });
    assert_eq!(amd.with_c_bit(51).and_then(|m| m.with(Feature::Sev)).and_then(|m| m.with(Feature::SevSnp)), needs);
}

#[test]
fn registers_of_encrypted_guests_exist_on_their_machines_alone() {
    use crate::msr::Msr;
    for msr in [Msr::GHCB, Msr::SEV_STATUS] {
        assert!(models().iter().all(|model| model.msr(msr).is_err()), "{msr}");
        assert!(CpuModel::amd_snp().readable_msr(msr).is_ok(), "{msr}");
    }
    let snp = CpuModel::amd_snp();
    assert_eq!(validate_write(&snp, Msr::GHCB, 0, u64::MAX), Ok(u64::MAX));
    assert_eq!(validate_write(&snp, Msr::SEV_STATUS, 7, 7), Err(MsrRefused::ReadOnly(Msr::SEV_STATUS)));
}
