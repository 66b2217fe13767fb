/* bf16 rows times weights in bf16 or int8, for the few rows of a decode or verification pass: the weights come through
 * the memory once, fetched ahead while the rows are multiplied. A row's sum runs over pairs of inputs in order, in one
 * place of one register, whatever tile it falls into; or, in int8, over whole numbers. It has the same bits among any
 * others, and on any number of threads. No state, no allocation. */
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
INSIDE void tile(const int codes, const int rows, const bf16 *x, const byte *weight, const bf16 *bias, bf16 *out,
                 long inputs, long outputs, const byte *fetch, long share) {
    const bf16 *from[ROWS];
    __m512 sums[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) {
        from[r] = x + r * inputs;
        sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    }
    multiply(codes, rows, from, weight, inputs, fetch, share, sums);
    UNROLL for (int r = 0; r < rows; r++) {
        store(out + r * outputs, sums[r][0], bias);
        store(out + r * outputs + OUTPUTS / 2, sums[r][1], bias ? bias + OUTPUTS / 2 : 0);
    }
}

/* All rows by one block, in tiles as even as they can be; together they fetch one block. last: nothing follows. */
INSIDE void block(const int codes, const bf16 *x, const byte *weight, const bf16 *bias, bf16 *out, long rows, long inputs,
                  long outputs, int last) {
    long tiles = (rows + ROWS - 1) / ROWS, size = block_bytes(codes, inputs), share = STEP / tiles;
    const byte *fetch = weight + (tiles == 1 && size > AHEAD ? AHEAD : size);
    for (long t = 0, row = 0; t < tiles; t++, fetch += share * steps_of(codes, inputs)) {
        long end = rows * (t + 1) / tiles;
        const bf16 *from = x + row * inputs;
        const byte *soon = last ? weight : fetch;
        bf16 *to = out + row * outputs;
#define TILE(n) \
    case n: tile(codes, n, from, weight, bias, to, inputs, outputs, soon, last ? 0 : share); break;
        FOR_ROWS(end - row, TILE)
        row = end;
    }
}

INSIDE void blocks(const int codes, const bf16 *x, const byte *weight, const bf16 *bias, bf16 *out, long rows, long inputs,
                   long outputs, long begin, long end) {
    long most = AT_ONCE / inputs > ROWS ? AT_ONCE / inputs / ROWS * ROWS : ROWS, count;
    for (long r = 0; r < rows; r += count, x += count * inputs, out += count * outputs) {
        count = most < rows - r ? most : rows - r;
        for (long b = begin; b < end; b++)
            block(codes, x, weight + b * block_bytes(codes, inputs), bias ? bias + b * OUTPUTS : 0, out + b * OUTPUTS, count,
                  inputs, outputs, b + 1 == end);
    }
}

/* One thread's part of the blocks. */
static void some_blocks(int codes, const bf16 *x, const byte *weight, const bf16 *bias, bf16 *out, long rows, long inputs,
                        long outputs, long part, long parts) {
    long count = outputs / OUTPUTS, begin = count * part / parts, end = count * (part + 1) / parts;
    if (codes)
        blocks(1, x, weight, bias, out, rows, inputs, outputs, begin, end);
    else
        blocks(0, x, weight, bias, out, rows, inputs, outputs, begin, end);
}

/* x [rows, inputs], weight [outputs / 32, bytes of a block] and bias [outputs] (or none) to out [rows, outputs] =
 * x weight^T + bias. A block: numbers [inputs / 2, 32, 2]; or, with codes, 128 times minus the sum of each output's codes
 * in int32 [32], scales in float32 [32], codes [inputs / 4, 32, 4]. Then x is lost: its rows become codes where they lie. */
void packed_linear(bf16 *x, const void *weight, const bf16 *bias, bf16 *out, long rows, long inputs, long outputs,
                   int codes, int threads) {
    for (long r = 0; codes && r < rows; r++) code_row(x + r * inputs, inputs);
    if (threads == 1) { /* a team of one would cost a microsecond */
        some_blocks(codes, x, weight, bias, out, rows, inputs, outputs, 0, 1);
        return;
    }
#pragma omp parallel for num_threads(threads)
    for (int t = 0; t < threads; t++) some_blocks(codes, x, weight, bias, out, rows, inputs, outputs, t, threads);
}
#endif
