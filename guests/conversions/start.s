# Where a SIPI puts a processor: from real mode to long mode in one step, on a stack of its own.

    .section .text, "ax", @progbits
    .code16
    .globl start_begin
start_begin:
    jmp start_code
    .balign 8
    .short 23                       # at offset 8, where the lgdt below looks for it
    .long boot_gdt
start_code:
    cli
    xor eax, eax
    mov ds, eax
    mov eax, cr4
    or eax, 0x620                   # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080             # EFER.LME
    rdmsr
    or eax, 0x100
    wrmsr
    lgdtd [0x8008]
    mov eax, cr0
    and eax, 0x9ffffff3             # CD, NW, EM and TS off
    or eax, 0x80010023              # PG, WP, NE, MP, PE
    mov cr0, eax
    .byte 0x66, 0xea                # jmp far, 32-bit offset
    .long start_long
    .short 8
    .globl start_end
start_end:

    .code64
start_long:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov edi, 1
    lock xadd dword ptr [start_next], edi
    mov eax, edi
    shl eax, 14
    lea rsp, [rax + start_stacks]
    xor ebp, ebp
    call processor_main
    ud2

    .section .data.start, "aw", @progbits
    .balign 8
start_next:
    .long 1

    .section .bss.start, "aw", @nobits
    .balign 16
start_stacks:
    .skip 0x10000
