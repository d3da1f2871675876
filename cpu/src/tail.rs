//! Whether the compiler made jumps of calls in tail position.
//!
//! It does from opt-level 1 on, but nothing in the language promises it. The question is answered once a process by a
//! chain of handlers of the very shape the interpreter uses.

use std::sync::OnceLock;

/// A stand-in with the register pressure of a real handler.
type Link = for<'a> fn(&mut Probe, &'a u64, &'a u64, core::slice::Iter<'a, u64>) -> u32;

struct Probe {
    left: u32,
    top: usize,
    bottom: usize,
    next: Link,
}

#[inline(never)]
fn here() -> usize {
    let mark = 0_u8;
    core::ptr::from_ref(core::hint::black_box(&mark)).addr()
}

fn link(probe: &mut Probe, a: &u64, b: &u64, rest: core::slice::Iter<'_, u64>) -> u32 {
    probe.bottom = here();
    if probe.left == 0 {
        return *a as u32;
    }
    probe.left -= 1;
    let next = probe.next;
    next(probe, b, a, rest)
}

/// Whether a long chain of hand-overs uses no stack.
pub(crate) fn calls_are_jumps() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let mut probe = Probe { left: 2000, top: here(), bottom: 0, next: core::hint::black_box(link as Link) };
        let next = probe.next;
        next(&mut probe, &1, &2, [].iter());
        probe.top.abs_diff(probe.bottom) < 2000
    })
}
