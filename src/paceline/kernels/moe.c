/* Gated MLPs in one call: the experts of a mixture that some row chose, each for its rows only, and those that all rows
 * share. A row's inner numbers are sums over pairs of inputs in order, and its outputs sums over pairs of inner numbers
 * in order, expert by expert: each in one place of one register, or kept in memory as it was there; or, in int8, of whole
 * numbers, an expert's at a time. So a row has the same bits among any others, in any tile, on any number of threads. No
 * state, no allocation. */
#include "quick_exp.h"
#include "tile.h"

#ifdef TILES
#include "native.h"

enum { WIDTH = OUTPUTS / 2 }; /* inner numbers a block makes: 16 gates beside 16 values */

/* Sorts the pairs by expert. The experts behind the first `experts` are everybody's. */
static void sort_pairs(const Mixture *m) {
    memset(m->ends, 0, (m->all + 1) * sizeof *m->ends);
    for (long r = 0; r < m->rows; r++)
        for (long e = 0; e < m->experts; e++) m->ends[e + 1] += m->shares[r * m->experts + e] != 0;
    for (long e = 0; e < m->all; e++) m->ends[e + 1] = m->ends[e] + (e < m->experts ? m->ends[e + 1] : m->rows);
    for (long r = 0; r < m->rows; r++) /* ends[e] moves from where the expert's pairs begin to where they end */
        for (long e = 0; e < m->all; e++)
            if (e >= m->experts || m->shares[r * m->experts + e] != 0) m->chosen[m->ends[e]++] = r;
}

static long first_pair(const Mixture *m, long e) { return e ? m->ends[e - 1] : 0; }

/* The inner numbers of `rows` pairs: silu(gate) * value * share. */
INSIDE void make_inner(const int codes, const int rows, const Mixture *m, long expert, long pair, const byte *weight,
                       const byte *fetch, long share, bf16 *out) {
    const bf16 *x[ROWS];
    __m512 sums[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) {
        x[r] = m->x + m->chosen[pair + r] * m->hidden;
        sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    }
    multiply(codes, rows, x, weight, m->hidden, fetch, share, sums);
    UNROLL for (int r = 0; r < rows; r++) {
        float gates[WIDTH], values[WIDTH];
        float factor = expert < m->experts ? m->shares[m->chosen[pair + r] * m->experts + expert] : 1;
        _mm512_storeu_ps(gates, sums[r][0]);
        _mm512_storeu_ps(values, sums[r][1]);
#pragma omp simd
        for (int i = 0; i < WIDTH; i++) {
            float g = gates[i];
            out[r * m->width + i] = down(g / (1 + quick_exp(-g < 88 ? -g : 88)) * values[i] * factor);
        }
    }
}

/* Adds `rows` pairs' part of 32 outputs to what their rows' sums are. */
INSIDE void add_outputs(const int codes, const int rows, const Mixture *m, long pair, const byte *weight,
                        const byte *fetch, long share, float *all) {
    const bf16 *x[ROWS];
    __m512 sums[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) {
        const float *at = all + m->chosen[pair + r] * OUTPUTS;
        x[r] = m->inner + (pair + r) * m->width;
        sums[r][0] = _mm512_loadu_ps(at), sums[r][1] = _mm512_loadu_ps(at + OUTPUTS / 2);
    }
    multiply(codes, rows, x, weight, m->width, fetch, share, sums);
    UNROLL for (int r = 0; r < rows; r++) {
        float *at = all + m->chosen[pair + r] * OUTPUTS;
        _mm512_storeu_ps(at, sums[r][0]), _mm512_storeu_ps(at + OUTPUTS / 2, sums[r][1]);
    }
}

/* The blocks begin .. end - 1 of an expert's first or second product, for all its pairs: as many rows at once as stay in
 * the cache, in tiles as even as they can be. next: the weights that come after these. */
INSIDE void run_some(const int codes, const Mixture *m, long expert, int second, long begin, long end, const byte *next) {
    long inputs = second ? m->width : m->hidden, blocks = second ? m->hidden / OUTPUTS : m->width / WIDTH;
    long size = block_bytes(codes, inputs);
    long most = AT_ONCE / inputs > ROWS ? AT_ONCE / inputs / ROWS * ROWS : ROWS;
    const byte *weights = (const byte *)(second ? m->down : m->gate_up) + expert * blocks * size;
    for (long from = first_pair(m, expert), count; from < m->ends[expert]; from += count) {
        count = most < m->ends[expert] - from ? most : m->ends[expert] - from;
        long tiles = (count + ROWS - 1) / ROWS, share = STEP / tiles;
        for (long b = begin; b < end; b++) {
            const byte *weight = weights + b * size;
            const byte *fetch = b + 1 == end ? next : weight + (tiles == 1 && size > AHEAD ? AHEAD : size);
            for (long t = 0, pair = from, stop; t < tiles; t++, pair = stop, fetch += share * steps_of(codes, inputs)) {
                stop = from + count * (t + 1) / tiles;
                if (second) {
                    float *sums = m->sums + b * m->rows * OUTPUTS;
#define ADD(n) \
    case n: add_outputs(codes, n, m, pair, weight, fetch, share, sums); break;
                    FOR_ROWS(stop - pair, ADD)
                } else {
                    bf16 *inner = m->inner + pair * m->width + b * WIDTH;
#define MAKE(n) \
    case n: make_inner(codes, n, m, expert, pair, weight, fetch, share, inner); break;
                    FOR_ROWS(stop - pair, MAKE)
                }
            }
        }
    }
}

