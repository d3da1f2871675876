//! The child: sets up its address space and handlers, locks itself in, and executes cases until it is killed.
//!
//! It was forked from a process that may have other threads, so nothing here allocates, locks or panics: a failed
//! step is reported in [`Shared::ready`] and ends the process.

#![expect(unsafe_code, reason = "sets up the child's address space and executes machine code in it")]

use std::arch::x86_64::{
    __m256i, _mm256_load_si256, _mm256_or_si256, _mm256_set1_epi8, _mm256_testz_si256, _mm256_xor_si256,
};
use std::ptr;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use super::futex;
use super::layout::{ALIAS, BLOCK, CONTEXT, Context, READY, RawFault, SLOTS, Shared, Slot};
use super::trampoline;
use crate::case::{CODE_ADDRESS, CODE_PAGE, Scope};
use crate::state::TF;
use crate::window::{BACKGROUND, COMBINATIONS, LINE, PAGE, PAGES, PageProtection, WINDOW_BYTES, Window};

/// Initial contents of the current case's window, as the child keeps them: at the second page of the context.
const IMAGE: usize = CONTEXT + PAGE as usize;
const ALT_STACK: usize = 64 << 10;
const SIGNAL_STACK: usize = IMAGE + 0x1_0000;

const SIGNALS: [i32; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

/// A step of the setup that failed; the number is what the parent sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    CodePage = 2,
    Context = 3,
    WindowFile = 4,
    Windows = 5,
    Signals = 6,
    LockIn = 7,
}

/// The child's whole life.
///
/// # Safety
///
/// To be called once, in a freshly forked child; `shared` is the mapping shared with the parent.
pub unsafe fn run(shared: *mut Shared, parent: libc::pid_t) -> ! {
    // SAFETY: as the caller promises; every step only changes this process.
    unsafe {
        match set_up(parent) {
            Ok(()) => (*shared).ready.store(READY, Release),
            Err(step) => {
                (*shared).ready.store(step as u32, Release);
                leave_process(70);
            }
        }
        serve(shared)
    }
}

