/* bf16 rows times int8 weights with one scale an output. A decode step reads every weight once and does little else, so
 * the weights are read as they lie, widened in registers, and fetched ahead of their use.
 *
 * A row's sum runs over its inputs in an order that is written down here (32 at a time, lane by lane, then the lanes),
 * whatever tile it falls into: it has the same bits among any others. No state, no allocation; the outputs are cut
 * between threads, where the compiler and the process have OpenMP. For processors that multiply bf16 themselves; on
 * others torch has its own kernel. */
#include "bf16.h"

#ifdef __AVX512BF16__
#include <immintrin.h>

#define INSIDE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum {
    ROWS = 6,
    OUTPUTS = 4,
    STEP = 32,
    AHEAD = 16384,  /* bytes; measured: less leaves the memory idle */
    AT_ONCE = 1 << 18 /* numbers of x that stay in the cache while all weights pass by */
};

typedef __m512 sums;
typedef __m512bh numbers;

INSIDE numbers widen(__m128i low, __m128i high) { /* whole numbers up to 127 are exact in bf16 */
    return _mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high)),
                               _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low)));
}
INSIDE numbers weights_at(const int8_t *w, long left) {
    if (left >= STEP) return widen(_mm_loadu_si128((const void *)w), _mm_loadu_si128((const void *)(w + 16)));
    __mmask32 mask = ((__mmask32)1 << left) - 1;
    return widen(_mm_maskz_loadu_epi8((__mmask16)mask, w), _mm_maskz_loadu_epi8((__mmask16)(mask >> 16), w + 16));
}
INSIDE numbers inputs_at(const bf16 *x, long left) {
    __mmask32 mask = left >= STEP ? ~(__mmask32)0 : ((__mmask32)1 << left) - 1;
    return (numbers)_mm512_maskz_loadu_epi16(mask, x);
}
INSIDE sums zero(void) { return _mm512_setzero_ps(); }
INSIDE sums add(sums s, numbers x, numbers w) { return _mm512_dpbf16_ps(s, x, w); }
INSIDE float total(sums s) { return _mm512_reduce_add_ps(s); }

INSIDE void tile(const bf16 *x, const int8_t *weight, const float *scale, const bf16 *bias, bf16 *out, long inputs, long outputs,
                 const int rows, const int columns) {
    sums s[ROWS][OUTPUTS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) s[r][c] = zero();
    for (long k = 0; k < inputs; k += STEP) {
        numbers w[OUTPUTS];
        UNROLL for (int c = 0; c < columns; c++) w[c] = weights_at(weight + c * inputs + k, inputs - k);
        /* the tiles to come lie behind this one: one stream of lines, wherever its own columns are */
        for (int line = 0; line < columns * STEP; line += 64)
            __builtin_prefetch(weight + AHEAD + columns * k + line, 0, 2);
        UNROLL for (int r = 0; r < rows; r++) {
            numbers v = inputs_at(x + r * inputs + k, inputs - k);
            UNROLL for (int c = 0; c < columns; c++) s[r][c] = add(s[r][c], v, w[c]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < columns; c++) {
            float y = total(s[r][c]) * scale[c];
            out[r * outputs + c] = down(bias ? y + up(bias[c]) : y);
        }
}

INSIDE void column(const bf16 *x, const int8_t *weight, const float *scale, const bf16 *bias, bf16 *out, long rows, long inputs,
                   long outputs, const int columns) {
    for (; rows >= ROWS; rows -= ROWS, x += ROWS * inputs, out += ROWS * outputs)
        tile(x, weight, scale, bias, out, inputs, outputs, ROWS, columns);
    switch (rows) {
    case 5: tile(x, weight, scale, bias, out, inputs, outputs, 5, columns); break;
    case 4: tile(x, weight, scale, bias, out, inputs, outputs, 4, columns); break;
    case 3: tile(x, weight, scale, bias, out, inputs, outputs, 3, columns); break;
    case 2: tile(x, weight, scale, bias, out, inputs, outputs, 2, columns); break;
    case 1: tile(x, weight, scale, bias, out, inputs, outputs, 1, columns); break;
    }
}

static void columns(const bf16 *x, const int8_t *weight, const float *scale, const bf16 *bias, bf16 *out, long rows, long inputs,
                    long outputs, long begin, long end) {
    long most = AT_ONCE / inputs / ROWS * ROWS, count;
    for (long r = 0; r < rows; r += count, x += count * inputs, out += count * outputs) {
        count = most < ROWS ? ROWS : most;
        count = count < rows - r ? count : rows - r;
        long n = begin;
        for (; n + OUTPUTS <= end; n += OUTPUTS)
            column(x, weight + n * inputs, scale + n, bias ? bias + n : 0, out + n, count, inputs, outputs, OUTPUTS);
        for (; n < end; n++)
            column(x, weight + n * inputs, scale + n, bias ? bias + n : 0, out + n, count, inputs, outputs, 1);
    }
}

/* x [rows, inputs], weight [outputs, inputs], scale [outputs] and bias [outputs] (or none) to out [rows, outputs] =
 * x weight^T * scale + bias. */
void int8_linear(const bf16 *x, const int8_t *weight, const float *scale, const bf16 *bias, bf16 *out, long rows, long inputs,
                 long outputs, int threads) {
    long share = (outputs + threads * OUTPUTS - 1) / (threads * OUTPUTS) * OUTPUTS;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int t = 0; t < threads; t++)
        columns(x, weight, scale, bias, out, rows, inputs, outputs, t * share, (t + 1) * share < outputs ? (t + 1) * share : outputs);
}
#endif
