/* Up to 12 rows times 32 outputs of a weight, with all sums in registers: what products are made of. Rows and weights
 * are bf16 numbers, or both are codes: whole numbers in one byte, with a scale a row and a scale an output. */
#include "bf16.h"

#ifdef TILES
#include <immintrin.h>

#define INSIDE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum {
    ROWS = 12,        /* at most in a tile: 24 sums in registers */
    OUTPUTS = 32,     /* a block: two vectors */
    STEP = 128,       /* bytes of weights for 4 bytes of each row: two numbers, or four codes */
    SCALES = 256,     /* bytes before a block of codes: what each sum starts from, and each output's scale */
    AHEAD = 1 << 14,  /* bytes of weights */
    AT_ONCE = 1 << 18 /* numbers of x that stay in the cache while all weights pass by */
};

/* AMD's processors multiply two pairs of bf16 numbers a lane and cycle; Intel's half a pair, and two numbers of 32 bits. */
enum { PAIRS_ARE_QUICK = MADE_BY_AMD, AT_A_TIME = 256 /* numbers of a row in 32 bits, in the first cache */ };

/* Where lines are fetched to. What one tile reads need not drive out what the host works with; but only AMD's processors
 * then find it in the third cache the next time: Intel's go to memory, for a fifth of the bytes a second, and are
 * quickest where the few rows of a decode step have it in the first cache. */
enum { SECOND = 2, FIRST = 3, READ_ONCE = MADE_BY_AMD ? 0 : FIRST };

typedef uint8_t byte;

/* A tile's rows are known when it is compiled, and whether they are codes. */
#define FOR_ROWS(count, TILE)                                                                                       \
    switch (count) {                                                                                                \
        TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) \
    }

INSIDE long steps_of(int codes, long inputs) { return inputs / (codes ? 4 : 2); }
INSIDE long block_bytes(int codes, long inputs) { return (codes ? SCALES : 0) + STEP * steps_of(codes, inputs); }

/* sum + x w, over the two or four inputs of each lane. Written out, for gcc may move sums to other registers, and to
 * memory, around the instructions that it knows: half as fast. */
INSIDE __m512i add_products(const int codes, __m512i sum, __m512i x, __m512i w) {
    if (codes)
        __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    else
        __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}

/* sum + the whole numbers' part of it: times the scales of a row and of 16 outputs. */
INSIDE __m512 scaled(__m512 sum, __m512i part, const byte *row_scale, const byte *scales) {
    float scale;
    memcpy(&scale, row_scale, 4);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(part), _mm512_set1_ps(scale) * _mm512_loadu_ps(scales), sum);
}

