//! What may run natively: the modelled set of features, minus what reads or changes the host's own state.
//!
//! Refused are: everything outside x86-64-v3 with AES, PCLMULQDQ, SHA and ADX; what needs privilege or does input
//! and output; system calls and software interrupts but INT3; far control flow and segment registers (selectors and
//! bases are the host's); descriptor-table reads (UMIP); time, identity and random sources; the FXSAVE and XSAVE
//! families (host layout); branches into their own code, which would not come to an end.

use iced_x86::{Code, CpuidFeature, Decoder, DecoderError, DecoderOptions, EncodingKind, FlowControl, Instruction};
use iced_x86::{Mnemonic, OpKind, Register};
use thiserror::Error;

use crate::case::{CODE_ADDRESS, MAX_CODE, Scope};

/// Why code may not run natively.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// No bytes, or more than fit.
    #[error("{0} bytes of code; 1 to {MAX_CODE} are possible")]
    Length(usize),
    /// The last instruction is cut off.
    #[error("the last instruction is incomplete")]
    Incomplete,
    /// An instruction of a feature outside the modelled set.
    #[error("{0:?} is not in the modelled set")]
    Feature(Code),
    /// It touches state of the host.
    #[error("{0:?} must not run natively")]
    HostState(Code),
    /// A memory operand relative to FS or GS.
    #[error("{0:?} has an FS or GS operand")]
    Segment(Code),
    /// An encoding that does not decode, but that a processor with more than the modelled set may know.
    #[error("an EVEX or opmask encoding, which the host may know")]
    BeyondModel,
    /// A branch that lands in the case's own code.
    #[error("a branch to {0:#x}, into its own code")]
    OwnCode(u64),
    /// Something follows a branch.
    #[error("code behind a branch")]
    BehindBranch,
}

/// The decoder's options for the modelled processor.
pub const DECODER_OPTIONS: u32 = DecoderOptions::AMD;

/// Decodes the first instruction of `bytes` as if it lay at `rip`.
pub fn decode(bytes: &[u8], rip: u64) -> Instruction {
    Decoder::with_ip(64, bytes, rip, DECODER_OPTIONS).decode()
}

/// Whether `feature` is in the modelled set.
pub fn modelled(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    #[rustfmt::skip]
    let yes = matches!(
        feature,
        INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | ADX | AES | AVX | AVX2 | BMI1 | BMI2
            | CLFSH | CLFLUSHOPT | CLWB | CMOV | CMPXCHG16B | CX8 | F16C | FMA | FPU | FPU287 | FPU387 | LZCNT
            | MMX | MOVBE | MULTIBYTENOP | PAUSE | PCLMULQDQ | POPCNT | PREFETCHW | SHA | SSE | SSE2 | SSE3
            | SSE4A | SSE4_1 | SSE4_2 | SSSE3
    );
    yes
}

