/* Loops shaped like programs. Built without SSE. */
#include "kernel.h"

/* The tightest loop there is: one add, one compare, one branch. */
u64 loop(u64 n)
{
    u64 sum = 0;
    for (u64 i = 0; i < n * 10000; i++) {
        sum += i;
        __asm__ volatile("" : "+r"(sum));
    }
    return sum;
}

enum kind { FIRST, SECOND, THIRD, FOURTH };

struct record {
    struct record *next;
    enum kind kind, choice;
    i32 number;
    char text[32];
};

static char letter_one, letter_two;
static i32 shared_number;
static i32 row[64], grid[16][16];

static __attribute__((noinline)) void copy_text(char *to, const char *from)
{
    while ((*to++ = *from++))
        ;
}

static __attribute__((noinline)) int compare_text(const char *a, const char *b)
{
    while (*a && *a == *b)
        a++, b++;
    return (u8)*a - (u8)*b;
}

static __attribute__((noinline)) enum kind choose(enum kind k)
{
    switch (k) {
    case FIRST:
        return shared_number > 100 ? FIRST : FOURTH;
    case SECOND:
        return letter_one == 'A' ? THIRD : FIRST;
    case THIRD:
        return SECOND;
    default:
        return letter_two == 'B' ? SECOND : THIRD;
    }
}

static __attribute__((noinline)) void advance(struct record *r)
{
    struct record *next = r->next;
    *next = *r;
    r->number += 5;
    next->number = r->number;
    next->next = r->next;
    next->choice = choose(r->choice);
    if (next->kind == FIRST) {
        next->number = 6 + (shared_number & 7);
        next->choice = choose(next->choice);
    }
}

static __attribute__((noinline)) void fill_rows(i32 at, i32 value)
{
    i32 i = at + 5;
    row[i] = value;
    row[i + 1] = row[i];
    row[i + 30] = i;
    for (i32 j = i & 7; j <= (i & 7) + 1; j++)
        grid[i & 15][j] = i;
    grid[i & 15][(i & 7) + 2] += 1;
    shared_number = 5 + (row[i + 1] & 127);
}

/* In the manner of Dhrystone: records, short strings, enumerations, small procedures. */
u64 dhry(u64 n)
{
    static struct record one, two;
    char text[32], other[32];
    u64 h = 0;
    one = (struct record){&two, FIRST, THIRD, 40, "PROGRAM TEXT, RECORD"};
    two.next = &one;
    copy_text(text, "PROGRAM TEXT, 1'ST");
    shared_number = 0;
    for (u64 i = 0; i < n * 100; i++) {
        letter_one = 'A' + (i & 1);
        letter_two = 'B';
        copy_text(other, i & 3 ? "PROGRAM TEXT, 2'ND" : "PROGRAM TEXT, 1'ST");
        i32 a = 2, b = 3 + (i32)(i & 15), c = 0;
        int less = compare_text(text, other) < 0;
        while (a < b) {
            c = 5 * a - b;
            a += 3;
        }
        fill_rows(a & 15, c);
        one.choice = THIRD;
        one.number = (i32)(i & 1023);
        advance(&one);
        for (char l = 'A'; l <= letter_two; l++)
            if (choose(two.choice) == THIRD)
                c += l;
        b = b * a;
        a = b / (c == 0 ? 7 : (c | 1));
        h = mix(h, (u64)(a + b + c + less + two.number + shared_number));
    }
    return h;
}

enum code { PUSH, LOAD, STORE, ADD, SUB, MUL, XOR, LESS, JUMP, BRANCH, AT, PUT, HALT };

/* A stack machine that computes with a small array and a loop in it. */
static const i32 program[] = {
    PUSH, 0, STORE, 0,                                                  /* i = 0 */
    LOAD, 0, PUSH, 63, XOR, LOAD, 0, MUL, LOAD, 1, ADD, STORE, 1,       /* 4: s += (i ^ 63) * i */
    LOAD, 1, LOAD, 0, PUT,                                              /* 18: array[i & 63] = s */
    LOAD, 0, PUSH, 7, ADD, AT, LOAD, 1, XOR, STORE, 1,                  /* s ^= array[(i + 7) & 63] */
    LOAD, 0, PUSH, 1, ADD, STORE, 0,                                    /* i++ */
    LOAD, 0, PUSH, 500, LESS, BRANCH, 4,                                /* while (i < 500) */
    HALT,
};

static __attribute__((noinline)) u32 interpret(const i32 *code, u32 *local, u32 *array)
{
    u32 stack[16], *top = stack;
    const i32 *at = code;
    for (;;) {
        switch ((enum code)*at++) {
        case PUSH: *top++ = (u32)*at++; break;
        case LOAD: *top++ = local[*at++]; break;
        case STORE: local[*at++] = *--top; break;
        case ADD: top--; top[-1] += *top; break;
        case SUB: top--; top[-1] -= *top; break;
        case MUL: top--; top[-1] *= *top; break;
        case XOR: top--; top[-1] ^= *top; break;
        case LESS: top--; top[-1] = top[-1] < *top; break;
        case JUMP: at = code + *at; break;
        case BRANCH: at = *--top ? code + *at : at + 1; break;
        case AT: top[-1] = array[top[-1] & 63]; break;
        case PUT: top -= 2; array[top[1] & 63] = *top; break;
        case HALT: return local[1];
        }
    }
}

/* A bytecode interpreter: an indirect jump each few instructions. */
u64 bytecode(u64 n)
{
    static u32 local[4], array[64];
    u64 h = 0;
    for (int i = 0; i < 64; i++)
        array[i] = 0;
    local[1] = 0;
    for (u64 r = 0; r < n; r++)
        h = mix(h, interpret(program, local, array));
    return h;
}

/* A cycle of pointers through 32 KiB in scattered order: each load needs the one before. */
u64 chase(u64 n)
{
    enum { N = 512 };
    static struct link {
        struct link *next;
        u64 value[7];
    } links[N];
    u32 order[N], seed = 5;
    u64 sum = 0;
    for (u32 i = 0; i < N; i++)
        order[i] = i;
    for (u32 i = N - 1; i > 0; i--) {
        u32 j = next_random(&seed) % (i + 1), t = order[i];
        order[i] = order[j];
        order[j] = t;
    }
    for (u32 i = 0; i < N; i++) {
        links[order[i]].next = &links[order[(i + 1) % N]];
        links[order[i]].value[0] = i;
    }
    const struct link *at = links;
    for (u64 i = 0; i < n * 1000; i++)
        at = at->next;
    sum = at->value[0];
    return mix(n, sum);
}
