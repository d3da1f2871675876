/* What every kernel sees: integer names, the system calls, and the table's row. No libc behind any of it. */
#ifndef KERNEL_H
#define KERNEL_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
typedef signed char i8;
typedef short i16;
typedef int i32;
typedef long i64;

/* A kernel does `n` rounds of its work and returns a checksum that depends on every round. */
typedef u64 kernel(u64 n);

struct row {
    const char *name;
    kernel *run;
    u64 rounds; /* at scale 1: some ten milliseconds of a processor */
};

kernel alu, crc, sieve, sort, mat, tree, state, fib, big, big2;
kernel loop, dhry, bytecode, sse2, chase, string, syscalls, faults, smc;

static inline u64 mix(u64 h, u64 v)
{
    h ^= v;
    h *= 0x9e3779b97f4a7c15UL;
    return h ^ h >> 29;
}

static inline u32 next_random(u32 *s)
{
    *s = *s * 1664525u + 1013904223u;
    return *s >> 8;
}

enum { SYS_WRITE = 1, SYS_MMAP = 9, SYS_MUNMAP = 11, SYS_IOCTL = 16, SYS_PAUSE = 34, SYS_GETPID = 39, SYS_EXIT = 60,
       SYS_SYSLOG = 103, SYS_CLOCK_GETTIME = 228 };

static inline i64 syscall3(i64 nr, u64 a, u64 b, u64 c)
{
    i64 ret;
    __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return ret;
}

static inline i64 syscall6(i64 nr, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f)
{
    i64 ret;
    register u64 r10 __asm__("r10") = d;
    register u64 r8 __asm__("r8") = e;
    register u64 r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return ret;
}

enum { PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4, MAP_PRIVATE = 2, MAP_ANONYMOUS = 32 };

static inline u8 *map_anonymous(u64 len, u64 prot)
{
    return (u8 *)syscall6(SYS_MMAP, 0, len, prot, MAP_PRIVATE | MAP_ANONYMOUS, ~0UL, 0);
}

#endif
