//! Accesses to selected elements: VMASKMOV, VPMASKMOV, MASKMOVDQU, and the gathers.
//!
//! Elements that are not selected are not accessed: they cannot fault and reach no device. A store settles that every
//! selected element can be written before it writes the first. A gather that faults has done the elements below the
//! faulting one, and its mask says so; one that leaves for a device or for the hypervisor has done nothing yet, because
//! the answers it already has are kept for its second run.

use core::marker::PhantomData;

use emu_core::cpu_model::Vendor;

use crate::address::{Addressing, Legacy, SCALE_MASK, Use};
use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::mem::{Fast, Path, Slow};
use crate::op::Op;
use crate::simd::form::Form;
use crate::vector::gather::{Gather, Length, Shape, Width as GatherWidth};
use crate::vector::mask::{ElementMask, dword, qword, set_dword, set_qword};
use crate::vector::{V128, V256};
use crate::width::Width;

/// An element of a masked move.
pub(crate) trait MaskedElement: Width {
    /// The elements that `mask` selects.
    fn selected(mask: V256) -> ElementMask;
    fn get(value: V256, element: usize) -> Self;
    fn set(value: &mut V256, element: usize, new: Self);
}

impl MaskedElement for u32 {
    fn selected(mask: V256) -> ElementMask {
        ElementMask::of_dwords(mask)
    }
    fn get(value: V256, element: usize) -> u32 {
        dword(value, element)
    }
    fn set(value: &mut V256, element: usize, new: u32) {
        set_dword(value, element, new);
    }
}

impl MaskedElement for u64 {
    fn selected(mask: V256) -> ElementMask {
        ElementMask::of_qwords(mask)
    }
    fn get(value: V256, element: usize) -> u64 {
        qword(value, element)
    }
    fn set(value: &mut V256, element: usize, new: u64) {
        set_qword(value, element, new);
    }
}

/// The address of element `n`.
fn address<T: Width>(cpu: &Cpu, op: &Op, n: usize, usage: Use) -> Result<u64, Trap> {
    Ok(Legacy::linear(cpu, op, n as u64 * T::BYTES, T::BYTES, usage)?)
}

/// VMASKMOVPS, VMASKMOVPD, VPMASKMOVD, VPMASKMOVQ `dst, mask aux, memory`
pub(crate) struct MaskedLoad<T, F>(PhantomData<(T, F)>);
impl<T: MaskedElement, F: Form> Act for MaskedLoad<T, F> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let selected = T::selected(F::widen(F::get(cpu, op.aux as u8)));
        let mut result = [V128::ZERO; 2];
        // Where the whole operand is memory at hand, what is read beyond the selection cannot be seen.
        let whole = match Legacy::linear(cpu, op, 0, F::BYTES, Use::Read) {
            Ok(linear) => F::load::<Fast>(cpu, linear, op.seg).ok(),
            Err(_) => None,
        };
        for element in selected {
            let value = match whole {
                Some(whole) => T::get(F::widen(whole), element),
                None => {
                    let linear = address::<T>(cpu, op, element, Use::Read)?;
                    load_element(cpu, linear, op.seg)?
                }
            };
            T::set(&mut result, element, value);
        }
        F::set(cpu, op.dst, F::narrow(result));
        Ok(())
    }
}

/// The same as stores: `memory, mask aux, src`
pub(crate) struct MaskedStore<T, F>(PhantomData<(T, F)>);
impl<T: MaskedElement, F: Form> Act for MaskedStore<T, F> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let selected = T::selected(F::widen(F::get(cpu, op.aux as u8)));
        let value = F::widen(F::get(cpu, op.src));
        store_selected::<T>(cpu, op, selected, |element| T::get(value, element))
    }
}

/// Stores the selected elements, all or none.
pub(crate) fn store_selected<T: Width>(
    cpu: &mut Cpu,
    op: &Op,
    selected: ElementMask,
    value: impl Fn(usize) -> T,
) -> Result<(), Trap> {
    for element in selected {
        let linear = address::<T>(cpu, op, element, Use::Write)?;
        if is_exempt::<T>(cpu, linear) {
            check_end::<T>(cpu, linear, op.seg)?;
            for n in 0..T::BYTES {
                Slow::probe_store(cpu, linear.wrapping_add(n), op.seg, 1)?;
            }
        } else {
            Slow::probe_store(cpu, linear, op.seg, T::BYTES)?;
        }
    }
    for element in selected {
        let linear = address::<T>(cpu, op, element, Use::Write)?;
        store_element(cpu, linear, op.seg, value(element))?;
    }
    Ok(())
}

/// Whether an element lies where the alignment check would refuse it, on a processor that does not apply the check to
/// single elements of vectors (Zen). It is accessed by bytes then.
fn is_exempt<T: Width>(cpu: &Cpu, linear: u64) -> bool {
    cpu.alignment_checked() && linear & (T::BYTES - 1) != 0 && cpu.model.vendor() == Vendor::Amd
}

