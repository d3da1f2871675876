# From the state the launch gives the processor (64-bit mode, an identity map, RSI = the parameters) to Rust.

    .section .text.start, "ax", @progbits
    .globl start
start:
    cli
    cld
    lea rsp, [rip + stack_top]
    xor ebp, ebp
    mov rdi, rsi
    call stage0_main
    ud2

# RDI = entry point, RSI = boot_params; never returns.
    .globl jump_to_kernel
jump_to_kernel:
    xor eax, eax
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
    xor ebp, ebp
    xor r8d, r8d
    jmp rdi

# What the compiler makes of copies and fills.
    .globl memcpy
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret

    .globl memset
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret

# The precompiled core was built to unwind and names this; nothing here ever does.
    .globl rust_eh_personality
rust_eh_personality:
    ud2

    .section .bss.stack, "aw", @nobits
    .balign 16
    .skip 0x4000
stack_top:
