//! What conformance suites ask of the machine beyond the processor, by small programs of our own.
#![forbid(unsafe_code)]

mod guests;

use std::time::Duration;

use guests::{guest, images, scratch};

const LIMIT: Duration = Duration::from_secs(60);

/// Exit code of a run that wrote `value` to the debug-exit port, as QEMU's isa-debug-exit makes it.
const fn wrote(value: i32) -> Option<i32> {
    Some(value << 1 | 1)
}

/// 64-bit code. Bit 0 of what it writes: a TSC-deadline interrupt is requested as soon as the TSC is written past the
/// deadline. Bit 1: the test device's memory keeps a doubleword and a byte written over it.
const DEADLINE_AND_MEMORY: [u8; 105] = [
    0xbb, 0x00, 0x00, 0xe0, 0xfe, // mov ebx, 0xfee00000
    0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00, // mov dword [rbx+0xf0], 0x1ff: enabled
    0xc7, 0x83, 0x20, 0x03, 0x00, 0x00, 0xef, 0x00, 0x04, 0x00, // mov dword [rbx+0x320], 0x400ef: deadline mode
    0x0f, 0x31, // rdtsc
    0x89, 0xc6, // mov esi, eax
    0x31, 0xd2, // xor edx, edx
    0x8d, 0x86, 0x00, 0xca, 0x9a, 0x3b, // lea eax, [rsi+1000000000]
    0xb9, 0xe0, 0x06, 0x00, 0x00, // mov ecx, IA32_TSC_DEADLINE
    0x0f, 0x30, // wrmsr
    0x8d, 0x86, 0x00, 0x94, 0x35, 0x77, // lea eax, [rsi+2000000000]
    0xb9, 0x10, 0x00, 0x00, 0x00, // mov ecx, IA32_TSC
    0x0f, 0x30, // wrmsr
    0x90, // nop
    0x8b, 0xab, 0x70, 0x02, 0x00, 0x00, // mov ebp, [rbx+0x270]: requests 224 to 255
    0xc1, 0xed, 0x0f, // shr ebp, 15
    0x83, 0xe5, 0x01, // and ebp, 1
    0xbf, 0x00, 0x00, 0x00, 0xff, // mov edi, 0xff000000
    0xc7, 0x47, 0x04, 0x78, 0x56, 0x34, 0x12, // mov dword [rdi+4], 0x12345678
    0xc6, 0x47, 0x05, 0x9a, // mov byte [rdi+5], 0x9a
    0x31, 0xc0, // xor eax, eax
    0x81, 0x7f, 0x04, 0x78, 0x9a, 0x34, 0x12, // cmp dword [rdi+4], 0x12349a78
    0x0f, 0x94, 0xc0, // sete al
    0x8d, 0x44, 0x45, 0x00, // lea eax, [rbp+rax*2]
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
];

#[test]
fn a_write_of_the_tsc_moves_the_deadline_and_the_test_device_has_memory() {
    let dir = scratch();
    let image = images::write(&dir, "deadline", &DEADLINE_AND_MEMORY);
    for kind in ["amd", "intel"] {
        let words = [image.as_os_str(), "--memory".as_ref(), "64M".as_ref(), "--cpu".as_ref(), kind.as_ref()];
        let ended = guest(words, LIMIT);
        assert_eq!(ended.code, wrote(3), "{kind}: {}", ended.stderr);
    }
    std::fs::remove_dir_all(&dir).expect("the scratch directory can be removed");
}
