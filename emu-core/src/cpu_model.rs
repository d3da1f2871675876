//! The processor that is modelled: who made it, how wide its addresses are, what it can do.
//!
//! A [`CpuModel`] is a value that never changes while a machine runs. CPUID ([`crate::cpuid`]), the MSR table
//! ([`crate::msr`]), CR4/EFER/XCR0 checks and instruction guards all ask the same [`FeatureSet`], so what is
//! advertised and what works cannot drift apart. Two models fit one test: nothing here is global.
//!
//! Always true of a model: every feature's needs are in the set; no feature belongs to the other vendor;
//! `maxphyaddr` is 36 to 52; SEV has a C-bit; `apic_hz` fits CPUID leaf 0x15.
//!
//! Left out on purpose: threads per core (every processor is a core of its own) and several packages.

use thiserror::Error;

use crate::addr::{Gpa, Gva};
use crate::cpuid::{Feature, Guard};
use crate::regs::{Cr0, Cr4, Efer, Xcr0};

/// Who made the processor, where AMD and Intel disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Vendor {
    /// AMD: AuthenticAMD.
    Amd,
    /// Intel: GenuineIntel.
    Intel,
}

impl Vendor {
    /// The twelve bytes of CPUID leaf 0, in the order EBX, EDX, ECX.
    pub const fn signature(self) -> &'static [u8; 12] {
        match self {
            Vendor::Amd => b"AuthenticAMD",
            Vendor::Intel => b"GenuineIntel",
        }
    }
}

/// Family, model and stepping as software computes them from CPUID leaf 1 EAX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Base plus extended family.
    pub family: u8,
    /// Extended model in the high, base model in the low four bits.
    pub model: u8,
    /// Stepping, 0 to 15.
    pub stepping: u8,
}

impl Signature {
    /// CPUID leaf 1 EAX (AMD APM vol. 3, "Function 0000_0001h", Intel SDM vol. 2, "CPUID", version information).
    pub const fn eax(self) -> u32 {
        let (base, extended) = if self.family >= 0xf { (0xf, self.family - 0xf) } else { (self.family, 0) };
        (extended as u32) << 20
            | (self.model as u32 >> 4) << 16
            | (base as u32) << 8
            | (self.model as u32 & 0xf) << 4
            | (self.stepping as u32 & 0xf)
    }
}

/// A set of [`Feature`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FeatureSet(u128);

const _: () = assert!(Feature::ALL.len() <= 128, "a FeatureSet has 128 places");

impl FeatureSet {
    /// No feature.
    pub const EMPTY: FeatureSet = FeatureSet(0);

    /// Whether `feature` is in the set.
    #[inline]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u8 & 1 != 0
    }
    /// The set and `feature`.
    pub const fn with(self, feature: Feature) -> FeatureSet {
        FeatureSet(self.0 | 1 << feature as u8)
    }
    /// The set but `feature`.
    pub const fn without(self, feature: Feature) -> FeatureSet {
        FeatureSet(self.0 & !(1 << feature as u8))
    }
    /// The features in declaration order.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |&feature| self.has(feature))
    }

    /// What the vendor's default model has.
    const fn default_of(vendor: Vendor) -> FeatureSet {
        let mut set = FeatureSet::EMPTY;
        let mut i = 0;
        while i < Feature::ALL.len() {
            let feature = Feature::ALL[i];
            if feature.bit().default_on(vendor) {
                set = set.with(feature);
            }
            i += 1;
        }
        set
    }
}

