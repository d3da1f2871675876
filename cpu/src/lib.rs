//! Execution: a processor that decodes, interprets, faults and exits.
//!
//! - [`Vcpu`] is the door: [`Vcpu::run`] executes until the time granted is used up or something needs the machine,
//!   and says so with an [`Exit`]. Nothing here knows a hypervisor, a device or host memory.
//! - Decoding ([`mod@decode`], the only place that sees iced-x86) turns bytes into blocks of [`op::Op`]s, cached by system-physical
//!   address in [`code`]. Handlers hand over to each other in tail position ([`op`], [`dispatch`]); [`exec`] is the loop
//!   around them.
//! - Meanings live in one module a manual group: [`int`], [`system`], [`x87`], [`simd`]; what a guest with encrypted state changes
//!   of them in [`sev`], and how its registers lie in memory in [`vmsa`]; values of vectors in [`vector`], of
//!   floating point in [`softfloat`].
//!
//! Always true: an instruction that stops (fault or exit) has changed nothing and starts again from its first byte; how
//! code is cut into blocks, cached or invalidated never changes a result; time is counted to the instruction.
//!
//! Sources: AMD64 Architecture Programmer's Manual vol. 1 to 5; Intel SDM vol. 1 to 3.
#![forbid(unsafe_code)]

mod address;
mod code;
mod cpu;
mod decode;
mod dispatch;
mod event;
mod exec;
mod exit;
mod flags;
mod fp;
mod int;
mod intercept;
mod latch;
mod mem;
mod mode;
mod msr;
mod op;
mod random;
mod segment;
mod sev;
mod simd;
mod softfloat;
mod step;
mod system;
mod tail;
mod vcpu;
mod vector;
pub mod vmsa;
mod width;
mod x87;

pub use event::{Event, SoftwareKind};
pub use exit::{Completion, Exit, IoAccess, LinearData, LinearOperand, MmioAccess, MmioData, MsrAccess, PageFaultExit};
pub use mode::{CodeSize, Mode};
pub use segment::{DescriptorTable, SegReg, Segment, SegmentAttributes, Segments};
pub use sev::emulate::{Emulated, EmulationRefused};
pub use sev::record::{SevAct, SevRecord};
pub use sev::{SevGuest, SevRefused};
pub use step::{MediaRegisters, Stepped, UserRegisters};
pub use vcpu::{Vcpu, VcpuConfig, VcpuState, X87Registers};
