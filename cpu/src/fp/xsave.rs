//! XSAVE, XSAVEOPT, XSAVEC and XRSTOR (Intel SDM vol. 1, chapter 13 "Managing State Using the XSAVE Feature Set"; APM
//! vol. 4, the instructions).
//!
//! A component is in use when its state is not the initial one: nothing else, so that images are the same in every run.
//! XSAVEOPT applies the init optimisation and never the modified one. MXCSR is no part of what makes SSE state used,
//! but XSAVEC, whose image has it only with the SSE component, saves that component when MXCSR is not initial.
//!
//! Left out on purpose: XSAVES and XRSTORS, which no model has.

use emu_core::Exception;
use emu_core::cpuid::{
    Feature, XSAVE_COMPONENTS, XSAVE_HEADER_OFFSET, XsaveComponent, xsave_compacted_len, xsave_compacted_offset,
    xsave_standard_len,
};
use emu_core::regs::Xcr0;
use mmu::PagingChange;

use crate::address::Use;
use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::fp::area::Area;
use crate::fp::fxsave::{self, MXCSR_OFFSET, Pointers, ST_OFFSET, XMM_OFFSET};
use crate::fp::mxcsr;
use crate::op::Op;
use crate::simd::VectorState;
use crate::vector::V128;
use crate::x87::X87State;

/// XCOMP_BV: the area is in the compacted format.
const COMPACTED: u64 = 1 << 63;
/// Length of the header that is defined: XSTATE_BV, XCOMP_BV and reserved bytes.
const HEADER_LEN: usize = 64;
/// The longest component outside the legacy region.
const LONGEST: usize = 256;

impl Cpu {
    /// XINUSE: the enabled components that are not in their initial configuration.
    pub fn xinuse(&self) -> Xcr0 {
        let registers = fxsave::registers(self);
        let vectors = || (0..registers as u8).map(|n| self.vector.ymm(n));
        let mut used = Xcr0::empty();
        used.set(Xcr0::X87, !self.x87.is_initial());
        used.set(Xcr0::SSE, vectors().any(|v| v[0] != V128::ZERO));
        used.set(Xcr0::AVX, vectors().any(|v| v[1] != V128::ZERO));
        used.set(Xcr0::PKRU, self.control.pkru != 0);
        used & self.control.xcr0
    }

    /// The components asked for in EDX:EAX that XCR0 enables.
    fn requested_components(&self) -> Xcr0 {
        let mask = self.gpr[2] << 32 | self.gpr[0] & 0xffff_ffff;
        Xcr0::from_bits_truncate(mask) & self.control.xcr0
    }
}

/// Which of the saving instructions.
pub(crate) trait Saving {
    /// The image is in the compacted format.
    const COMPACTED: bool;
    /// Components in their initial configuration are not written.
    const INIT_OPTIMISATION: bool;
}

/// XSAVE
pub(crate) struct Xsave;
/// XSAVEOPT
pub(crate) struct Xsaveopt;
/// XSAVEC
pub(crate) struct Xsavec;

impl Saving for Xsave {
    const COMPACTED: bool = false;
    const INIT_OPTIMISATION: bool = false;
}
impl Saving for Xsaveopt {
    const COMPACTED: bool = false;
    const INIT_OPTIMISATION: bool = true;
}
impl Saving for Xsavec {
    const COMPACTED: bool = true;
    const INIT_OPTIMISATION: bool = true;
}

/// One run of bytes of an image.
struct Piece {
    offset: usize,
    len: usize,
}

