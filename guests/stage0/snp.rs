//! The instructions and registers of an SNP guest, and the GHCB MSR protocol.
//!
//! Source: AMD APM vol. 3, "PVALIDATE"; vol. 2, "SEV-SNP"; the GHCB specification, "GHCB MSR Protocol".
#![expect(unsafe_code, reason = "instructions that no function stands for")]

use core::arch::{asm, global_asm};

use crate::parameters::{REASON_SET, Reason};

global_asm!(include_str!("start.s"));

const GHCB: u32 = 0xc001_0130;
const SEV_STATUS: u32 = 0xc001_0131;

const SEV_INFO_RESPONSE: u64 = 0x001;
const SEV_INFO_REQUEST: u64 = 0x002;
const TERMINATE: u64 = 0x100;

/// How PVALIDATE ended.
pub enum Validation {
    /// The page is valid now.
    Done,
    /// Nothing was changed.
    Unchanged,
    /// The page is not assigned in this size.
    SizeMismatch,
    /// Any other code.
    Failed,
}

/// The page size that PVALIDATE takes.
#[derive(Clone, Copy)]
pub enum Size {
    Small = 0,
    Large = 1,
}

fn read(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: RDMSR of a register that every SNP guest has reads it and nothing else.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

fn write(msr: u32, value: u64) {
    // SAFETY: the only register written is the GHCB's, which says what the next VMGEXIT asks.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack));
    }
}

/// One request of the MSR protocol and its answer.
fn ask(request: u64) -> u64 {
    write(GHCB, request);
    // SAFETY: VMGEXIT gives control to the hypervisor, which changes no register of ours.
    unsafe { asm!("rep vmmcall", options(nomem, nostack)) };
    read(GHCB)
}

/// Whether the guest is SNP-active.
pub fn is_active() -> bool {
    read(SEV_STATUS) & 0b100 != 0
}

/// Whether the hypervisor speaks version 2 of the protocol.
pub fn negotiate() -> bool {
    let answer = ask(SEV_INFO_REQUEST);
    let (max, min) = (answer >> 48, answer >> 32 & 0xffff);
    answer & 0xfff == SEV_INFO_RESPONSE && min <= 2 && max >= 2
}

/// Ends the guest.
pub fn terminate(reason: Reason) -> ! {
    loop {
        ask(TERMINATE | u64::from(REASON_SET) << 12 | (reason as u64) << 16);
    }
}

/// Makes the page at `address` valid.
pub fn validate(address: u64, size: Size) -> Validation {
    let (code, carry): (u64, u8);
    // SAFETY: the page is no part of this program, which was launched, so that nothing of it can change.
    unsafe {
        asm!(
            ".byte 0xf2, 0x0f, 0x01, 0xff", // PVALIDATE
            "setc {carry}",
            carry = lateout(reg_byte) carry,
            inout("rax") address => code,
            in("ecx") size as u32,
            in("edx") 1,
            options(nostack),
        );
    }
    match (code, carry) {
        (0, 0) => Validation::Done,
        (0, _) => Validation::Unchanged,
        (6, 0) => Validation::SizeMismatch,
        _ => Validation::Failed,
    }
}
