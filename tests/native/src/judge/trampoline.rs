//! Entry into a case and the way out of it, in assembly.
//!
//! No register and no stack belongs to these routines while the case runs: state is loaded from and saved to
//! [`Context`](super::layout::Context) by absolute addresses. A case has no control over RSP's validity on the way
//! out, so RSP is the first thing that is saved and replaced.

#![expect(unsafe_code, reason = "loads and saves the whole register state")]

use std::arch::naked_asm;

use super::layout::{CONTEXT, OFF_ENTRY, OFF_FULL, OFF_FXSAVE, OFF_HOST_MXCSR, OFF_HOST_RSP, OFF_RFLAGS, OFF_YMM};

/// Loads the state in the context and jumps to its entry; returns when the case has come to [`leave`].
///
/// # Safety
///
/// The page at [`CONTEXT`] holds a filled-in context, and its entry leads to code that ends in [`leave`] or in a
/// signal whose handler leads there.
#[unsafe(naked)]
pub unsafe extern "C" fn enter() {
    naked_asm!(
        "push rbx",
        "push rbp",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov qword ptr [{ctx} + {host_rsp}], rsp",
        "cmp qword ptr [{ctx} + {full}], 0",
        "je 2f",
        "fxrstor64 [{ctx} + {fx}]",
        "vmovaps ymm0, ymmword ptr [{ctx} + {ymm} + 0x000]",
        "vmovaps ymm1, ymmword ptr [{ctx} + {ymm} + 0x020]",
        "vmovaps ymm2, ymmword ptr [{ctx} + {ymm} + 0x040]",
        "vmovaps ymm3, ymmword ptr [{ctx} + {ymm} + 0x060]",
        "vmovaps ymm4, ymmword ptr [{ctx} + {ymm} + 0x080]",
        "vmovaps ymm5, ymmword ptr [{ctx} + {ymm} + 0x0a0]",
        "vmovaps ymm6, ymmword ptr [{ctx} + {ymm} + 0x0c0]",
        "vmovaps ymm7, ymmword ptr [{ctx} + {ymm} + 0x0e0]",
        "vmovaps ymm8, ymmword ptr [{ctx} + {ymm} + 0x100]",
        "vmovaps ymm9, ymmword ptr [{ctx} + {ymm} + 0x120]",
        "vmovaps ymm10, ymmword ptr [{ctx} + {ymm} + 0x140]",
        "vmovaps ymm11, ymmword ptr [{ctx} + {ymm} + 0x160]",
        "vmovaps ymm12, ymmword ptr [{ctx} + {ymm} + 0x180]",
        "vmovaps ymm13, ymmword ptr [{ctx} + {ymm} + 0x1a0]",
        "vmovaps ymm14, ymmword ptr [{ctx} + {ymm} + 0x1c0]",
        "vmovaps ymm15, ymmword ptr [{ctx} + {ymm} + 0x1e0]",
        "2:",
        "push qword ptr [{ctx} + {rflags}]",
        "popfq",
        "mov rax, qword ptr [{ctx} + 0x00]",
        "mov rcx, qword ptr [{ctx} + 0x08]",
        "mov rdx, qword ptr [{ctx} + 0x10]",
        "mov rbx, qword ptr [{ctx} + 0x18]",
        "mov rsp, qword ptr [{ctx} + 0x20]",
        "mov rbp, qword ptr [{ctx} + 0x28]",
        "mov rsi, qword ptr [{ctx} + 0x30]",
        "mov rdi, qword ptr [{ctx} + 0x38]",
        "mov r8, qword ptr [{ctx} + 0x40]",
        "mov r9, qword ptr [{ctx} + 0x48]",
        "mov r10, qword ptr [{ctx} + 0x50]",
        "mov r11, qword ptr [{ctx} + 0x58]",
        "mov r12, qword ptr [{ctx} + 0x60]",
        "mov r13, qword ptr [{ctx} + 0x68]",
        "mov r14, qword ptr [{ctx} + 0x70]",
        "mov r15, qword ptr [{ctx} + 0x78]",
        "jmp qword ptr [{ctx} + {entry}]",
        ctx = const CONTEXT,
        host_rsp = const OFF_HOST_RSP,
        full = const OFF_FULL,
        fx = const OFF_FXSAVE,
        ymm = const OFF_YMM,
        rflags = const OFF_RFLAGS,
        entry = const OFF_ENTRY,
    )
}

/// Where every case ends up: saves the state into the context and returns from [`enter`] to its caller.
///
/// # Safety
///
/// Only to be jumped to from a case that [`enter`] began.
#[unsafe(naked)]
pub unsafe extern "C" fn leave() {
    naked_asm!(
        "mov qword ptr [{ctx} + 0x20], rsp",
        "mov rsp, qword ptr [{ctx} + {host_rsp}]",
        "pushfq",
        "pop qword ptr [{ctx} + {rflags}]",
        "mov qword ptr [{ctx} + 0x00], rax",
        "mov qword ptr [{ctx} + 0x08], rcx",
        "mov qword ptr [{ctx} + 0x10], rdx",
        "mov qword ptr [{ctx} + 0x18], rbx",
        "mov qword ptr [{ctx} + 0x28], rbp",
        "mov qword ptr [{ctx} + 0x30], rsi",
        "mov qword ptr [{ctx} + 0x38], rdi",
        "mov qword ptr [{ctx} + 0x40], r8",
        "mov qword ptr [{ctx} + 0x48], r9",
        "mov qword ptr [{ctx} + 0x50], r10",
        "mov qword ptr [{ctx} + 0x58], r11",
        "mov qword ptr [{ctx} + 0x60], r12",
        "mov qword ptr [{ctx} + 0x68], r13",
        "mov qword ptr [{ctx} + 0x70], r14",
        "mov qword ptr [{ctx} + 0x78], r15",
        // The ABI wants DF clear; AC and NT must not survive, and POPFQ is slow.
        "cld",
        "test dword ptr [{ctx} + {rflags}], 0x44000",
        "je 2f",
        "push 0x202",
        "popfq",
        "2:",
        "cmp qword ptr [{ctx} + {full}], 0",
        "je 3f",
        "fxsave64 [{ctx} + {fx}]",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x000], ymm0",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x020], ymm1",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x040], ymm2",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x060], ymm3",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x080], ymm4",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x0a0], ymm5",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x0c0], ymm6",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x0e0], ymm7",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x100], ymm8",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x120], ymm9",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x140], ymm10",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x160], ymm11",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x180], ymm12",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x1a0], ymm13",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x1c0], ymm14",
        "vmovaps ymmword ptr [{ctx} + {ymm} + 0x1e0], ymm15",
        "fninit",
        "ldmxcsr dword ptr [{ctx} + {mxcsr}]",
        "vzeroupper",
        "3:",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbp",
        "pop rbx",
        "ret",
        ctx = const CONTEXT,
        host_rsp = const OFF_HOST_RSP,
        full = const OFF_FULL,
        fx = const OFF_FXSAVE,
        ymm = const OFF_YMM,
        mxcsr = const OFF_HOST_MXCSR,
        rflags = const OFF_RFLAGS,
    )
}

/// Clears AC, which the kernel leaves as the case had it, and goes on in `handler`.
///
/// # Safety
///
/// Only to be installed as a signal handler, on its own stack.
#[unsafe(naked)]
pub unsafe extern "C" fn on_signal() {
    naked_asm!(
        "pushfq",
        "and qword ptr [rsp], -262145",
        "popfq",
        "jmp {handler}",
        handler = sym super::child::handle_signal,
    )
}
