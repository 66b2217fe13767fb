/* Gumbel noise keyed by place, as reference.py defines it. Numbers go in blocks of one size, so that a value has the same
 * bits in any vocabulary. No state, no allocation. */
#include <stdint.h>
#include <string.h>

enum { BLOCK = 64 };

/* log y of a positive normal number, to 2e-7 relative; vectorises without a library. Polynomial: logf of Cephes. */
static inline float quick_log(float y) {
    int32_t bits;
    memcpy(&bits, &y, 4);
    int32_t power = (bits - 0x3F3504F3) >> 23; /* y = 2^power * m with m from sqrt(1/2) to sqrt(2) */
    bits -= power << 23;
    float m;
    memcpy(&m, &bits, 4);
    float f = m - 1, square = f * f, n = (float)power, p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    return f + (f * square * p - 2.12194440e-4f * n - 0.5f * square) + 0.693359375f * n;
}

/* made [rows, n] from keys [rows, 2] and the hashes [n] of the token ids. */
void gumbel(const uint32_t *keys, const int32_t *hashes, float *made, long rows, long n) {
    for (long r = 0; r < rows; r++, keys += 2)
        for (long i = 0; i < n; i += BLOCK) {
            long count = n - i < BLOCK ? n - i : BLOCK;
            uint32_t bits[BLOCK] = {0};
            float noise[BLOCK];
            memcpy(bits, hashes + i, count * sizeof *bits);
#pragma omp simd
            for (int j = 0; j < BLOCK; j++) {
                uint32_t b = (bits[j] ^ keys[0]) * 0x21F0AAADu;
                b = (b ^ b >> 15 ^ keys[1]) * 0xD35A2D97u;
                int32_t folded = (int32_t)b ^ (int32_t)b >> 15;
                float x = (float)folded * -0x1.fffffep-32f - 0x1p-32f; /* -((1 - 2^-24) 2^-31 folded + 2^-32) */
                float y = 1 + x;
                noise[j] = -quick_log(-(quick_log(y) + (x - (y - 1)) / y)); /* the last term: what was lost in 1 + x */
            }
            memcpy(made + r * n + i, noise, count * sizeof *made);
        }
}