/// An element that reaches out of the canonical range is refused before its first bytes are looked at.
fn check_end<T: Width>(cpu: &Cpu, linear: u64, seg: u8) -> Result<(), Trap> {
    if cpu.is_canonical(linear.wrapping_add(T::BYTES - 1)) { Ok(()) } else { Err(cpu.bad_address(seg).into()) }
}

fn load_element<T: Width>(cpu: &mut Cpu, linear: u64, seg: u8) -> Result<T, Trap> {
    if !is_exempt::<T>(cpu, linear) {
        return Slow::load(cpu, linear, seg);
    }
    check_end::<T>(cpu, linear, seg)?;
    let mut value = 0;
    for n in 0..T::BYTES {
        let byte = Slow::load::<u8>(cpu, linear.wrapping_add(n), seg)?;
        value |= u64::from(byte) << (8 * n);
    }
    Ok(T::truncate(value))
}

fn store_element<T: Width>(cpu: &mut Cpu, linear: u64, seg: u8, value: T) -> Result<(), Trap> {
    if !is_exempt::<T>(cpu, linear) {
        return Slow::store(cpu, linear, seg, value);
    }
    for n in 0..T::BYTES {
        Slow::store(cpu, linear.wrapping_add(n), seg, (value.zero_extend() >> (8 * n)) as u8)?;
    }
    Ok(())
}

/// MASKMOVDQU `src, mask aux`, to where rDI points
pub(crate) struct Maskmovdqu;
impl Act for Maskmovdqu {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let selected = ElementMask::of_bytes(cpu.vector.xmm(op.aux as u8));
        let bytes = cpu.vector.xmm(op.src).to_bytes();
        store_bytes::<16>(cpu, op, selected, bytes)
    }
}

/// Stores the selected ones of `bytes`. All of them must be writable, selected or not, and are looked at by eight: the
/// manuals leave that to the processor, and Zen has it so.
pub(crate) fn store_bytes<const N: usize>(
    cpu: &mut Cpu,
    op: &Op,
    selected: ElementMask,
    bytes: [u8; N],
) -> Result<(), Trap> {
    for half in 0..N / 8 {
        let linear = address::<u64>(cpu, op, half, Use::Write)?;
        Slow::probe_store(cpu, linear, op.seg, 8)?;
    }
    store_selected::<u8>(cpu, op, selected, |element| bytes[element % N])
}

/// What a gather keeps in `aux`: the mask register in bits 3:0, the index register in bits 7:4, and these.
pub(crate) const QWORD_INDEX: u16 = 1 << 8;
/// Elements of 64 bits.
pub(crate) const QWORD_ELEMENT: u16 = 1 << 9;
/// VEX.256.
pub(crate) const YMM: u16 = 1 << 10;

fn shape(aux: u16) -> Shape {
    let width = |bit| if aux & bit != 0 { GatherWidth::Qword } else { GatherWidth::Dword };
    Shape {
        index: width(QWORD_INDEX),
        element: width(QWORD_ELEMENT),
        length: if aux & YMM != 0 { Length::Ymm } else { Length::Xmm },
    }
}

/// VGATHERDPS, VPGATHERQQ and their kin
pub(crate) struct GatherInsn;
impl Act for GatherInsn {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let (mask, index) = (op.aux as u8 & 15, (op.aux >> 4) as u8 & 15);
        let shape = shape(op.aux);
        let registers = (cpu.vector.ymm(op.dst), cpu.vector.ymm(mask), cpu.vector.ymm(index));
        let mut gather = Gather::new(shape, registers.0, registers.1, registers.2, 1 << (op.scale & SCALE_MASK));
        let outcome = collect(cpu, op, shape, &mut gather);
        if matches!(outcome, Ok(()) | Err(Trap::Exception(_))) {
            let (destination, left) = gather.registers();
            cpu.vector.set_ymm(op.dst, destination);
            cpu.vector.set_ymm(mask, left);
        }
        outcome
    }
}

fn collect(cpu: &mut Cpu, op: &Op, shape: Shape, gather: &mut Gather) -> Result<(), Trap> {
    while let Some(pending) = gather.advance() {
        let offset = pending.offset as u64;
        let value = match shape.element {
            GatherWidth::Dword => {
                let linear = Legacy::linear(cpu, op, offset, 4, Use::Read)?;
                load_element::<u32>(cpu, linear, op.seg)?.into()
            }
            GatherWidth::Qword => {
                let linear = Legacy::linear(cpu, op, offset, 8, Use::Read)?;
                load_element::<u64>(cpu, linear, op.seg)?
            }
        };
        gather.supply(pending.element, value);
    }
    Ok(())
}
