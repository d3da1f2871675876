//! State saving and restoring: FXSAVE, XSAVE and their kin, MXCSR.

use iced_x86::Mnemonic;

use super::operand::memory;
use super::{Context, Lowered};
use crate::dispatch::slow;
use crate::fp::fxsave::{Fxrstor, Fxsave};
use crate::fp::mxcsr::{Ldmxcsr, Stmxcsr};
use crate::fp::xsave::{Save, Xrstor, Xsave, Xsavec, Xsaveopt};
use crate::op::Handler;

/// Operand size that selects 64-bit error pointers.
const WIDE: u8 = 8;

pub(crate) fn select(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    let (run, size): (Handler, u8) = match context.insn.mnemonic() {
        M::Ldmxcsr | M::Vldmxcsr => (slow::<Ldmxcsr>, 0),
        M::Stmxcsr | M::Vstmxcsr => (slow::<Stmxcsr>, 0),
        M::Fxsave => (slow::<Fxsave>, 0),
        M::Fxsave64 => (slow::<Fxsave>, WIDE),
        M::Fxrstor => (slow::<Fxrstor>, 0),
        M::Fxrstor64 => (slow::<Fxrstor>, WIDE),
        M::Xsave => (slow::<Save<Xsave>>, 0),
        M::Xsave64 => (slow::<Save<Xsave>>, WIDE),
        M::Xsaveopt => (slow::<Save<Xsaveopt>>, 0),
        M::Xsaveopt64 => (slow::<Save<Xsaveopt>>, WIDE),
        M::Xsavec => (slow::<Save<Xsavec>>, 0),
        M::Xsavec64 => (slow::<Save<Xsavec>>, WIDE),
        M::Xrstor => (slow::<Xrstor>, 0),
        M::Xrstor64 => (slow::<Xrstor>, WIDE),
        _ => return None,
    };
    let mut op = context.op(run);
    op.dst = size;
    memory(context, &mut op);
    Some(Lowered::new(op))
}