/// Whether an instruction of this kind may run natively, operands apart.
pub fn code_refused(code: Code) -> Option<Refused> {
    use Mnemonic::*;
    let op_code = code.op_code();
    let listed = matches!(
        code.mnemonic(),
        Syscall
            | Sysenter
            | Sysexit
            | Sysret
            | Int
            | Int1
            | Into
            | In
            | Out
            | Insb
            | Insw
            | Insd
            | Outsb
            | Outsw
            | Outsd
            | Hlt
            | Cli
            | Sti
            | Iret
            | Iretd
            | Iretq
            | Retf
            | Lds
            | Les
            | Lss
            | Lfs
            | Lgs
            | Lar
            | Lsl
            | Verr
            | Verw
            | Sgdt
            | Sidt
            | Str
            | Sldt
            | Smsw
            | Rdtsc
            | Rdtscp
            | Rdrand
            | Rdseed
            | Rdpid
            | Rdpmc
            | Cpuid
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Rdfsbase
            | Rdgsbase
            | Wrfsbase
            | Wrgsbase
            | Vmcall
            | Vmmcall
    );
    let far = matches!(code, Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664)
        || matches!(code, Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664);
    let segment = (0..op_code.op_count()).any(|n| {
        use iced_x86::OpCodeOperandKind as Kind;
        let kind = op_code.op_kind(n);
        matches!(kind, Kind::seg_reg | Kind::es | Kind::cs | Kind::ss | Kind::ds | Kind::fs | Kind::gs)
            || matches!(kind, Kind::cr_reg | Kind::dr_reg | Kind::tr_reg)
    });
    if listed || far || segment || op_code.is_privileged() || op_code.is_input_output() || !op_code.cpl3() {
        return Some(Refused::HostState(code));
    }
    let encoding = matches!(op_code.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    if !encoding || !code.cpuid_features().iter().all(|&f| modelled(f)) {
        return Some(Refused::Feature(code));
    }
    None
}

/// Admits a sequence, and says how much state it can touch.
pub(crate) fn admit(bytes: &[u8]) -> Result<Scope, Refused> {
    if bytes.is_empty() || bytes.len() > MAX_CODE {
        return Err(Refused::Length(bytes.len()));
    }
    let mut decoder = Decoder::with_ip(64, bytes, CODE_ADDRESS, DECODER_OPTIONS);
    let mut scope = Scope::Registers;
    while decoder.can_decode() {
        let left = bytes.len() - decoder.position();
        let instruction = decoder.decode();
        if instruction.is_invalid() {
            // Fifteen bytes that are no whole instruction are one that is too long, which has an answer.
            if decoder.last_error() == DecoderError::NoMoreBytes && left < 15 {
                return Err(Refused::Incomplete);
            }
            if beyond_model(&bytes[bytes.len() - left..]) {
                return Err(Refused::BeyondModel);
            }
            return Ok(Scope::Full);
        }
        if let Some(refused) = code_refused(instruction.code()) {
            return Err(refused);
        }
        let has_memory = (0..instruction.op_count()).any(|n| is_memory(instruction.op_kind(n)));
        if has_memory && matches!(instruction.memory_segment(), Register::FS | Register::GS) {
            return Err(Refused::Segment(instruction.code()));
        }
        if instruction.flow_control() != FlowControl::Next && instruction.flow_control() != FlowControl::Exception {
            if decoder.can_decode() {
                return Err(Refused::BehindBranch);
            }
            let target = instruction.near_branch_target();
            // The way out lies right behind the code; only its first byte is an instruction boundary.
            let own = CODE_ADDRESS..CODE_ADDRESS + bytes.len() as u64 + EXIT_BYTES;
            if own.contains(&target) && target != instruction.next_ip() {
                return Err(Refused::OwnCode(target));
            }
        }
        scope = scope.max(scope_of(&instruction));
    }
    Ok(scope)
}

/// Whether `bytes` are an EVEX encoding or a VEX encoding of an opmask instruction. A host with AVX-512 executes some
/// of these that do not decode.
fn beyond_model(bytes: &[u8]) -> bool {
    let prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3);
    let lead = bytes.iter().position(|byte| !prefix(byte)).unwrap_or(bytes.len());
    match bytes[lead..] {
        [0x62, ..] => true,
        [0xc5, _, opcode, ..] => matches!(opcode, 0x41..=0x4b | 0x90..=0x93 | 0x98 | 0x99),
        [0xc4, map, _, opcode, ..] => match map & 0x1f {
            1 => matches!(opcode, 0x41..=0x4b | 0x90..=0x93 | 0x98 | 0x99),
            3 => matches!(opcode, 0x30..=0x33),
            _ => false,
        },
        _ => false,
    }
}

/// Bytes of the jump that leads out of the code, behind it.
pub(crate) const EXIT_BYTES: u64 = 7;

/// Whether an operand of this kind is in memory.
pub fn is_memory(kind: OpKind) -> bool {
    use OpKind::*;
    matches!(
        kind,
        Memory
            | MemorySegSI
            | MemorySegESI
            | MemorySegRSI
            | MemorySegDI
            | MemorySegEDI
            | MemorySegRDI
            | MemoryESDI
            | MemoryESEDI
            | MemoryESRDI
    )
}