/// The saving instruction `S`.
pub(crate) struct Save<S>(S);
impl<S: Saving> Act for Save<S> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let requested = cpu.requested_components();
        let mut used = cpu.xinuse() & requested;
        if S::COMPACTED && requested.contains(Xcr0::SSE) && cpu.vector.mxcsr != VectorState::MXCSR_RESET {
            used |= Xcr0::SSE;
        }
        let saved = if S::INIT_OPTIMISATION { used } else { requested };
        let saves_mxcsr =
            if S::COMPACTED { saved.contains(Xcr0::SSE) } else { requested.intersects(Xcr0::SSE | Xcr0::AVX) };
        let len = if S::COMPACTED { xsave_compacted_len(requested) } else { xsave_standard_len(requested) };
        let area = Area::of(cpu, op, len as u64, Use::Write)?.aligned(64)?;
        let offset = |component: &XsaveComponent| match S::COMPACTED {
            true => xsave_compacted_offset(requested, component).unwrap_or(component.offset),
            false => component.offset,
        };

        // Everything that will be written, before anything is.
        let mut pieces = [const { Piece { offset: 0, len: 0 } }; 8];
        let mut count = 0;
        let mut note = |offset: usize, len: usize| {
            pieces[count] = Piece { offset, len };
            count += 1;
        };
        note(XSAVE_HEADER_OFFSET as usize, 16);
        if saves_mxcsr {
            note(MXCSR_OFFSET, 8);
        }
        for component in XSAVE_COMPONENTS.iter().filter(|one| saved.contains(one.state)) {
            if component.state == Xcr0::X87 {
                note(0, fxsave::control_len(cpu));
                note(ST_OFFSET, 128);
            } else {
                note(offset(component) as usize, component.len_bytes as usize);
            }
        }
        for piece in &pieces[..count] {
            area.probe_store(cpu, piece.offset as u64, piece.len as u64)?;
        }
        let mut header = [0; 16];
        area.load::<u64>(cpu, XSAVE_HEADER_OFFSET as u64, &mut header[..8])?;

        let mut image = [0; fxsave::LEN];
        if saved.contains(Xcr0::X87) {
            fxsave::pack_control(cpu, Pointers::of(op), &mut image);
            fxsave::pack_registers(cpu, &mut image);
            let len = fxsave::control_len(cpu);
            area.store::<u16>(cpu, 0, &image[..len])?;
            area.store::<u64>(cpu, ST_OFFSET as u64, &image[ST_OFFSET..XMM_OFFSET])?;
        }
        if saves_mxcsr {
            fxsave::pack_mxcsr(cpu, &mut image);
            area.store::<u64>(cpu, MXCSR_OFFSET as u64, &image[MXCSR_OFFSET..ST_OFFSET])?;
        }
        if saved.contains(Xcr0::SSE) {
            fxsave::pack_xmm(cpu, &mut image);
            let end = XMM_OFFSET + 16 * fxsave::registers(cpu);
            area.store::<u64>(cpu, XMM_OFFSET as u64, &image[XMM_OFFSET..end])?;
        }
        for component in extended(saved) {
            let mut bytes = [0; LONGEST];
            let len = pack_extended(cpu, component, &mut bytes);
            area.store::<u64>(cpu, offset(component) as u64, &bytes[..len])?;
        }

        let old = u64::from_le_bytes(header.as_chunks().0[0]);
        if S::COMPACTED {
            header[..8].copy_from_slice(&used.bits().to_le_bytes());
            header[8..].copy_from_slice(&(requested.bits() | COMPACTED).to_le_bytes());
            area.store::<u64>(cpu, XSAVE_HEADER_OFFSET as u64, &header)
        } else {
            let states = old & !requested.bits() | used.bits();
            area.store::<u64>(cpu, XSAVE_HEADER_OFFSET as u64, &states.to_le_bytes())
        }
    }
}

/// The components of `states` outside the legacy region.
fn extended(states: Xcr0) -> impl Iterator<Item = &'static XsaveComponent> {
    XSAVE_COMPONENTS.iter().filter(move |one| !matches!(one.state, Xcr0::X87 | Xcr0::SSE) && states.contains(one.state))
}

/// Writes one component; returns the length that is stored.
fn pack_extended(cpu: &Cpu, component: &XsaveComponent, bytes: &mut [u8; LONGEST]) -> usize {
    match component.state {
        Xcr0::AVX => {
            let registers = fxsave::registers(cpu);
            for n in 0..registers {
                bytes[16 * n..][..16].copy_from_slice(cpu.vector.ymm(n as u8)[1].as_bytes());
            }
            16 * registers
        }
        _ => {
            bytes[..4].copy_from_slice(&cpu.control.pkru.to_le_bytes());
            component.len_bytes as usize
        }
    }
}

