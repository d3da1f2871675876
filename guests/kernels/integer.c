/* The integer kernels. Built without SSE: what runs is the general-purpose instruction set and memory. */
#include "kernel.h"

/* xorshift and multiply: registers only. */
u64 alu(u64 n)
{
    u64 a = 0x123456789abcdefUL, b = 0xfedcba987654321UL, sum = 0;
    for (u64 i = 0; i < n * 1000; i++) {
        a ^= a << 13;
        a ^= a >> 7;
        a ^= a << 17;
        b = b * 6364136223846793005UL + a;
        sum += (b >> 33) ^ i;
    }
    return mix(sum, a ^ b);
}

static u32 crc_table[256];

/* Table-driven CRC-32 over 16 KiB. */
u64 crc(u64 n)
{
    static u8 data[16384];
    u32 seed = 7;
    for (u32 i = 0; i < 256; i++) {
        u32 c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        crc_table[i] = c;
    }
    for (u32 i = 0; i < sizeof data; i++)
        data[i] = next_random(&seed);
    u32 c = ~0u;
    for (u64 r = 0; r < n; r++)
        for (u32 i = 0; i < sizeof data; i++)
            c = crc_table[(c ^ data[i]) & 255] ^ c >> 8;
    return ~c;
}

/* Eratosthenes over 64 Ki bytes: byte stores in strides. */
u64 sieve(u64 n)
{
    static u8 composite[65536];
    u64 h = 0;
    for (u64 r = 0; r < n; r++) {
        u32 count = 0;
        for (u32 i = 0; i < sizeof composite; i++)
            composite[i] = 0;
        for (u32 i = 2; i < sizeof composite; i++) {
            if (composite[i])
                continue;
            count++;
            for (u32 j = i + i; j < sizeof composite; j += i)
                composite[j] = 1;
        }
        h = mix(h, count + r);
    }
    return h;
}

static void quicksort(i32 *a, i64 lo, i64 hi)
{
    while (lo < hi) {
        i32 pivot = a[(lo + hi) / 2];
        i64 i = lo, j = hi;
        while (i <= j) {
            while (a[i] < pivot)
                i++;
            while (a[j] > pivot)
                j--;
            if (i <= j) {
                i32 t = a[i];
                a[i++] = a[j];
                a[j--] = t;
            }
        }
        if (j - lo < hi - i) {
            quicksort(a, lo, j);
            lo = i;
        } else {
            quicksort(a, i, hi);
            hi = j;
        }
    }
}

/* Quicksort of 4096 pseudo-random numbers: unpredictable branches. */
u64 sort(u64 n)
{
    static i32 a[4096];
    u32 seed = 1;
    u64 h = 0;
    for (u64 r = 0; r < n; r++) {
        for (int i = 0; i < 4096; i++)
            a[i] = (i32)next_random(&seed);
        quicksort(a, 0, 4095);
        h = mix(h, (u64)a[0] + (u64)a[2048] * 3 + (u64)a[4095] * 7);
    }
    return h;
}

/* 64 by 64 integer matrix product. */
u64 mat(u64 n)
{
    enum { N = 64 };
    static u32 a[N][N], b[N][N], c[N][N];
    u64 h = 0;
    for (u32 i = 0; i < N * N; i++) {
        a[i / N][i % N] = i * 7 + 1;
        b[i / N][i % N] = i * 13 + 5;
    }
    for (u64 r = 0; r < n; r++) {
        for (u32 i = 0; i < N; i++)
            for (u32 j = 0; j < N; j++) {
                u32 sum = 0;
                for (u32 k = 0; k < N; k++)
                    sum += a[i][k] * b[k][j];
                c[i][j] = sum;
            }
        h = mix(h, c[r % N][(r * 7) % N]);
        a[r % N][(r * 3) % N] ^= (u32)h;
    }
    return h;
}

/* Insertion into an unbalanced binary tree of 4096 nodes, then a walk over it. */
u64 tree(u64 n)
{
    struct node {
        struct node *left, *right;
        u32 key, count;
    };
    static struct node pool[4096];
    u32 seed = 99;
    u64 h = 0;
    for (u64 r = 0; r < n; r++) {
        struct node *root = 0;
        u32 used = 0;
        for (int i = 0; i < 4096; i++) {
            u32 key = next_random(&seed) & 0xffff;
            struct node **at = &root;
            while (*at && (*at)->key != key)
                at = key < (*at)->key ? &(*at)->left : &(*at)->right;
            if (!*at) {
                *at = &pool[used++];
                **at = (struct node){0, 0, key, 0};
            }
            (*at)->count++;
        }
        u32 depth = 0;
        for (struct node *at = root; at; at = at->left)
            depth += at->key + at->count;
        h = mix(h, depth + used);
    }
    return h;
}

/* A scanner of words, numbers, strings and comments: branches on each character. */
u64 state(u64 n)
{
    static const char text[] = "alpha = 12 + beta(3.5, \"a \\\" b\") ; // rest of line\n"
                               "while (x1 < 0x7f) { gamma[i] = delta ? 'q' : -1; /* note * */ }\n";
    u64 words = 0, numbers = 0, strings = 0, comments = 0, marks = 0;
    for (u64 r = 0; r < n * 8; r++) {
        enum { BLANK, WORD, NUMBER, STRING, ESCAPE, SLASH, LINE, BLOCK, STAR } s = BLANK;
        for (const char *p = text; *p; p++) {
            char c = *p;
            switch (s) {
            case STRING:
                if (c == '\\')
                    s = ESCAPE;
                else if (c == '"') {
                    s = BLANK;
                    strings++;
                }
                continue;
            case ESCAPE:
                s = STRING;
                continue;
            case LINE:
                if (c == '\n') {
                    s = BLANK;
                    comments++;
                }
                continue;
            case BLOCK:
                if (c == '*')
                    s = STAR;
                continue;
            case STAR:
                if (c == '/') {
                    s = BLANK;
                    comments++;
                } else if (c != '*')
                    s = BLOCK;
                continue;
            case SLASH:
                if (c == '/') {
                    s = LINE;
                    continue;
                }
                if (c == '*') {
                    s = BLOCK;
                    continue;
                }
                marks++;
                break;
            case WORD:
                if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
                    continue;
                words++;
                break;
            case NUMBER:
                if ((c >= '0' && c <= '9') || c == '.' || c == 'x' || c == 'f')
                    continue;
                numbers++;
                break;
            case BLANK:
                break;
            }
            if (c >= 'a' && c <= 'z')
                s = WORD;
            else if (c >= '0' && c <= '9')
                s = NUMBER;
            else if (c == '"')
                s = STRING;
            else if (c == '/')
                s = SLASH;
            else {
                marks += c != ' ';
                s = BLANK;
            }
        }
    }
    return mix(mix(words, numbers), mix(strings * 5 + comments, marks));
}

static __attribute__((noinline, optimize("no-optimize-sibling-calls"))) u64 fib_of(u32 n)
{
    return n < 2 ? n : fib_of(n - 1) + fib_of(n - 2);
}

/* Recursion: calls, returns and the stack. */
u64 fib(u64 n)
{
    u64 h = 0;
    for (u64 r = 0; r < n; r++)
        h = mix(h, fib_of(18 + (r & 1)));
    return h;
}
