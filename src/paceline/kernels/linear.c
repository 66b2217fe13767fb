/* bf16 rows times bf16 weights, for the few rows of a decode or verification pass: the weights come through the memory
 * once, fetched ahead while the rows are multiplied. A row's sum runs over pairs of inputs in order, in one place of one
 * register, whatever tile it falls into: it has the same bits among any others, and on any number of threads. No state,
 * no allocation. For processors that multiply bf16, but have no tiles of their own (oneDNN is better at those). */
#include "bf16.h"

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#include <immintrin.h>

#define INSIDE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum {
    ROWS = 12,    /* at most in a tile: 24 sums in registers */
    OUTPUTS = 32, /* a block: two vectors */
    AHEAD = 8192, /* numbers of weights */
    AT_ONCE = 1 << 18 /* numbers of x that stay in the cache while all weights pass by */
};

INSIDE __m512bh numbers(const bf16 *x) { return (__m512bh)_mm512_loadu_si512(x); }

INSIDE void store(bf16 *out, __m512 sum, const bf16 *bias) {
    if (bias) {
        __m512i added = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)bias));
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(added, 16)));
    }
    _mm256_storeu_si256((void *)out, (__m256i)_mm512_cvtneps_pbh(sum));
}

/* `rows` rows by one block. fetch: where the weights to come lie; of them `share` numbers are fetched for two inputs. */
INSIDE void tile(const int rows, const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *out, long inputs, long outputs,
                 const bf16 *fetch, long share) {
    __m512 sums[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    for (long k = 0; k < inputs; k += 2, weight += 2 * OUTPUTS, fetch += share) {
        __m512bh low = numbers(weight), high = numbers(weight + OUTPUTS);
        __builtin_prefetch(fetch, 0, 2);
        __builtin_prefetch(fetch + share / 2, 0, 2);
        UNROLL for (int r = 0; r < rows; r++) {
            int pair;
            memcpy(&pair, x + r * inputs + k, 4);
            __m512bh v = (__m512bh)_mm512_set1_epi32(pair);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], v, low);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], v, high);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        store(out + r * outputs, sums[r][0], bias);
        store(out + r * outputs + OUTPUTS / 2, sums[r][1], bias ? bias + OUTPUTS / 2 : 0);
    }
}

/* All rows by one block, in tiles as even as they can be; together they fetch one block. last: nothing follows. */
INSIDE void block(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *out, long rows, long inputs, long outputs,
                  int last) {
    long tiles = (rows + ROWS - 1) / ROWS, size = inputs * OUTPUTS, share = 2 * OUTPUTS / tiles;
    const bf16 *fetch = weight + (tiles == 1 && size > AHEAD ? AHEAD : size);
    for (long t = 0, row = 0; t < tiles; t++, fetch += share * inputs / 2) {
        long end = rows * (t + 1) / tiles;
        const bf16 *from = x + row * inputs, *soon = last ? weight : fetch;
        bf16 *to = out + row * outputs;
        switch (end - row) {
#define CASE(n)                                                                        \
    case n:                                                                            \
        tile(n, from, weight, bias, to, inputs, outputs, soon, last ? 0 : share); \
        break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#undef CASE
        }
        row = end;
    }
}

static void blocks(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *out, long rows, long inputs, long outputs,
                   long begin, long end) {
    long most = AT_ONCE / inputs > ROWS ? AT_ONCE / inputs / ROWS * ROWS : ROWS, count;
    for (long r = 0; r < rows; r += count, x += count * inputs, out += count * outputs) {
        count = most < rows - r ? most : rows - r;
        for (long b = begin; b < end; b++)
            block(x, weight + b * inputs * OUTPUTS, bias ? bias + b * OUTPUTS : 0, out + b * OUTPUTS, count, inputs, outputs,
                  b + 1 == end);
    }
}

/* x [rows, inputs], weight [outputs / 32, inputs / 2, 32, 2] and bias [outputs] (or none) to out [rows, outputs] =
 * x weight^T + bias. */
void bf16_linear(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *out, long rows, long inputs, long outputs,
                 int threads) {
    long count = outputs / OUTPUTS;
    if (threads == 1) { /* a team of one would cost a microsecond */
        blocks(x, weight, bias, out, rows, inputs, outputs, 0, count);
        return;
    }
#pragma omp parallel for num_threads(threads)
    for (int t = 0; t < threads; t++)
        blocks(x, weight, bias, out, rows, inputs, outputs, count * t / threads, count * (t + 1) / threads);
}
#endif