/// Loads one component from its bytes.
fn unpack_extended(cpu: &mut Cpu, component: &XsaveComponent, bytes: &[u8; LONGEST]) {
    match component.state {
        Xcr0::AVX => {
            for n in 0..fxsave::registers(cpu) {
                let mut half = [0; 16];
                half.copy_from_slice(&bytes[16 * n..][..16]);
                cpu.vector.set_upper(n as u8, V128::from_bytes(half));
            }
        }
        _ => set_pkru(cpu, u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
    }
}

fn set_pkru(cpu: &mut Cpu, pkru: u32) {
    if cpu.control.pkru != pkru {
        cpu.control.pkru = pkru;
        cpu.update_paging(PagingChange::ProtectionKeys);
    }
}

/// Puts components into their initial configuration.
fn initialise(cpu: &mut Cpu, states: Xcr0) {
    let registers = fxsave::registers(cpu);
    if states.contains(Xcr0::X87) {
        cpu.x87 = X87State::reset();
    }
    for n in 0..registers as u8 {
        if states.contains(Xcr0::SSE) {
            cpu.vector.set_xmm(n, V128::ZERO);
        }
        if states.contains(Xcr0::AVX) {
            cpu.vector.set_upper(n, V128::ZERO);
        }
    }
    if states.contains(Xcr0::PKRU) {
        set_pkru(cpu, 0);
    }
}

/// What the header of an area says.
struct Header {
    states: Xcr0,
    /// The components with a place, if the format is the compacted one.
    compacted: Option<Xcr0>,
}

impl Header {
    /// Checks a header (SDM vol. 1, 13.8.1 "Standard Form of XRSTOR" and 13.8.2 "Compacted Form of XRSTOR").
    fn parse(cpu: &Cpu, bytes: &[u8; HEADER_LEN]) -> Result<Header, Exception> {
        let words: [u64; 8] = core::array::from_fn(|n| u64::from_le_bytes(bytes.as_chunks().0[n]));
        let [states, format, reserved @ ..] = words;
        let enabled = cpu.control.xcr0.bits();
        let compacted = format & COMPACTED != 0;
        let listed = format & !COMPACTED;
        let sound = if compacted {
            cpu.model.has(Feature::Xsavec) && listed & !enabled == 0 && states & !listed == 0 && reserved == [0; 6]
        } else {
            format == 0 && states & !enabled == 0 && reserved[0] == 0
        };
        if !sound {
            return Err(Exception::GP0);
        }
        let states = Xcr0::from_bits_truncate(states);
        Ok(Header { states, compacted: compacted.then_some(Xcr0::from_bits_truncate(listed)) })
    }
}

/// XRSTOR
pub(crate) struct Xrstor;
impl Act for Xrstor {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let requested = cpu.requested_components();
        let area = Area::of(cpu, op, xsave_standard_len(Xcr0::empty()) as u64, Use::Read)?.aligned(64)?;
        let mut header = [0; HEADER_LEN];
        area.load::<u64>(cpu, XSAVE_HEADER_OFFSET as u64, &mut header)?;
        let header = Header::parse(cpu, &header)?;
        let loaded = requested & header.states;
        let loads_mxcsr = match header.compacted {
            Some(_) => loaded.contains(Xcr0::SSE),
            None => requested.intersects(Xcr0::SSE | Xcr0::AVX),
        };
        let len = header.compacted.map_or_else(|| xsave_standard_len(requested), xsave_compacted_len);
        let area = Area::of(cpu, op, len as u64, Use::Read)?;

        // Everything is read and checked before any state changes.
        let mut image = [0; fxsave::LEN];
        if loaded.contains(Xcr0::X87) {
            area.load::<u64>(cpu, 0, &mut image[..MXCSR_OFFSET])?;
            area.load::<u64>(cpu, ST_OFFSET as u64, &mut image[ST_OFFSET..XMM_OFFSET])?;
        }
        if loads_mxcsr {
            area.load::<u64>(cpu, MXCSR_OFFSET as u64, &mut image[MXCSR_OFFSET..ST_OFFSET])?;
            mxcsr::check(fxsave::mxcsr_of(&image))?;
        }
        if loaded.contains(Xcr0::SSE) {
            let end = XMM_OFFSET + 16 * fxsave::registers(cpu);
            area.load::<u64>(cpu, XMM_OFFSET as u64, &mut image[XMM_OFFSET..end])?;
        }
        let mut bytes = [[0; LONGEST]; XSAVE_COMPONENTS.len()];
        for (component, into) in extended(loaded).zip(&mut bytes) {
            let offset = match header.compacted {
                Some(listed) => xsave_compacted_offset(listed, component).unwrap_or(component.offset),
                None => component.offset,
            };
            let len = match component.state {
                Xcr0::AVX => 16 * fxsave::registers(cpu),
                _ => component.len_bytes as usize,
            };
            area.load::<u64>(cpu, offset as u64, &mut into[..len])?;
        }

        initialise(cpu, requested - loaded);
        if loaded.contains(Xcr0::X87) {
            fxsave::unpack_x87(cpu, Pointers::of(op), &image);
        }
        if loads_mxcsr {
            cpu.vector.mxcsr = fxsave::mxcsr_of(&image);
        } else if header.compacted.is_some() && requested.contains(Xcr0::SSE) {
            cpu.vector.mxcsr = VectorState::MXCSR_RESET;
        }
        if loaded.contains(Xcr0::SSE) {
            fxsave::unpack_xmm(cpu, &image);
        }
        for (component, from) in extended(loaded).zip(&bytes) {
            unpack_extended(cpu, component, from);
        }
        Ok(())
    }
}