fn leave_process(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

unsafe fn map(at: usize, len: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> bool {
    let flags = flags | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: the mapping replaces nothing.
    let got = unsafe { libc::mmap(at as *mut _, len, protection, flags, fd, offset) };
    got as usize == at
}

unsafe fn set_up(parent: libc::pid_t) -> Result<(), Step> {
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let page = PAGE as usize;
    // SAFETY: maps fresh memory at fixed places of this process and fills it; installs handlers that live for ever.
    unsafe {
        if !map(CODE_PAGE as usize, page, rw | libc::PROT_EXEC, private, -1, 0) {
            return Err(Step::CodePage);
        }
        ptr::write_bytes(CODE_PAGE as *mut u8, 0xcc, page);
        if !map(CONTEXT, page + WINDOW_BYTES, rw, private, -1, 0) || !map(SIGNAL_STACK, ALT_STACK, rw, private, -1, 0) {
            return Err(Step::Context);
        }
        ptr::copy_nonoverlapping(BACKGROUND.as_ptr(), IMAGE as *mut u8, WINDOW_BYTES);
        map_windows()?;
        install_handlers()?;
        lock_in(parent)
    }
}

unsafe fn map_windows() -> Result<(), Step> {
    let rw = libc::PROT_READ | libc::PROT_WRITE;
    let shared = libc::MAP_SHARED | libc::MAP_POPULATE;
    let total = COMBINATIONS * WINDOW_BYTES;
    // SAFETY: as in `set_up`.
    unsafe {
        let fd = libc::memfd_create(c"windows".as_ptr(), 0);
        if fd < 0 || libc::ftruncate(fd, total as i64) != 0 {
            return Err(Step::WindowFile);
        }
        if !map(ALIAS, total, rw, shared, fd, 0) {
            return Err(Step::Windows);
        }
        for n in 0..COMBINATIONS {
            ptr::copy_nonoverlapping(BACKGROUND.as_ptr(), (ALIAS + n * WINDOW_BYTES) as *mut u8, WINDOW_BYTES);
            for (i, protection) in Window::protections_of(n).into_iter().enumerate() {
                let access = match protection {
                    PageProtection::ReadWrite => rw,
                    PageProtection::ReadOnly => libc::PROT_READ,
                    PageProtection::None => continue,
                };
                let at = Window::base_of(n) as usize + i * PAGE as usize;
                let offset = n * WINDOW_BYTES + i * PAGE as usize;
                if !map(at, PAGE as usize, access, shared, fd, offset as i64) {
                    return Err(Step::Windows);
                }
                // A page that is not in the tables yet would show P = 0 in the error code of a refused write.
                ptr::read_volatile(at as *const u8);
            }
        }
        libc::close(fd);
    }
    Ok(())
}

unsafe fn install_handlers() -> Result<(), Step> {
    // SAFETY: the alternate stack is mapped, and the handler keeps to the rules of one.
    unsafe {
        let stack = libc::stack_t { ss_sp: SIGNAL_STACK as *mut _, ss_flags: 0, ss_size: ALT_STACK };
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = trampoline::on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        let mut ok = libc::sigaltstack(&raw const stack, ptr::null_mut()) == 0;
        ok &= libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) == 0;
        for signal in SIGNALS {
            ok &= libc::sigaction(signal, &raw const action, ptr::null_mut()) == 0;
        }
        if ok { Ok(()) } else { Err(Step::Signals) }
    }
}

/// From here on the process can only sleep, wake, return from a signal and end.
unsafe fn lock_in(parent: libc::pid_t) -> Result<(), Step> {
    const ALLOWED: [i64; 4] = [libc::SYS_futex, libc::SYS_rt_sigreturn, libc::SYS_exit_group, libc::SYS_exit];
    let (load, equal, give) = (0x20, 0x15, 0x06); // BPF: load the word at, jump if equal, return
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let kill = step(give, 0, 0, libc::SECCOMP_RET_KILL_PROCESS);
    let mut filter = [kill; 9];
    filter[0] = step(load, 0, 0, 4); // the architecture
    filter[1] = step(equal, 0, 5, 0xc000_003e); // AUDIT_ARCH_X86_64
    filter[2] = step(load, 0, 0, 0); // the number of the call
    for (i, call) in ALLOWED.into_iter().enumerate() {
        filter[3 + i] = step(equal, 4 - i as u8, 0, call as u32);
    }
    filter[8] = step(give, 0, 0, libc::SECCOMP_RET_ALLOW);
    // SAFETY: changes only this process; the filter outlives the call.
    unsafe {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let mut ok = libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) == 0;
        ok &= libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0;
        ok &= libc::getppid() == parent;
        libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0u32);
        ok &= libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
        ok &= libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0;
        if ok { Ok(()) } else { Err(Step::LockIn) }
    }
}

