//! x87 control instructions; those on the stack are in [`super::select_x87_stack`].

use iced_x86::{Code, Mnemonic};

use super::operand::memory;
use super::{Context, Lowered, select_x87_stack};
use crate::dispatch::slow;
use crate::op::Handler;
use crate::x87::control::{
    Fdecstp, Ffree, Fincstp, Fldcw, Fnclex, Fninit, Fnop, Fnstcw, FnstswAx, FnstswMem, Fwait, Ignored,
};
use crate::x87::environment::{Fldenv, Fnsave, Fnstenv, Frstor};

pub(crate) fn select(context: &Context<'_>) -> Option<Lowered> {
    control(context).or_else(|| select_x87_stack::select(context))
}

/// Control instructions: what they do not need of the op is left as it is.
fn control(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let (run, size): (Handler, u8) = match insn.code() {
        Code::Wait => (slow::<Fwait>, 0),
        Code::Fninit => (slow::<Fninit>, 0),
        Code::Fnclex => (slow::<Fnclex>, 0),
        Code::Fnop => (slow::<Fnop>, 0),
        Code::Fneni | Code::Fndisi | Code::Fnsetpm => (slow::<Ignored>, 0),
        Code::Fincstp => (slow::<Fincstp>, 0),
        Code::Fdecstp => (slow::<Fdecstp>, 0),
        Code::Fnstcw_m2byte => (slow::<Fnstcw>, 0),
        Code::Fldcw_m2byte => (slow::<Fldcw>, 0),
        Code::Fnstsw_m2byte => (slow::<FnstswMem>, 0),
        Code::Fnstsw_AX => (slow::<FnstswAx>, 0),
        Code::Fnstenv_m14byte => (slow::<Fnstenv>, 2),
        Code::Fnstenv_m28byte => (slow::<Fnstenv>, 4),
        Code::Fldenv_m14byte => (slow::<Fldenv>, 2),
        Code::Fldenv_m28byte => (slow::<Fldenv>, 4),
        Code::Fnsave_m94byte => (slow::<Fnsave>, 2),
        Code::Fnsave_m108byte => (slow::<Fnsave>, 4),
        Code::Frstor_m94byte => (slow::<Frstor>, 2),
        Code::Frstor_m108byte => (slow::<Frstor>, 4),
        Code::Ffree_sti => (slow::<Ffree<false>>, 0),
        Code::Ffreep_sti => (slow::<Ffree<true>>, 0),
        _ => return None,
    };
    let mut op = context.op(run);
    op.dst = size;
    if matches!(insn.mnemonic(), Mnemonic::Ffree | Mnemonic::Ffreep) {
        op.src = insn.op0_register().number() as u8;
    } else if super::operand::is_memory(context, 0) {
        memory(context, &mut op);
    }
    Some(Lowered::new(op))
}
