# Trap stubs, and accesses that may fault.

    .section .text, "ax", @progbits
    .code64

# 33 stubs of 16 bytes: vectors 0 to 31, and the gate that ring 3 leaves through.
    .balign 16
    .globl trap_stubs
trap_stubs:
    .set vector, 0
    .rept 33
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    push 0
    .endif
    .byte 0x6a, vector              # push vector
    jmp trap_common
    .balign 16
    .set vector, vector + 1
    .endr

trap_common:
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rdi, rsp
    call trap_entry
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16
    iretq

# The four accesses: RDI = address, RSI = which, RDX = value to write. Result in RAX.
    .macro accesses
    cmp esi, 1
    jb 20f
    je 22f
    cmp esi, 2
    je 23f
    add [rdi], rdx
    jmp 24f
20: mov rax, [rdi]
    jmp 24f
22: mov [rdi], rdx
    jmp 24f
23: call rdi
24:
    .endm

# fn probe_supervisor(address, which, value) -> u64. A fault returns through probe_resume.
    .globl probe_supervisor
probe_supervisor:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + probe_rsp], rsp
    accesses
# Faults and ring 3 come back here, with RSP as it was saved and the result in RAX.
    .globl probe_resume
probe_resume:
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# fn probe_user(address, which, value, user_rip, user_rsp) -> u64.
    .globl probe_user
probe_user:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [rip + probe_rsp], rsp
    push 0x1b                       # SS: user data
    push r8
    push 2                          # RFLAGS: interrupts off
    push 0x23                       # CS: user code
    push rcx
    iretq

# What runs in ring 3; position-independent, copied to a user page.
    .globl user_code
user_code:
    accesses
    int 0x80
    .globl user_code_end
user_code_end:

    .section .bss, "aw", @nobits
    .balign 8
    .globl probe_rsp
probe_rsp:
    .skip 8
