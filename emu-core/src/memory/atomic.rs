//! Read-modify-write of memory that other host threads use at the same time.
//!
//! [`update`] is what a locked instruction of a processor does while other processors run beside it: nobody's store
//! falls between its load and its store. Aligned values of up to eight bytes, and of sixteen where this processor can,
//! are exchanged by the host's own compare-and-exchange. Whatever else there is (misaligned values, longer ones) is
//! serialised among callers of this module alone, which is less than a bus lock: a plain store from elsewhere may fall
//! between. Kernels avoid such operands, because a split lock stops every processor of a real machine.
//!
//! One of the few modules with `unsafe`.
#![expect(unsafe_code, reason = "guest memory is shared bytes; atomics over them need raw pointers")]

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::arena::Scalar;

/// Among whom operations are serialised that the host cannot do at once.
static REST: Mutex<()> = Mutex::new(());

/// Replaces the value at `at` by what `change` makes of it, as one step for everybody who uses this function or plain
/// stores of the same size; `change` may be called again when somebody was faster.
///
/// # Safety
/// `at` must be valid for reads and writes of a `T`, and stay so.
#[inline]
pub unsafe fn update<T: Scalar, R>(at: *mut T, change: impl Fn(T) -> (T, R)) -> R {
    macro_rules! exchange {
        ($Atomic:ty, $Raw:ty) => {{
            // SAFETY: valid by the caller's promise, and aligned for the atomic (checked below).
            let cell = unsafe { <$Atomic>::from_ptr(at.cast()) };
            let mut seen = cell.load(Ordering::Acquire);
            loop {
                // SAFETY: the sizes agree (checked below), and any bits are a `T`.
                let (new, result) = change(unsafe { core::mem::transmute_copy::<$Raw, T>(&seen) });
                // SAFETY: as above; a scalar has no padding.
                let new = unsafe { core::mem::transmute_copy::<T, $Raw>(&new) };
                match cell.compare_exchange_weak(seen, new, Ordering::SeqCst, Ordering::Acquire) {
                    Ok(_) => return result,
                    Err(now) => seen = now,
                }
            }
        }};
    }
    let aligned = at.addr().is_multiple_of(size_of::<T>());
    match size_of::<T>() {
        1 => exchange!(AtomicU8, u8),
        2 if aligned => exchange!(AtomicU16, u16),
        4 if aligned => exchange!(AtomicU32, u32),
        8 if aligned => exchange!(AtomicU64, u64),
        // SAFETY: the caller's promise.
        _ => unsafe { update_rest(at, aligned, change) },
    }
}

#[cold]
unsafe fn update_rest<T: Scalar, R>(at: *mut T, aligned: bool, change: impl Fn(T) -> (T, R)) -> R {
    #[cfg(target_arch = "x86_64")]
    if size_of::<T>() == 16 && aligned && std::arch::is_x86_feature_detected!("cmpxchg16b") {
        // SAFETY: the caller's promise; the instruction is there, the value is aligned and has sixteen bytes.
        return unsafe { update_16(at, change) };
    }
    let _ = aligned;
    let _alone = REST.lock();
    // SAFETY: the caller's promise; alignment is not assumed.
    let (new, result) = change(unsafe { at.read_unaligned() });
    // SAFETY: as above.
    unsafe { at.write_unaligned(new) };
    result
}

#[cfg(target_arch = "x86_64")]
unsafe fn update_16<T: Scalar, R>(at: *mut T, change: impl Fn(T) -> (T, R)) -> R {
    let cell = at.cast::<u128>();
    // An exchange of nothing for nothing reads all of it at once.
    // SAFETY: valid and aligned by the caller's promise.
    let mut seen = unsafe { compare_exchange_16(cell, 0, 0) };
    loop {
        // SAFETY: the sizes agree, and any bits are a `T`.
        let (new, result) = change(unsafe { core::mem::transmute_copy::<u128, T>(&seen) });
        // SAFETY: as above; a scalar has no padding.
        let new = unsafe { core::mem::transmute_copy::<T, u128>(&new) };
        // SAFETY: valid and aligned by the caller's promise.
        let now = unsafe { compare_exchange_16(cell, seen, new) };
        if now == seen {
            return result;
        }
        seen = now;
    }
}

/// What was there; it was replaced if it was `old`.
///
/// # Safety
/// `at` is valid, a multiple of 16, and the processor has CMPXCHG16B.
#[cfg(target_arch = "x86_64")]
unsafe fn compare_exchange_16(at: *mut u128, old: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: the caller's promise. RBX, which the compiler keeps for itself, is put back.
    unsafe {
        core::arch::asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b [rdi]",
            "mov rbx, rsi",
            in("rdi") at,
            inout("rsi") new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") old as u64 => low,
            inout("rdx") (old >> 64) as u64 => high,
            options(nostack),
        );
    }
    low as u128 | (high as u128) << 64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four threads add into one place and no addition may be lost.
    fn race<T: Scalar + PartialEq + core::fmt::Debug>(offset: usize, add: impl Fn(T) -> T + Sync, total: T) {
        let mut buffer = Box::new([0_u128; 4]);
        let at = core::ptr::from_mut(&mut *buffer).expose_provenance() + offset;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2500 {
                        let at: *mut T = core::ptr::with_exposed_provenance_mut(at);
                        // SAFETY: inside the buffer, which outlives the threads.
                        unsafe { update(at, |old| (add(old), ())) };
                    }
                });
            }
        });
        let at: *mut T = core::ptr::with_exposed_provenance_mut(at);
        // SAFETY: the threads are done.
        assert_eq!(unsafe { at.read_unaligned() }, total);
    }

    #[test]
    fn no_update_is_lost_for_any_width_and_alignment() {
        race::<u8>(3, |v| v.wrapping_add(1), 10_000_u64 as u8);
        race::<u16>(2, |v| v + 1, 10_000);
        race::<u32>(4, |v| v + 1, 10_000);
        race::<u64>(8, |v| v + 1, 10_000);
        race::<u128>(16, |v| v + (1 << 64) + 1, (10_000 << 64) + 10_000);
        race::<u32>(3, |v| v + 1, 10_000);
        race::<u64>(13, |v| v + 1, 10_000);
    }

    #[test]
    fn what_was_there_comes_back() {
        let mut value = 7_u64;
        // SAFETY: a live local.
        let old = unsafe { update(&raw mut value, |old| (old * 3, old)) };
        assert_eq!((old, value), (7, 21));
    }
}