INSIDE __m512 widened(const bf16 *x) {
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

/* The weights to come, of which `share` bytes are fetched a step. */
INSIDE void fetch_ahead(const int rows, const byte *fetch, long share) {
    UNROLL for (long line = 0; line < 2; line++) {
        if (rows <= ROWS / 2) __builtin_prefetch(fetch + line * (share / 2), 0, READ_ONCE);
        else __builtin_prefetch(fetch + line * (share / 2), 0, SECOND);
    }
}

/* As `multiply`, where the processor multiplies pairs of numbers, or four codes, at full speed. */
INSIDE void multiply_together(const int codes, const int rows, const bf16 *const *x, const byte *weight, long inputs,
                              const byte *fetch, long share, __m512 (*sums)[2]) {
    const byte *scales = weight + SCALES / 2;
    __m512i parts[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < 2; c++)
        parts[r][c] = codes ? _mm512_loadu_si512(weight + c * SCALES / 4) : _mm512_castps_si512(sums[r][c]);
    if (codes) weight += SCALES;
    for (long k = 0; k < steps_of(codes, inputs); k++, weight += STEP, fetch += share) {
        __m512i low = _mm512_loadu_si512(weight), high = _mm512_loadu_si512(weight + STEP / 2);
        fetch_ahead(rows, fetch, share);
        UNROLL for (int r = 0; r < rows; r++) {
            int some;
            memcpy(&some, x[r] + 2 * k, 4);
            __m512i v = _mm512_set1_epi32(some);
            parts[r][0] = add_products(codes, parts[r][0], v, low);
            parts[r][1] = add_products(codes, parts[r][1], v, high);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < 2; c++)
        sums[r][c] = codes ? scaled(sums[r][c], parts[r][c], (const byte *)x[r] + inputs, scales + c * SCALES / 4)
                           : _mm512_castsi512_ps(parts[r][c]);
}

/* The numbers from .. end - 1 of each row in 32 bits. */
INSIDE void widen_rows(const int rows, const bf16 *const *x, long from, long end, float (*wide)[AT_A_TIME]) {
    for (int r = 0; r < rows; r++) {
        long i = from;
        for (; i + 16 <= end; i += 16) _mm512_storeu_ps(wide[r] + i - from, widened(x[r] + i));
        for (; i < end; i++) wide[r][i - from] = up(x[r][i]);
    }
}

/* As `multiply`, of numbers, one after the other in 32 bits. */
INSIDE void multiply_wide(const int rows, const bf16 *const *x, const byte *weight, long inputs, const byte *fetch,
                          long share, __m512 (*sums)[2]) {
    float wide[ROWS][AT_A_TIME];
    const __m512i odd = _mm512_set1_epi32((int)0xFFFF0000);
    for (long from = 0, end; from < inputs; from = end) {
        end = from + AT_A_TIME < inputs ? from + AT_A_TIME : inputs;
        widen_rows(rows, x, from, end, wide);
        for (long i = 0; i < end - from; i += 2, weight += STEP, fetch += share) {
            __m512i low = _mm512_loadu_si512(weight), high = _mm512_loadu_si512(weight + STEP / 2);
            __m512 w[4] = {(__m512)_mm512_slli_epi32(low, 16), (__m512)_mm512_slli_epi32(high, 16),
                           (__m512)_mm512_and_si512(low, odd), (__m512)_mm512_and_si512(high, odd)};
            fetch_ahead(rows, fetch, share);
            UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < 4; c++)
                sums[r][c & 1] = _mm512_fmadd_ps(_mm512_set1_ps(wide[r][i + c / 2]), w[c], sums[r][c & 1]);
        }
    }
}

/* sums[r] += x[r] times one block: numbers [inputs / 2, 32, 2], over pairs of inputs in order; or codes [inputs / 4, 32,
 * 4] behind their scales, whose products are whole numbers, so that any order is as good. A row's codes are 128 too large:
 * a sum starts from what takes that back. fetch: where the weights to come lie; `share` bytes of them are fetched a step. */
INSIDE void multiply(const int codes, const int rows, const bf16 *const *x, const byte *weight, long inputs,
                     const byte *fetch, long share, __m512 (*sums)[2]) {
    if (codes || PAIRS_ARE_QUICK)
        multiply_together(codes, rows, x, weight, inputs, fetch, share, sums);
    else
        multiply_wide(rows, x, weight, inputs, fetch, share, sums);
}

/* A row of n numbers, a multiple of 16, to codes where they lay, n bytes, and then its scale: x / scale + 128, and the
 * largest x becomes 127 + 128. */
INSIDE void code_row(bf16 *row, long n) {
    __m512 most = _mm512_setzero_ps();
    for (long i = 0; i < n; i += 16) most = _mm512_max_ps(_mm512_abs_ps(widened(row + i)), most);
    float scale = _mm512_reduce_max_ps(most) / 127;
    __m512 factor = _mm512_set1_ps(scale > 1e-30f ? 1 / scale : 0);
    for (long i = 0; i < n; i += 16) {
        __m512i codes = _mm512_add_epi32(_mm512_cvtps_epi32(widened(row + i) * factor), _mm512_set1_epi32(128));
        _mm_storeu_si128((void *)((byte *)row + i), _mm512_cvtepi32_epi8(codes));
    }
    memcpy(row + n / 2, &scale, 4);
}
#endif
