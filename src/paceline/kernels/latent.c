/* Attention of many requests over one key head that keeps latents (MLA, absorbed): the value is the first v_dim numbers
 * of the key. Four heads of one row are the unit of all arithmetic: every row goes through the same lines, four places
 * at a time, and what it does not see weighs exactly 0. So its bits are the same in any tile, whatever runs beside it,
 * on any number of threads. Rows of one request in a tile read each latent from memory once. No state, no allocation. */
#include "lanes.h"

enum {
    HEADS = 4,
    PLACES = 4, /* at a time: a vector is 4 places of 4 heads */
    ROWS = 4,   /* at most in a tile */
    AHEAD = 16  /* places between what is fetched and what is used */
};

/* What the four places' groups of lanes hold, turned by one place and by two. */
INLINE lanes turned(lanes x) { return PICK(words, x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11); }
INLINE lanes turned_twice(lanes x) { return PICK(words, x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7); }

/* Scores of four places: lane 4 * p + g is queries[g] . keys[p], `size` numbers each. */
INLINE lanes scores_of(const bf16 *queries, const bf16 *const *keys, long size, const int fetch) {
    lanes sums[LANES];
    UNROLL for (int i = 0; i < LANES; i++) sums[i] = (lanes){0};
    for (long i = 0; i < size; i += STEP) {
        words key[PLACES];
        UNROLL for (int p = 0; p < PLACES; p++) key[p] = load(keys[p] + i);
        if (fetch) UNROLL for (int p = 0; p < PLACES; p++) __builtin_prefetch(keys[AHEAD + p] + i);
        UNROLL for (int g = 0; g < HEADS; g++) {
            words query = load(queries + g * size + i);
            UNROLL for (int p = 0; p < PLACES; p++) sums[HEADS * p + g] = product(sums[HEADS * p + g], query, key[p]);
        }
    }
    return folded(sums);
}

/* In place, scores [length / 4] vectors to weights, of which the first `seen` places count: bf16 numbers in pairs of
 * places, pair j of head g at word 4 * j + g. Returns what to multiply by: 1 / sum of each head's weights. */
INLINE lanes softmax(float *scores, long seen, long length, float scale) {
    for (long i = HEADS * seen; i < HEADS * length; i++) scores[i] = -INFINITY;
    lanes most = at(scores), sum = {0};
    for (long i = LANES; i < HEADS * length; i += LANES) most = larger(at(scores + i), most);
    most = larger(turned(most), most);
    most = larger(turned_twice(most), most);
    for (long i = 0; i < HEADS * length; i += LANES) {
        float x[LANES];
        put(x, (at(scores + i) - most) * scale);
        for (int j = 0; j < LANES; j++) x[j] = quick_exp(x[j]);
        words weights = rounded(at(x));
        sum += (lanes)(weights << 16);
        words pairs = weights | (words)turned((lanes)weights) << 16; /* the second place beside the first */
        memcpy((bf16 *)scores + i, &pairs, 16);
        memcpy((bf16 *)scores + i + 8, (uint32_t *)&pairs + 8, 16);
    }
    sum += turned(sum);
    sum += turned_twice(sum);
    return 1 / sum;
}

/* out[r][g][0 .. 32 * blocks - 1] = the latents' numbers from `column` on, by the weights of head g of row r, over all
 * places in order. weights: `room` floats a row; rows * blocks is 2. */