/// How much state one instruction can touch.
pub fn scope_of(instruction: &Instruction) -> Scope {
    use CpuidFeature::*;
    let integer_feature = |feature: &CpuidFeature| {
        matches!(
            feature,
            INTEL8086
                | INTEL186
                | INTEL286
                | INTEL386
                | INTEL486
                | X64
                | ADX
                | BMI1
                | BMI2
                | CLFSH
                | CLFLUSHOPT
                | CLWB
                | CMOV
                | CMPXCHG16B
                | CX8
                | LZCNT
                | MOVBE
                | MULTIBYTENOP
                | PAUSE
                | POPCNT
                | PREFETCHW
        )
    };
    // CRC32 came with SSE4.2 and VEX-encoded BMI with AVX's encoding, but neither touches a vector; the AVX flag
    // itself stays out of the list above.
    let integer = instruction.mnemonic() == Mnemonic::Crc32
        || instruction.cpuid_features().iter().all(integer_feature) && instruction.mnemonic() != Mnemonic::Wait;
    if !integer {
        return Scope::Full;
    }
    let memory = instruction.is_stack_instruction()
        || instruction.mnemonic() == Mnemonic::Enter
        || instruction.mnemonic() == Mnemonic::Leave
        || (0..instruction.op_count()).any(|n| is_memory(instruction.op_kind(n)));
    if memory { Scope::Memory } else { Scope::Registers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_state_is_refused() {
        let refused: [&[u8]; 16] = [
            &[0x0f, 0x05],                         // syscall
            &[0xcd, 0x80],                         // int 0x80
            &[0xf4],                               // hlt
            &[0x0f, 0x31],                         // rdtsc
            &[0x0f, 0xa2],                         // cpuid
            &[0x8e, 0xd8],                         // mov ds, eax
            &[0x8c, 0xd8],                         // mov eax, ds
            &[0x0f, 0x01, 0x00],                   // sgdt
            &[0xff, 0x28],                         // jmp far
            &[0xec],                               // in
            &[0x64, 0x8b, 0x00],                   // mov eax, fs:[rax]
            &[0x0f, 0x20, 0xc0],                   // mov rax, cr0
            &[0xf3, 0x48, 0x0f, 0xae, 0xd8],       // wrgsbase
            &[0x62, 0xf1, 0x74, 0x48, 0x58, 0xc2], // vaddps zmm
            &[0xeb, 0xfe],                         // jmp $
            &[0x0f, 0xae, 0x00],                   // fxsave
        ];
        for bytes in refused {
            assert!(admit(bytes).is_err(), "{bytes:02x?}");
        }
    }

    #[test]
    fn scopes() {
        assert_eq!(admit(&[0x48, 0x01, 0xd8]), Ok(Scope::Registers)); // add rax, rbx
        assert_eq!(admit(&[0x50]), Ok(Scope::Memory)); // push rax
        assert_eq!(admit(&[0xa4]), Ok(Scope::Memory)); // movsb
        assert_eq!(admit(&[0xc3]), Ok(Scope::Memory)); // ret
        assert_eq!(admit(&[0xd7]), Ok(Scope::Memory)); // xlatb
        assert_eq!(admit(&[0x0f, 0x77]), Ok(Scope::Full)); // emms
        assert_eq!(admit(&[0xd9, 0xe8]), Ok(Scope::Full)); // fld1
        assert_eq!(admit(&[0x9b]), Ok(Scope::Full)); // wait
        assert_eq!(admit(&[0xf2, 0x0f, 0x38, 0xf0, 0xc1]), Ok(Scope::Registers)); // crc32
        assert_eq!(admit(&[0x48]), Err(Refused::Incomplete));
        assert_eq!(admit(&[0xeb, 0x00, 0x90]), Err(Refused::BehindBranch));
    }
}