/// Records what happened to the case and leads it to its exit.
///
/// # Safety
///
/// Called by the kernel through [`trampoline::on_signal`].
pub unsafe extern "C" fn handle_signal(_signal: i32, _info: *mut libc::siginfo_t, raw: *mut libc::c_void) {
    let context = CONTEXT as *mut Context;
    // SAFETY: the context is mapped, nobody else runs, and the kernel gives a valid ucontext.
    unsafe {
        if (*context).in_guest == 0 {
            leave_process(71);
        }
        let registers = &mut (*raw.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = registers[libc::REG_RIP as usize] as u64;
        let vector = registers[libc::REG_TRAPNO as usize] as u64;
        // An instruction that set TF: the trap comes behind the jump out of the case, which has ended by then.
        if vector == 1 && rip == (*context).exit {
            (*context).single_step = 1;
        } else if (*context).fault.taken != 0 {
            leave_process(72);
        } else {
            (*context).fault = RawFault {
                taken: 1,
                vector,
                error_code: registers[libc::REG_ERR as usize] as u64,
                cr2: registers[libc::REG_CR2 as usize] as u64,
                rip,
            };
            if registers[libc::REG_EFL as usize] as u64 & TF != 0 {
                (*context).single_step = 1;
            }
        }
        registers[libc::REG_RIP as usize] = (*context).exit as i64;
        registers[libc::REG_EFL as usize] &= !(TF as i64);
    }
}

unsafe fn serve(shared: *mut Shared) -> ! {
    // SAFETY: the ring's protocol gives this process the slots between `completed` and `submitted`.
    unsafe {
        let ring = &*shared;
        let slots = (&raw mut (*shared).slots).cast::<Slot>();
        let mut next = ring.completed.load(Acquire);
        loop {
            if ring.submitted.load(Acquire) == next {
                wake_parent(ring);
                sleep(ring, next);
                continue;
            }
            execute(&mut *slots.add(next as usize % SLOTS));
            next = next.wrapping_add(1);
            ring.completed.store(next, Release);
            if next.is_multiple_of(SLOTS as u32 / 4) {
                wake_parent(ring);
            }
        }
    }
}

fn wake_parent(ring: &Shared) {
    std::sync::atomic::fence(SeqCst);
    if ring.parent_sleeps.load(Relaxed) != 0 {
        ring.parent_sleeps.store(0, Relaxed);
        ring.parent_bell.fetch_add(1, SeqCst);
        futex::wake(&ring.parent_bell);
    }
}

fn sleep(ring: &Shared, next: u32) {
    for _ in 0..200 {
        if ring.submitted.load(Acquire) != next {
            return;
        }
        std::hint::spin_loop();
    }
    let bell = ring.child_bell.load(SeqCst);
    ring.child_sleeps.store(1, SeqCst);
    if ring.submitted.load(SeqCst) == next {
        futex::wait(&ring.child_bell, bell, None);
    }
    ring.child_sleeps.store(0, SeqCst);
}

unsafe fn execute(slot: &mut Slot) {
    let context = CONTEXT as *mut Context;
    let image = IMAGE as *mut u8;
    let full = slot.scope == Scope::Full as u32;
    let memory = slot.scope >= Scope::Memory as u32;
    let combination = slot.window.combination();
    let base = slot.window.base() as usize;
    let alias = ALIAS + combination * WINDOW_BYTES;
    let page_end = slot.page_end_len as usize;
    let entry = if page_end == 0 { CODE_ADDRESS } else { CODE_PAGE + PAGE - page_end as u64 };
    // SAFETY: all places are mapped for good in this process, and patches lie within the window.
    unsafe {
        // The plain place where it can be written: two names for one line cost more in the first-level cache.
        let place = if combination == 0 { base } else { alias } as *mut u8;
        if memory {
            for patch in slot.window.patches() {
                let (bytes, at) = (patch.bytes(), patch.offset());
                ptr::copy_nonoverlapping(bytes.as_ptr(), place.add(at), bytes.len());
                ptr::copy_nonoverlapping(bytes.as_ptr(), image.add(at), bytes.len());
            }
        }
        let block_len = if page_end == 0 { BLOCK } else { page_end };
        ptr::copy_nonoverlapping(slot.block.as_ptr(), entry as *mut u8, block_len);
        (*context).gpr = slot.state.gpr;
        (*context).rflags = slot.state.rflags;
        (*context).entry = entry;
        (*context).exit = trampoline::leave as *const () as u64;
        (*context).fault.taken = 0;
        (*context).single_step = 0;
        (*context).full = full as u64;
        if full {
            (*context).ymm = slot.state.vec;
            (*context).fxsave.load(&slot.state.x87, slot.state.mxcsr);
            (*context).host_mxcsr = 0x1f80;
        }
        (*context).in_guest = 1;
        trampoline::enter();
        ptr::write_volatile(&raw mut (*context).in_guest, 0);

        let answer = &mut slot.answer;
        answer.state.gpr = (*context).gpr;
        answer.state.rflags = (*context).rflags | if (*context).single_step != 0 { TF } else { 0 };
        answer.fault = (*context).fault;
        if full {
            answer.state.vec = (*context).ymm;
            answer.state.mxcsr = (*context).fxsave.mxcsr;
            answer.state.x87 = (*context).fxsave.x87();
        }
        if page_end != 0 {
            ptr::write_bytes(entry as *mut u8, 0xcc, page_end);
        }
        if memory {
            restore_filling();
        }
        (answer.line_count, answer.truncated) = (0, 0);
        if memory {
            for (n, protection) in slot.window.protections.into_iter().enumerate() {
                if protection == PageProtection::ReadWrite {
                    collect(slot, n, base as *mut u8, image);
                }
            }
            for patch in slot.window.patches() {
                let at = patch.offset();
                let len = patch.bytes().len();
                ptr::copy_nonoverlapping(BACKGROUND.as_ptr().add(at), place.add(at), len);
                ptr::copy_nonoverlapping(BACKGROUND.as_ptr().add(at), image.add(at), len);
            }
        }
    }
}

/// Puts back the INT3 filling around the place of inline code, should the case have written there. That place itself
/// is written for each case as a whole.
#[target_feature(enable = "avx2")]
unsafe fn restore_filling() {
    let filling = _mm256_set1_epi8(0xcc_u8 as i8);
    for at in (0..PAGE as usize).step_by(BLOCK) {
        let place = CODE_PAGE as usize + at;
        // SAFETY: the code page is mapped and writable, and the places are aligned.
        unsafe {
            let low = _mm256_xor_si256(_mm256_load_si256(place as *const __m256i), filling);
            let high = _mm256_xor_si256(_mm256_load_si256((place + LINE) as *const __m256i), filling);
            let any = _mm256_or_si256(low, high);
            if _mm256_testz_si256(any, any) == 0 && place != CODE_ADDRESS as usize {
                ptr::write_bytes(place as *mut u8, 0xcc, BLOCK);
            }
        }
    }
}

/// Finds, reports and undoes the changes in page `page` of the window.
#[target_feature(enable = "avx2")]
unsafe fn collect(slot: &mut Slot, page: usize, window: *mut u8, image: *mut u8) {
    const STRIDE: usize = 4 * LINE;
    let start = page * (WINDOW_BYTES / PAGES);
    for at in (start..start + PAGE as usize).step_by(STRIDE) {
        // SAFETY: both areas have WINDOW_BYTES bytes and are aligned to a page.
        unsafe {
            let line = |n: usize| {
                let new = _mm256_load_si256(window.add(at + n * LINE).cast::<__m256i>());
                _mm256_xor_si256(new, _mm256_load_si256(image.add(at + n * LINE).cast::<__m256i>()))
            };
            let lines = [line(0), line(1), line(2), line(3)];
            let any = _mm256_or_si256(_mm256_or_si256(lines[0], lines[1]), _mm256_or_si256(lines[2], lines[3]));
            if _mm256_testz_si256(any, any) != 0 {
                continue;
            }
            for (n, line) in lines.into_iter().enumerate() {
                if _mm256_testz_si256(line, line) == 0 {
                    change(slot, at + n * LINE, window, image);
                }
            }
        }
    }
}

#[cold]
#[inline(never)]
unsafe fn change(slot: &mut Slot, offset: usize, window: *mut u8, image: *mut u8) {
    let answer = &mut slot.answer;
    // SAFETY: as in `collect`.
    unsafe {
        match answer.lines.get_mut(answer.line_count as usize) {
            Some(line) => {
                line.offset = offset as u16;
                ptr::copy_nonoverlapping(window.add(offset), line.bytes.as_mut_ptr(), LINE);
                answer.line_count += 1;
            }
            None => answer.truncated = 1,
        }
        ptr::copy_nonoverlapping(image.add(offset), window.add(offset), LINE);
    }
}