INLINE void mix(const int rows, const int blocks, const bf16 *const *latents, const float *weights, long room, long length,
                const lanes *shares, long column, bf16 *out, long v_dim, long out_stride) {
    lanes sums[2][HEADS][2]; /* row and block, head, half of the columns */
    UNROLL for (int i = 0; i < 2; i++) UNROLL for (int g = 0; g < HEADS; g++) sums[i][g][0] = sums[i][g][1] = (lanes){0};
    for (long p = 0; p < length; p += 2) {
        words pairs[2][2];
        UNROLL for (int b = 0; b < blocks; b++) {
            halves x = (halves)load(latents[p] + column + STEP * b), y = (halves)load(latents[p + 1] + column + STEP * b);
            pairs[b][0] = (words)PICK(halves, x, y, 0, 32, 1, 33, 2, 34, 3, 35, 8, 40, 9, 41, 10, 42, 11, 43, 16, 48, 17,
                                      49, 18, 50, 19, 51, 24, 56, 25, 57, 26, 58, 27, 59);
            pairs[b][1] = (words)PICK(halves, x, y, 4, 36, 5, 37, 6, 38, 7, 39, 12, 44, 13, 45, 14, 46, 15, 47, 20, 52,
                                      21, 53, 22, 54, 23, 55, 28, 60, 29, 61, 30, 62, 31, 63);
        }
        UNROLL for (int r = 0; r < rows; r++) UNROLL for (int g = 0; g < HEADS; g++) {
            uint32_t pair;
            memcpy(&pair, (const bf16 *)(weights + r * room) + HEADS * p + 2 * g, 4);
            words weight = (words){0} + pair;
            UNROLL for (int b = 0; b < blocks; b++) UNROLL for (int i = 0; i < 2; i++)
                sums[r + b][g][i] = product(sums[r + b][g][i], weight, pairs[b][i]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int g = 0; g < HEADS; g++) UNROLL for (int b = 0; b < blocks; b++) {
        float share = shares[r][g];
        lanes x = sums[r + b][g][0] * share, y = sums[r + b][g][1] * share;
        bf16 *to = out + r * out_stride + g * v_dim + STEP * b;
        store(to, PICK(words, x, y, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23));
        store(to + LANES, PICK(words, x, y, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31));
    }
}

/* Four heads of `rows` rows, the first of which sees `seen` latents, each next one more. */
static void attend_tile(long rows, const bf16 *q, long q_stride, const bf16 *const *latents, long seen, float *weights,
                        long room, bf16 *out, long out_stride, long k_dim, long v_dim, float scale) {
    long length = (seen + rows - 1 + PLACES - 1) / PLACES * PLACES;
    lanes shares[ROWS];
    for (long p = 0; p < length; p += PLACES) {
        put(weights + HEADS * p, scores_of(q, latents + p, k_dim, 1));
        for (long r = 1; r < rows; r++)
            put(weights + r * room + HEADS * p, scores_of(q + r * q_stride, latents + p, k_dim, 0));
    }
    for (long r = 0; r < rows; r++) shares[r] = softmax(weights + r * room, seen + r, length, scale);
    for (long c = 0; c < v_dim; c += 2 * STEP) {
        long r = 0;
#define MIX(rows, blocks, column)                                                                                     \
    mix(rows, blocks, latents, weights + r * room, room, length, shares + r, column, out + r * out_stride + (column), \
        v_dim, out_stride)
        for (; r + 2 <= rows; r += 2) {
            MIX(2, 1, c);
            MIX(2, 1, c + STEP);
        }
        if (r < rows) MIX(1, 2, c);
#undef MIX
    }
}

typedef struct {
    const bf16 *q, *keys;
    bf16 *out;
    const int64_t *starts, *context, *first, *tables, *blocks;
    long requests, heads, q_stride, k_dim, v_dim, block_size, longest;
    float scale;
} Pass;

/* Where the latents of the places begin .. end - 1 lie; what is read beyond them, or fetched ahead, is the last again. */
static void find_latents(const Pass *pass, long request, long begin, long end, const bf16 **latents) {
    const int64_t *table = pass->blocks + pass->tables[request];
    long size = pass->block_size, n = 0;
    for (long place = begin; place < end;) {
        long block = place / size, stop = (block + 1) * size < end ? (block + 1) * size : end;
        const bf16 *at = pass->keys + (table[block] * size + place % size) * pass->k_dim;
        for (; place < stop; place++, at += pass->k_dim) latents[n++] = at;
    }
    for (int i = 0; i < AHEAD + 2 * PLACES; i++) latents[n + i] = latents[n - 1];
}

/* The rows row .. row + rows - 1 of a request; below `first` there is one, which sees itself. */
static void attend_rows(const Pass *pass, long request, long row, long rows, const bf16 **latents, float *weights) {
    long end = pass->context[request] + row + 1, first = pass->first[request];
    long begin = first < end ? first : end - 1, at = pass->starts[request] + row;
    long out_stride = pass->heads * pass->v_dim, room = HEADS * (pass->longest + PLACES);
    find_latents(pass, request, begin, end + rows - 1, latents);
    for (long h = 0; h < pass->heads; h += HEADS)
        attend_tile(rows, pass->q + at * pass->q_stride + h * pass->k_dim, pass->q_stride, latents, end - begin, weights, room,
                    pass->out + at * out_stride + h * pass->v_dim, out_stride, pass->k_dim, pass->v_dim, pass->scale);
}

/* Tiles of at most `tile` rows, as they come: `next` is the number of the next one that nobody took. */
static void attend_tiles(const Pass *pass, long *next, long tile, const bf16 **latents, float *weights) {
    long number = 0, mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    for (long r = 0; r < pass->requests; r++) {
        long rows, end = pass->starts[r + 1] - pass->starts[r];
        for (long row = 0; row < end; row += rows, number++) {
            rows = tile < end - row ? tile : end - row;
            if (pass->first[r] > pass->context[r] + row) rows = 1;
            if (number != mine) continue;
            attend_rows(pass, r, row, rows, latents, weights);
            mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
        }
    }
}

/* q [rows, heads, k_dim], rows `q_stride` apart; keys [slots, k_dim]; out [rows, heads, v_dim]. k_dim is a multiple of
 * 32, v_dim of 64, heads of 4; scale is above 0. Request r owns the rows starts[r] .. starts[r + 1], which lie at the
 * places from context[r] on; place p is in slot blocks[tables[r] + p / block_size] * block_size + p % block_size. A row
 * sees the places first[r] .. its own (itself at least); `longest`: the most that any may see. tile: rows of a request
 * that are read for together, at most 4. scratch: for each thread 2 * (longest + 24) + 16 * (longest + 4) floats. */
void attend_latent(const bf16 *q, const bf16 *keys, bf16 *out, const int64_t *starts, const int64_t *context,
                   const int64_t *first, const int64_t *tables, const int64_t *blocks, float *scratch, long requests,
                   long heads, long q_stride, long k_dim, long v_dim, long block_size, long longest, float scale,
                   long tile, int threads) {
    const Pass pass = {q,     keys,     out,   starts, context,    first,   tables, blocks, requests,
                       heads, q_stride, k_dim, v_dim,  block_size, longest, scale};
    long pointers = longest + AHEAD + 2 * PLACES, room = 2 * pointers + ROWS * HEADS * (longest + PLACES), next = 0;
    if (threads == 1) { /* a team of one would cost a microsecond */
        attend_tiles(&pass, &next, tile, (const bf16 **)scratch, scratch + 2 * pointers);
        return;
    }
#pragma omp parallel for num_threads(threads)
    for (int t = 0; t < threads; t++)
        attend_tiles(&pass, &next, tile, (const bf16 **)(scratch + t * room), scratch + t * room + 2 * pointers);
}
