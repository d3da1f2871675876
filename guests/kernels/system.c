/* What leans on the system: string instructions, system calls, page faults, code that changes. Built without SSE. */
#include "kernel.h"

enum { PAGE = 4096 };

/* REP MOVS and REP STOS over 16 KiB and over short, misaligned runs. */
u64 string(u64 n)
{
    static u8 a[16384 + 64], b[16384 + 64];
    u64 h = 0;
    for (u64 r = 0; r < n * 16; r++) {
        u64 off = r % 13;
        void *to = a;
        u64 count = sizeof a / 8;
        __asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(r * 0x0101010101010101UL) : "memory");
        to = b + off;
        const void *from = a + (off ^ 5);
        count = 16384;
        __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
        for (u64 i = 0; i < 32; i++) {
            to = a + i * 67;
            from = b + i * 61;
            count = 8 + (i * 5) % 56;
            __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
        }
        h = mix(h, a[r % 4096] + b[(r * 7) % 16384]);
    }
    return h;
}

/* The cheapest system call. */
u64 syscalls(u64 n)
{
    u64 good = 0;
    for (u64 i = 0; i < n * 100; i++)
        good += syscall3(SYS_GETPID, 0, 0, 0) > 0;
    return good;
}

/* Map, touch, unmap: a page fault each page. */
u64 faults(u64 n)
{
    enum { PAGES = 64 };
    u64 h = 0;
    for (u64 r = 0; r < n; r++) {
        u8 *at = map_anonymous(PAGES * PAGE, PROT_READ | PROT_WRITE);
        for (u32 i = 0; i < PAGES; i++)
            at[i * PAGE + (i * 8 & (PAGE - 1))] = (u8)(r + i);
        u32 sum = 0;
        for (u32 i = 0; i < PAGES; i++)
            sum += at[i * PAGE + (i * 8 & (PAGE - 1))] + at[i * PAGE + 4000];
        h = mix(h, sum);
        syscall3(SYS_MUNMAP, (u64)at, PAGES * PAGE, 0);
    }
    return h;
}

/* Patch the immediate of `mov eax, imm32; ret` and call it: a hundred patches a round. */
u64 smc(u64 n)
{
    u8 *code = map_anonymous(PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
    u64 h = 0;
    code[0] = 0xb8;
    code[5] = 0xc3;
    for (u64 i = 0; i < n * 100; i++) {
        *(volatile u32 *)(code + 1) = (u32)(i * 2654435761u);
        h += ((u32 (*)(void))code)() ^ i;
    }
    syscall3(SYS_MUNMAP, (u64)code, PAGE, 0);
    return h;
}