/// A model that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CpuModelError {
    /// The feature's basis is missing.
    #[error("{feature:?} needs {needs:?}, which the CPU model lacks")]
    MissingNeed {
        /// The feature asked for.
        feature: Feature,
        /// What to turn on first.
        needs: Feature,
    },
    /// Another feature stands on this one.
    #[error("{by:?} needs {feature:?}; turn {by:?} off first")]
    StillNeeded {
        /// The feature to be removed.
        feature: Feature,
        /// The one that would be left without basis.
        by: Feature,
    },
    /// The other vendor's feature.
    #[error("{feature:?} exists only on {vendor:?} processors")]
    OtherVendor {
        /// The feature asked for.
        feature: Feature,
        /// Who defines it.
        vendor: Vendor,
    },
    /// Physical addresses must be 36 to 52 bits wide.
    #[error("MAXPHYADDR must be 36 to 52, not {0}")]
    Maxphyaddr(u8),
    /// The C-bit must lie in the upper part of an entry's address field.
    #[error("the C-bit must be at bit 32 to 51 of an AMD model, not at bit {0}")]
    CBit(u8),
    /// Encrypted memory without a bit that says which.
    #[error("{0:?} needs a C-bit, which the CPU model lacks")]
    NoCBit(Feature),
    /// A clock outside of what CPUID can express.
    #[error("a clock of {0} Hz cannot be told by CPUID: it must be 1 MHz to 4 GHz")]
    Clock(u64),
    /// The brand string is too long or not ASCII.
    #[error("a brand string has at most 47 ASCII characters")]
    Brand,
}

/// A processor model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    vendor: Vendor,
    signature: Signature,
    brand: [u8; 48],
    maxphyaddr: u8,
    physical_width: u8,
    c_bit: Option<u8>,
    tsc_hz: u64,
    apic_hz: u64,
    ucode_rev: u32,
    features: FeatureSet,
}

/// One TSC tick per unit of virtual time.
const DEFAULT_TSC_HZ: u64 = 1_000_000_000;
/// Also the "crystal" of CPUID leaf 0x15: Linux takes it for the APIC timer's frequency.
const DEFAULT_APIC_HZ: u64 = 1_000_000_000;

impl CpuModel {
    /// A general-purpose AMD-like processor of x86-64-v3, family 0x19. The default.
    pub fn amd_v3() -> CpuModel {
        CpuModel {
            vendor: Vendor::Amd,
            signature: Signature { family: 0x19, model: 0x01, stepping: 1 },
            brand: padded_brand("Bifold x86-64-v3 processor, AMD-like"),
            maxphyaddr: 48,
            physical_width: 48,
            c_bit: None,
            tsc_hz: DEFAULT_TSC_HZ,
            apic_hz: DEFAULT_APIC_HZ,
            // Newer than any revision Linux asks of this family before it trusts it.
            ucode_rev: 0x0a00_11ff,
            features: const { FeatureSet::default_of(Vendor::Amd) },
        }
    }

    /// [`CpuModel::amd_v3`] with SEV, SEV-ES and SEV-SNP, as a machine with encrypted guests has it and as its guests see
    /// it: C-bit 51, MAXPHYADDR 52 (so that the C-bit is an address bit), of which encryption takes four, so that memory lies
    /// below 2^48 and nested tables keep reserved bits to mark devices with; four privilege levels, caches that need no care when a page changes hands. Four-level paging alone: nothing gains by
    /// five, and Linux would switch to them.
    pub fn amd_snp() -> CpuModel {
        let amd = CpuModel::amd_v3();
        let mut features = amd.features.without(Feature::La57);
        for feature in [
            Feature::Sev,
            Feature::SevEs,
            Feature::SevSnp,
            Feature::Vmpl,
            Feature::HwEnfCacheCoh,
            Feature::CoherencySfwNo,
        ] {
            features = features.with(feature);
        }
        let brand = padded_brand("Bifold x86-64-v3 processor, AMD-like, SEV-SNP");
        CpuModel { features, maxphyaddr: 52, physical_width: 48, c_bit: Some(51), brand, ..amd }
    }

    /// A general-purpose Intel-like processor of x86-64-v3.
    pub fn intel_v3() -> CpuModel {
        CpuModel {
            vendor: Vendor::Intel,
            // A model without an entry in Linux's lists of weaknesses that no capability bit can deny.
            signature: Signature { family: 6, model: 0x8f, stepping: 8 },
            brand: padded_brand("Bifold x86-64-v3 processor, Intel-like"),
            maxphyaddr: 46,
            physical_width: 46,
            c_bit: None,
            tsc_hz: DEFAULT_TSC_HZ,
            apic_hz: DEFAULT_APIC_HZ,
            ucode_rev: 0x2b00_0600,
            features: const { FeatureSet::default_of(Vendor::Intel) },
        }
    }