static void run(const Mixture *m, long expert, int second, long begin, long end, const byte *next) {
    if (m->codes)
        run_some(1, m, expert, second, begin, end, next);
    else
        run_some(0, m, expert, second, begin, end, next);
}

/* The next expert that a row chose, or `all`. */
static long next_expert(const Mixture *m, long e) {
    do e++;
    while (e < m->all && m->ends[e] == first_pair(m, e));
    return e;
}

/* One thread's part of the inner numbers: the blocks that begin in its part of the work, which is rows, and a little
 * for the weights themselves. */
static void make_part(const Mixture *m, long part, long parts) {
    long blocks = m->width / WIDTH, total = 0, before = 0, e;
#define COST (m->ends[e] - first_pair(m, e) + 4)
    for (e = next_expert(m, -1); e < m->all; e = next_expert(m, e)) total += blocks * COST;
    long low = total * part / parts, high = total * (part + 1) / parts;
    for (e = next_expert(m, -1); e < m->all && before < high; before += blocks * COST, e = next_expert(m, e)) {
        long begin = low > before ? (low - before + COST - 1) / COST : 0, end = (high - before + COST - 1) / COST;
        if (begin >= blocks) continue;
        const byte *next = (const byte *)m->down + m->hidden / OUTPUTS * part / parts * block_bytes((int)m->codes, m->width);
        if (end >= blocks && next_expert(m, e) < m->all)
            next = (const byte *)m->gate_up + next_expert(m, e) * blocks * block_bytes((int)m->codes, m->hidden);
        run(m, e, 0, begin, end < blocks ? end : blocks, next);
    }
#undef COST
}

/* One thread's part of the outputs, of all experts. */
static void add_part(const Mixture *m, const Team *team) {
    long blocks = m->hidden / OUTPUTS, begin = rows_of(team, blocks).begin, end = rows_of(team, blocks).end;
    memset(m->sums + begin * m->rows * OUTPUTS, 0, (end - begin) * m->rows * OUTPUTS * sizeof *m->sums);
    for (long e = next_expert(m, -1), next; e < m->all; e = next) {
        next = next_expert(m, e);
        long soon = next < m->all ? next : e;
        run(m, e, 1, begin, end, (const byte *)m->down + (soon * blocks + begin) * block_bytes((int)m->codes, m->width));
    }
    for (long b = begin; b < end; b++)
        for (long r = 0; r < m->rows; r++) {
            const float *sums = m->sums + (b * m->rows + r) * OUTPUTS;
            bf16 *out = m->out + r * m->hidden + b * OUTPUTS, made[OUTPUTS];
#pragma omp simd
            for (int i = 0; i < OUTPUTS; i++) made[i] = down(sums[i]);
#pragma omp simd
            for (int i = 0; i < OUTPUTS; i++) out[i] = m->onto ? down(up(out[i]) + up(made[i])) : made[i];
        }
}

/* Before, each thread has made its rows of x and shares; afterwards each thread has its part of the outputs of all rows. */
HIDDEN void experts_part(const Mixture *m, const Team *team) {
    Rows mine = rows_of(team, m->rows);
    for (long r = mine.begin; m->codes && r < mine.end; r++) code_row(m->x + r * m->hidden, m->hidden);
    if (last_to_come(team)) {
        sort_pairs(m);
        part_again(team);
    }
    make_part(m, team->part, team->parts);
    meet(team);
    if (m->codes) {
        mine = rows_of(team, m->ends[m->all - 1]);
        for (long p = mine.begin; p < mine.end; p++) code_row(m->inner + p * m->width, m->width);
        meet(team);
    }
    add_part(m, team);
}

/* x [rows, hidden] to out [rows, hidden]: the sum of each expert's down(silu(gate x) * up x * share) for those whose
 * share of the row is not 0, in order. shares [rows, experts]; the experts from `experts` on are everybody's, at 1.
 * gate_up [all, width / 16, a block of hidden inputs], 16 gates beside 16 ups; down [all, hidden / 32, a block of width
 * inputs]; blocks and codes as packed_linear has them. Room for P pairs of an expert and a row that chose it: inner P *
 * width, numbers all + 1 + P; sums rows * hidden. */
void gated_experts(bf16 *x, const float *shares, const void *gate_up, const void *down, bf16 *out, bf16 *inner,
                   float *sums, int32_t *numbers, long rows, long hidden, long width, long experts, long all, int codes,
                   int threads) {
    const Mixture m = {x,    gate_up, down,  shares,  out, inner, sums, numbers, numbers + all + 1,
                       rows, hidden,  width, experts, all, codes, 0};
    TOGETHER(threads, experts_part(&m, team));
}
#endif
