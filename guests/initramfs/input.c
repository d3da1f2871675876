/* Input of the C compiler in the ramdisk of programs: no header, several kinds of optimisation. */
typedef unsigned long word;

struct node {
    struct node *next;
    word key;
    double weight;
};

static word mix(word x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccdUL;
    x ^= x >> 33;
    return x;
}

double total(const struct node *node, word mask)
{
    double sum = 0.0;
    for (; node; node = node->next)
        if ((mix(node->key) & mask) == 0)
            sum += node->weight * 1.0e-3;
    return sum;
}

void transpose(float *restrict to, const float *restrict from, int n)
{
    for (int row = 0; row < n; row++)
        for (int column = 0; column < n; column++)
            to[column * n + row] = from[row * n + column];
}

int classify(int c)
{
    switch (c) {
    case 'a' ... 'z':
        return 1;
    case 'A' ... 'Z':
        return 2;
    case '0' ... '9':
        return 3;
    case '_':
        return 4;
    default:
        return __builtin_popcount((unsigned)c) & 7;
    }
}
