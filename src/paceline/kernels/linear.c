/* bf16 rows times bf16 weights, for the few rows of a decode or verification pass: the weights come through the memory
 * once, fetched ahead while the rows are multiplied. A row's sum runs over pairs of inputs in order, in one place of one
 * register, whatever tile it falls into: it has the same bits among any others, and on any number of threads. No state,
 * no allocation. For processors that multiply bf16, but have no tiles of their own (oneDNN is better at those). */
#include "tile.h"

#ifdef TILES

INSIDE void store(bf16 *out, __m512 sum, const bf16 *bias) {
    if (bias) {
        __m512i added = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)bias));
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(added, 16)));
    }
    _mm256_storeu_si256((void *)out, (__m256i)_mm512_cvtneps_pbh(sum));
}

/* `rows` rows by one block. */
INSIDE void tile(const int rows, const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *out, long inputs, long outputs,
                 const bf16 *fetch, long share) {
    const bf16 *from[ROWS];
    __m512 sums[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) {
        from[r] = x + r * inputs;
        sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    }
    multiply(rows, from, weight, inputs, fetch, share, sums);
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
#define TILE(n) \
    case n: tile(n, from, weight, bias, to, inputs, outputs, soon, last ? 0 : share); break;
        FOR_ROWS(end - row, TILE)
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