    /// The model with `feature`, whose needs must already be there.
    pub fn with(mut self, feature: Feature) -> Result<CpuModel, CpuModelError> {
        if let Some(vendor) = feature.bit().only_of()
            && vendor != self.vendor
        {
            return Err(CpuModelError::OtherVendor { feature, vendor });
        }
        if let Some(&needs) = feature.needs().iter().find(|&&needed| !self.has(needed)) {
            return Err(CpuModelError::MissingNeed { feature, needs });
        }
        if feature == Feature::Sev && self.c_bit.is_none() {
            return Err(CpuModelError::NoCBit(feature));
        }
        self.features = self.features.with(feature);
        Ok(self)
    }

    /// The model without `feature`, which nothing that remains may need.
    pub fn without(mut self, feature: Feature) -> Result<CpuModel, CpuModelError> {
        if let Some(by) = self.features.iter().find(|other| other.needs().contains(&feature)) {
            return Err(CpuModelError::StillNeeded { feature, by });
        }
        self.features = self.features.without(feature);
        Ok(self)
    }

    /// The model with physical addresses of `bits` bits, those from the C-bit on not for memory.
    pub fn with_maxphyaddr(mut self, bits: u8) -> Result<CpuModel, CpuModelError> {
        if !(36..=52).contains(&bits) {
            return Err(CpuModelError::Maxphyaddr(bits));
        }
        self.maxphyaddr = bits;
        self.physical_width = bits.min(self.c_bit.unwrap_or(bits));
        Ok(self)
    }

    /// The model with the memory-encryption bit at `bit` of page-table entries; memory lies below it.
    pub fn with_c_bit(mut self, bit: u8) -> Result<CpuModel, CpuModelError> {
        if self.vendor != Vendor::Amd || !(32..=51).contains(&bit) {
            return Err(CpuModelError::CBit(bit));
        }
        self.c_bit = Some(bit);
        self.physical_width = self.maxphyaddr.min(bit);
        Ok(self)
    }

    /// The model with these clocks, in hertz. The APIC timer counts at `apic_hz` divided by its own divisor.
    pub fn with_clocks(mut self, tsc_hz: u64, apic_hz: u64) -> Result<CpuModel, CpuModelError> {
        for hz in [tsc_hz, apic_hz] {
            if !(1_000_000..=4_000_000_000).contains(&hz) {
                return Err(CpuModelError::Clock(hz));
            }
        }
        (self.tsc_hz, self.apic_hz) = (tsc_hz, apic_hz);
        Ok(self)
    }

    /// The model with this brand string.
    pub fn with_brand(mut self, brand: &str) -> Result<CpuModel, CpuModelError> {
        if brand.len() > 47 || !brand.is_ascii() {
            return Err(CpuModelError::Brand);
        }
        self.brand = padded_brand(brand);
        Ok(self)
    }

    /// The model with this family, model and stepping.
    pub fn with_signature(mut self, signature: Signature) -> CpuModel {
        self.signature = signature;
        self
    }

