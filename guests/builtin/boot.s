# From the PVH entry (32-bit protected mode, paging off, EBX = hvm_start_info) to long mode.

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18                  # name and description bytes; XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start32

    .section .text.boot, "ax", @progbits
    .code32
    .globl start32
start32:
    cli
    cld
    mov esp, offset boot_stack_top
    mov edi, ebx
    mov eax, cr4
    or eax, 0x620                   # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xc0000080             # EFER.LME
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    and eax, 0xfffffff3             # EM and TS off: SSE may be used
    or eax, 0x80010023              # PG, WP, NE, MP, PE
    mov cr0, eax
    lgdt [boot_gdt_pointer]
    push 8
    mov eax, offset start64
    push eax
    retf

    .code64
start64:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov edi, edi
    mov rsp, offset boot_stack_top
    xor ebp, ebp
    call guest_main
    ud2

# The precompiled core was built to unwind and names this; nothing here ever does.
    .globl rust_eh_personality
rust_eh_personality:
    ud2

    .section .data.boot, "aw", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
boot_gdt_pointer:
    .short 23
    .quad boot_gdt

# 4 GiB one to one with 2 MiB pages.
    .balign 4096
boot_pml4:
    .quad boot_pdpt + 3
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 0x0003
    .quad boot_pd + 0x1003
    .quad boot_pd + 0x2003
    .quad boot_pd + 0x3003
    .fill 508, 8, 0
boot_pd:
    .set page, 0
    .rept 2048
    .quad (page << 21) + 0x83
    .set page, page + 1
    .endr

    .section .bss.stacks, "aw", @nobits
    .balign 16
    .skip 0x10000
boot_stack_top:
    .skip 0x4000
    .globl trap_stack_top
trap_stack_top:
    .skip 0x1000
    .globl double_fault_stack_top
double_fault_stack_top:
