/* Runs kernels by name and says on standard output when each begins and ends.
 *
 *     kernels SCALE REPEATS NAME...
 *
 * prints, for each name and repeat, `BEGIN name` and `END name checksum nanoseconds`, where the nanoseconds are the
 * processor time that this process saw go by; after the last, `DONE`. As the first process of a system it then waits for
 * ever, because a system without one is lost; elsewhere it exits. Exit status 2: an unknown name or a bad number. */
#include "kernel.h"

static const struct row rows[] = {
    {"alu", alu, 4000},      {"crc", crc, 500},          {"sieve", sieve, 120},       {"sort", sort, 60},
    {"mat", mat, 60},        {"tree", tree, 30},         {"state", state, 12000},     {"fib", fib, 2000},
    {"big", big, 600},       {"big2", big2, 600},        {"loop", loop, 4000},        {"dhry", dhry, 4000},
    {"bytecode", bytecode, 600}, {"sse2", sse2, 1200},   {"chase", chase, 8000},      {"string", string, 1200},
    {"syscall", syscalls, 1500}, {"fault", faults, 300}, {"smc", smc, 500},
};

/* gcc may call these for plain assignments. */
void *memcpy(void *to, const void *from, u64 n)
{
    void *ret = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
    return ret;
}

void *memset(void *to, int c, u64 n)
{
    void *ret = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(c) : "memory");
    return ret;
}

static char line[256];
static u32 used;

static void put(const char *s)
{
    while (*s && used < sizeof line)
        line[used++] = *s++;
}

static void put_number(u64 v, u32 base)
{
    char digits[24], *at = digits + sizeof digits;
    *--at = 0;
    do
        *--at = "0123456789abcdef"[v % base];
    while (v /= base);
    put(at);
}

static void flush_line(void)
{
    put("\n");
    syscall3(SYS_WRITE, 1, (u64)line, used);
    /* TCSBRK with 1 waits until a terminal has sent everything; anything else refuses, which does not matter. */
    syscall3(SYS_IOCTL, 1, 0x5409, 1);
    used = 0;
}

static u64 cpu_time(void)
{
    u64 now[2];
    syscall3(SYS_CLOCK_GETTIME, 2, (u64)now, 0); /* CLOCK_PROCESS_CPUTIME_ID */
    return now[0] * 1000000000UL + now[1];
}

static int same(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static u64 number(const char *s)
{
    u64 v = 0;
    while (*s >= '0' && *s <= '9')
        v = v * 10 + (u64)(*s++ - '0');
    return *s ? 0 : v;
}

static void leave(u64 status)
{
    for (;;)
        syscall3(SYS_EXIT, status, 0, 0);
}

static void run(const struct row *row, u64 scale)
{
    put("BEGIN ");
    put(row->name);
    flush_line();
    u64 before = cpu_time();
    u64 sum = row->run(row->rounds * scale);
    u64 spent = cpu_time() - before;
    put("END ");
    put(row->name);
    put(" ");
    put_number(sum, 16);
    put(" ");
    put_number(spent, 10);
    flush_line();
}

__attribute__((used)) static void start(u64 *stack)
{
    u64 argc = stack[0];
    char **argv = (char **)(stack + 1);
    u64 scale = argc > 2 ? number(argv[1]) : 0, repeats = argc > 2 ? number(argv[2]) : 0;
    if (!scale || !repeats)
        leave(2);
    int first_process = syscall3(SYS_GETPID, 0, 0, 0) == 1;
    if (first_process)
        syscall3(SYS_SYSLOG, 6, 0, 0); /* SYSLOG_ACTION_CONSOLE_OFF: no message may cut a line of ours in two */
    for (u64 i = 3; i < argc; i++) {
        const struct row *row = 0;
        for (u32 k = 0; k < sizeof rows / sizeof *rows; k++)
            if (same(rows[k].name, argv[i]))
                row = &rows[k];
        if (!row)
            leave(2);
        for (u64 r = 0; r < repeats; r++)
            run(row, scale);
    }
    put("DONE");
    flush_line();
    while (first_process)
        syscall3(SYS_PAUSE, 0, 0, 0);
    leave(0);
}

__asm__(".globl _start\n"
        "_start:\n"
        "    mov %rsp, %rdi\n"
        "    and $-16, %rsp\n"
        "    call start\n");
