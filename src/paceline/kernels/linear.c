/* bf16 rows times weights in bf16 or int8, for the few rows of a decode or verification pass: the weights come through
 * the memory once, fetched ahead while the rows are multiplied. A row's sum runs over pairs of inputs in order, in one
 * place of one register, whatever tile it falls into; or, in int8, over whole numbers. It has the same bits among any
 * others, and on any number of threads. No state, no allocation. */
#include "tile.h"

#ifdef TILES
#include "native.h"

INSIDE void store(bf16 *out, __m512 sum, const bf16 *bias) {
    if (bias) {
        __m512i added = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)bias));
        sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(added, 16)));
    }
    _mm256_storeu_si256((void *)out, (__m256i)_mm512_cvtneps_pbh(sum));
}

/* The rows from `row` on by the block that makes the outputs from `output` on. */
INSIDE void tile(const int codes, const int rows, const Product *p, long row, long output, const byte *weight,
                 const byte *fetch, long share) {
    const bf16 *from[ROWS], *bias = p->bias ? p->bias + output : 0;
    __m512 sums[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) {
        from[r] = p->x + (row + r) * p->inputs;
        sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    }
    multiply(codes, rows, from, weight, p->inputs, fetch, share, sums);
    UNROLL for (int r = 0; r < rows; r++) {
        bf16 *to = p->out + (row + r) * p->outputs + output;
        store(to, sums[r][0], bias);
        store(to + OUTPUTS / 2, sums[r][1], bias ? bias + OUTPUTS / 2 : 0);
    }
}

/* The rows row .. end - 1 by one block, in tiles as even as they can be; together they fetch one block. last: nothing
 * follows. */
INSIDE void block(const int codes, const Product *p, long row, long end, long output, const byte *weight, int last) {
    long rows = end - row, from = row, tiles = (rows + ROWS - 1) / ROWS, size = block_bytes(codes, p->inputs);
    long share = STEP / tiles;
    const byte *fetch = weight + (tiles == 1 && size > AHEAD ? AHEAD : size);
    for (long t = 0; t < tiles; t++, fetch += share * steps_of(codes, p->inputs)) {
        long stop = from + rows * (t + 1) / tiles;
        const byte *soon = last ? weight : fetch;
#define TILE(n) \
    case n: tile(codes, n, p, row, output, weight, soon, last ? 0 : share); break;
        FOR_ROWS(stop - row, TILE)
        row = stop;
    }
}

INSIDE void blocks(const int codes, const Product *p, long begin, long end) {
    long most = AT_ONCE / p->inputs > ROWS ? AT_ONCE / p->inputs / ROWS * ROWS : ROWS, count;
    for (long r = 0; r < p->rows; r += count) {
        count = most < p->rows - r ? most : p->rows - r;
        for (long b = begin; b < end; b++)
            block(codes, p, r, r + count, b * OUTPUTS, (const byte *)p->weight + b * block_bytes(codes, p->inputs),
                  b + 1 == end);
    }
}

/* One thread's part of a product; where the weight has codes, all its rows become codes first. */
HIDDEN void linear_part(const Product *p, const Team *team) {
    Rows part = rows_of(team, p->outputs / OUTPUTS);
    if (!p->codes) {
        blocks(0, p, part.begin, part.end);
        return;
    }
    for (Rows r = rows_of(team, p->rows); r.begin < r.end; r.begin++) code_row(p->x + r.begin * p->inputs, p->inputs);
    meet(team);
    blocks(1, p, part.begin, part.end);
}

/* x [rows, inputs], weight [outputs / 32, bytes of a block] and bias [outputs] (or none) to out [rows, outputs] =
 * x weight^T + bias. A block: numbers [inputs / 2, 32, 2]; or, with codes, 128 times minus the sum of each output's codes
 * in int32 [32], scales in float32 [32], codes [inputs / 4, 32, 4]. Then x is lost: its rows become codes where they lie. */
void packed_linear(bf16 *x, const void *weight, const bf16 *bias, bf16 *out, long rows, long inputs, long outputs,
                   int codes, int threads) {
    const Product p = {x, weight, bias, out, rows, inputs, outputs, codes};
    TOGETHER(threads, linear_part(&p, team));
}
#endif
