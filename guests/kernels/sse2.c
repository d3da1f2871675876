/* Floating point with SSE2: scalar doubles, and pairs of them. */
#include "kernel.h"

typedef double pair __attribute__((vector_size(16)));

static double root(double x)
{
    __asm__("sqrtsd %1, %0" : "=x"(x) : "x"(x));
    return x;
}

/* Four bodies under gravity, in scalar arithmetic. */
static double orbits(u64 steps)
{
    static struct body {
        double x, y, z, vx, vy, vz, m;
    } b[4];
    for (int i = 0; i < 4; i++)
        b[i] = (struct body){i * 1.5, (i & 1) * 2.0 - 1.0, i * 0.25, 0.1 * i, 0.05, -0.02 * i, 1.0 / (i + 1)};
    for (u64 s = 0; s < steps; s++) {
        for (int i = 0; i < 4; i++)
            for (int j = i + 1; j < 4; j++) {
                double dx = b[i].x - b[j].x, dy = b[i].y - b[j].y, dz = b[i].z - b[j].z;
                double d2 = dx * dx + dy * dy + dz * dz + 0.01, f = 0.001 / (d2 * root(d2));
                b[i].vx -= dx * b[j].m * f;
                b[i].vy -= dy * b[j].m * f;
                b[i].vz -= dz * b[j].m * f;
                b[j].vx += dx * b[i].m * f;
                b[j].vy += dy * b[i].m * f;
                b[j].vz += dz * b[i].m * f;
            }
        for (int i = 0; i < 4; i++) {
            b[i].x += 0.001 * b[i].vx;
            b[i].y += 0.001 * b[i].vy;
            b[i].z += 0.001 * b[i].vz;
        }
    }
    return b[0].x + b[1].y + b[2].z + b[3].vx;
}

/* Points of the Mandelbrot set, two at a time. */
static u64 mandelbrot(u64 lines)
{
    u64 total = 0;
    for (u64 l = 0; l < lines; l++) {
        double ci = (double)(l % 64) / 32.0 - 1.0;
        for (int k = 0; k < 32; k += 2) {
            pair cr = {k / 16.0 - 1.5, (k + 1) / 16.0 - 1.5}, zr = {0, 0}, zi = {0, 0}, cim = {ci, ci};
            int i = 0;
            for (; i < 32; i++) {
                pair r2 = zr * zr, i2 = zi * zi, norm = r2 + i2;
                if (norm[0] > 4.0 && norm[1] > 4.0)
                    break;
                zi = zr * zi;
                zi = zi + zi + cim;
                zr = r2 - i2 + cr;
            }
            total = total * 31 + i;
        }
    }
    return total;
}

u64 sse2(u64 n)
{
    union {
        double d;
        u64 u;
    } bits = {orbits(n * 40)};
    return mix(bits.u, mandelbrot(n * 4));
}