    /// Whether the processor has `feature`.
    #[inline]
    pub const fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }
    /// All its features.
    pub const fn features(&self) -> FeatureSet {
        self.features
    }
    /// Who made it.
    #[inline]
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }
    /// Family, model, stepping.
    pub const fn signature(&self) -> Signature {
        self.signature
    }
    /// The brand string of leaves 8000_0002 to 8000_0004, padded with NUL.
    pub const fn brand(&self) -> &[u8; 48] {
        &self.brand
    }
    /// MAXPHYADDR: width of physical addresses in bits, as CPUID 8000_0008 says.
    #[inline]
    pub const fn maxphyaddr(&self) -> u8 {
        self.maxphyaddr
    }
    /// Width in bits of the addresses that memory and devices can have: MAXPHYADDR less what encryption takes (CPUID
    /// 8000_001F EBX\[11:6\]). Bits above are reserved in table entries, the C-bit of a guest excepted.
    #[inline]
    pub const fn physical_width(&self) -> u8 {
        self.physical_width
    }
    /// Width of linear addresses in bits with all that the processor can: 48, or 57 with LA57.
    #[inline]
    pub const fn linear_width(&self) -> u8 {
        if self.has(Feature::La57) { 57 } else { 48 }
    }
    /// Position of the memory-encryption bit in page-table entries, if the model has one.
    #[inline]
    pub const fn c_bit(&self) -> Option<u8> {
        self.c_bit
    }
    /// TSC frequency in hertz.
    pub const fn tsc_hz(&self) -> u64 {
        self.tsc_hz
    }
    /// Input frequency of the APIC timer in hertz.
    pub const fn apic_hz(&self) -> u64 {
        self.apic_hz
    }
    /// Microcode revision.
    pub const fn ucode_rev(&self) -> u32 {
        self.ucode_rev
    }

    /// The bits a physical address may have. The C-bit is none of them.
    #[inline]
    pub const fn physical_mask(&self) -> u64 {
        (1 << self.physical_width) - 1
    }
    /// Whether `gpa` is an address the processor can form.
    #[inline]
    pub const fn is_physical(&self, gpa: Gpa) -> bool {
        gpa.raw() & !self.physical_mask() == 0
    }

    /// Whether `gva` is canonical under these control registers: bits from the sign bit up are all alike.
    #[inline]
    pub const fn is_canonical(&self, gva: Gva, cr4: Cr4) -> bool {
        canonical(gva.raw(), if cr4.contains(Cr4::LA57) { 57 } else { 48 })
    }
    /// Whether `raw` is canonical for the widest addresses of the processor, whatever CR4.LA57 says: the rule for
    /// registers that outlive a change of mode, MSR bases and system-call targets.
    #[inline]
    pub const fn is_canonical_in_msr(&self, raw: u64) -> bool {
        canonical(raw, self.linear_width())
    }

    /// Bits of CR0 that exist. Bits 63:32 outside of it raise #GP when written as 1; lower ones are ignored.
    pub const fn cr0_allowed(&self) -> Cr0 {
        Cr0::all()
    }
    /// Bits of CR3 that may be 1 in long mode: flags, a physical address and the C-bit; all others raise #GP.
    pub const fn cr3_allowed(&self) -> u64 {
        match self.c_bit {
            Some(bit) => self.physical_mask() | 1 << bit,
            None => self.physical_mask(),
        }
    }
    /// Bits of CR4 that may be 1; all others raise #GP. RDPMC exists without an advertisement, hence PCE.
    pub fn cr4_allowed(&self) -> Cr4 {
        self.guarded(Cr4::PCE, |mask, guard| match guard {
            Guard::Cr4(bits) => mask | *bits,
            _ => mask,
        })
    }
    /// Bits of EFER that may be 1; all others raise #GP.
    pub fn efer_allowed(&self) -> Efer {
        self.guarded(Efer::empty(), |mask, guard| match guard {
            Guard::Efer(bits) => mask | *bits,
            _ => mask,
        })
    }
    /// Bits of XCR0 that XSETBV may set; none without XSAVE. See also [`CpuModel::xcr0_valid`].
    pub fn xcr0_allowed(&self) -> Xcr0 {
        self.guarded(Xcr0::empty(), |mask, guard| match guard {
            Guard::Xcr0(bits) => mask | *bits,
            _ => mask,
        })
    }
    /// Whether XSETBV accepts `value`: only allowed bits, x87 always, AVX only with SSE.
    pub fn xcr0_valid(&self, value: u64) -> Option<Xcr0> {
        let value = Xcr0::from_bits(value)?;
        let combined = value.contains(Xcr0::X87) && (!value.contains(Xcr0::AVX) || value.contains(Xcr0::SSE));
        (self.xcr0_allowed().contains(value) && combined).then_some(value)
    }

    fn guarded<T>(&self, start: T, fold: impl Fn(T, &Guard) -> T) -> T {
        self.features.iter().flat_map(Feature::guards).fold(start, fold)
    }
}

impl Default for CpuModel {
    fn default() -> CpuModel {
        CpuModel::amd_v3()
    }
}

const fn canonical(raw: u64, width: u8) -> bool {
    let unused = 64 - width as u32;
    ((raw << unused) as i64 >> unused) as u64 == raw
}

/// `brand` must be at most 47 bytes.
fn padded_brand(brand: &str) -> [u8; 48] {
    let mut padded = [0; 48];
    padded[..brand.len()].copy_from_slice(brand.as_bytes());
    padded
}
