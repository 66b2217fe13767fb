/* Attention of many requests over keys and values of several heads, in pages. A query is the unit of all arithmetic:
 * every row goes through the same lines, sixteen places at a time for its scores and two for the mixture (one where
 * factors are wide), and what it does not see weighs exactly 0. So its bits are the same in any tile, whatever runs
 * beside it, on any number of threads. Queries of one key head in a tile read each key and value from memory once. No
 * state, no allocation. */
#include "lanes.h"
#include "team.h"

enum {
    PLACES = LANES, /* at a time */
    QUERIES = 16,   /* at most that read a place one after the other: of one key head, or of several as they lie */
    MIXED = 4,      /* of a key head, at most, that are mixed together */
    AHEAD = 16,     /* places between what is fetched and what is used */
#ifdef WIDE
    SCORED = 4, SIDE = 4 /* queries and places whose scores are made together: a key and a query become factors once */
#else
    SCORED = 2, SIDE = 1
#endif
};

typedef struct {
    const bf16 *q, *keys, *shared, *values;
    bf16 *out;
    const int64_t *starts, *context, *first, *tables, *blocks;
    long requests, heads, kv_heads, q_stride, own, rest, v_dim, k_stride, v_stride, block_size, longest, window;
    float scale;
} Pass;

typedef struct {
    int64_t *keys, *values; /* numbers from the first slot's to each place's */
} Places;

/* Queries as factors: those of the key head h behind the first from at[i] + h * apart on. */
typedef struct {
    const number *at[QUERIES];
    long apart;
} Queries;

/* queries . key of 16 / count places, one query behind the other, `count` of them from number i on: a key is the head's
 * own numbers, and the rest that all heads share. whole, more: how many vectors of each there are, where that is known
 * when this is compiled. */
INLINE lanes scores_of(const Pass *m, const int count, const Queries *queries, long i, long head, const bf16 *keys,
                       const int64_t *places, const int whole, const int more) {
    const long own = whole < 0 ? m->own : whole * STEP, rest = more < 0 ? m->rest : more * STEP;
    const int each = LANES / count;
    const number *q[LANES];
    lanes sums[LANES];
    UNROLL for (int r = 0; r < count; r++) q[r] = queries->at[i + r] + head * queries->apart;
    UNROLL for (int s = 0; s < LANES; s++) sums[s] = (lanes){0};
    UNROLL for (int p = 0; p < each; p += SIDE) UNROLL for (long n = 0; n < own + rest; n += STEP) {
        const bf16 *from = n < own ? keys + n : m->shared + n - own;
        factor key[SIDE];
        UNROLL for (int s = 0; s < SIDE; s++) {
            key[s] = factor_of(load(from + places[p + s]));
#ifdef WIDE /* one line for each that is used: in bursts, as `fetch` does it, these processors have no room for so many */
            __builtin_prefetch(from + places[p + s + AHEAD]);
#endif
        }
        UNROLL for (int r = 0; r < count; r++) {
            factor query = factor_at(q[r] + n);
            UNROLL for (int s = 0; s < SIDE; s++) sums[r * each + p + s] = times(sums[r * each + p + s], query, key[s]);
        }
    }
    return folded(sums);
}

/* What a head will need of the places AHEAD, and of those that all heads share the first head. */
__attribute__((unused)) INLINE void fetch(const Pass *m, long head, const Places *at, long p, int first) {
    for (long end = p + PLACES; p < end; p++) {
        const bf16 *key = m->keys + at->keys[p + AHEAD], *value = m->values + at->values[p + AHEAD] + head * m->v_dim;
        for (long i = 0; i < m->own; i += STEP) __builtin_prefetch(key + head * m->own + i);
        for (long i = 0; first && i < m->rest; i += STEP) __builtin_prefetch(m->shared + at->keys[p + AHEAD] + i);
        for (long i = 0; i < m->v_dim; i += STEP) __builtin_prefetch(value + i, 0, 2);
    }
}

/* The scores of some queries at 16 places, `count` queries from number i on. */
INLINE void some_scores(const Pass *m, const int count, const Queries *q, long i, long head, const bf16 *keys,
                        const int64_t *places, float *to, long room, const int whole, const int more) {
    const int each = LANES / count;
    UNROLL for (int part = 0; part < PLACES; part += each) {
        float found[LANES];
        put(found, scores_of(m, count, q, i, head, keys, places + part, whole, more));
        UNROLL for (int r = 0; r < count; r++) memcpy(to + (i + r) * room + part, found + r * each, each * sizeof *to);
    }
}

/* scores: `room` floats for each of `count` queries of each head. */
INLINE void all_scores(const Pass *m, long count, const Queries *q, long head, long heads, const Places *at, long length,
                       float *scores, long room, const int whole, const int more, int fresh) {
    for (long p = 0; p < length; p += PLACES)
        for (long h = 0; h < heads; h++) {
            const bf16 *keys = m->keys + (head + h) * m->own;
            float *to = scores + h * count * room + p;
            long i = 0;
#ifndef WIDE
            if (fresh) fetch(m, head + h, at, p, h == 0);
#endif
            for (; i + SCORED <= count; i += SCORED)
                some_scores(m, SCORED, q, i, h, keys, at->keys + p, to, room, whole, more);
            for (; i + 2 <= count; i += 2) some_scores(m, 2, q, i, h, keys, at->keys + p, to, room, whole, more);
            for (; i < count; i++) some_scores(m, 1, q, i, h, keys, at->keys + p, to, room, whole, more);
        }
}

/* What a query sees of the places that a tile reads. */
typedef struct {
    long begin, end;
} Sight;

/* Weights i .. i + 15 as `mix` reads them, over the scores; returns what counts. */
INLINE lanes keep_weights(float *scores, long i, lanes x) {
#ifdef WIDE
    put(scores + i, x);
    return x;
#else
    store((bf16 *)scores + i, x);
    return (lanes)(rounded(x) << 16);
#endif
}

/* In place, scores [length] to weights, of which those that are seen count. Returns 1 / their sum. */
INLINE float softmax(float *scores, Sight seen, long length, float scale) {
    for (long i = 0; i < seen.begin; i++) scores[i] = -INFINITY;
    for (long i = seen.end; i < length; i++) scores[i] = -INFINITY;
    lanes most = at(scores), sum = {0};
    for (long i = LANES; i < length; i += LANES) most = larger(at(scores + i), most);
    float x[LANES];
    put(x, most);
    for (int i = 1; i < LANES; i++) x[0] = x[i] > x[0] ? x[i] : x[0];
    most = (lanes){0} + x[0];
    for (long i = 0; i < length; i += LANES) {
        put(x, (at(scores + i) - most) * scale);
        for (int j = 0; j < LANES; j++) x[j] = quick_exp(x[j]);
        sum += keep_weights(scores, i, at(x));
    }
    put(x, sum);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) x[i] += x[i + width];
    return 1 / x[0];
}

/* out[r][0 .. 32 * columns - 1] = the places' values, from where `values` is in a slot, by the weights of query r, over
 * all places in order. weights: `room` floats a query. */
#ifdef WIDE
INLINE void mix(const int queries, const int columns, const bf16 *values, const int64_t *places, const float *weights,
                long room, long length, const float *shares, bf16 *const *out) {
    factor sums[MIXED][2];
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int c = 0; c < columns; c++) sums[r][c] = (factor){{0}, {0}};
    for (long p = 0; p < length; p++) {
        factor value[2];
        UNROLL for (int c = 0; c < columns; c++) {
            value[c] = factor_of(load(values + places[p] + STEP * c));
            __builtin_prefetch(values + places[AHEAD + p] + STEP * c);
        }
        UNROLL for (int r = 0; r < queries; r++) UNROLL for (int c = 0; c < columns; c++) {
            sums[r][c].even += weights[r * room + p] * value[c].even;
            sums[r][c].odd += weights[r * room + p] * value[c].odd;
        }
    }
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int c = 0; c < columns; c++) {
        words both = rounded(sums[r][c].even * shares[r]) | rounded(sums[r][c].odd * shares[r]) << 16;
        memcpy(out[r] + STEP * c, &both, sizeof both);
    }
}
#else
INLINE void mix(const int queries, const int columns, const bf16 *values, const int64_t *places,
                const float *weights, long room, long length, const float *shares, bf16 *const *out) {
    lanes sums[MIXED][2][2]; /* query, vector of columns, half of it */
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int c = 0; c < columns; c++)
        sums[r][c][0] = sums[r][c][1] = (lanes){0};
    for (long p = 0; p < length; p += 2) {
        words pairs[2][2];
        UNROLL for (int c = 0; c < columns; c++) {
            halves x = (halves)load(values + places[p] + STEP * c);
            halves y = (halves)load(values + places[p + 1] + STEP * c);
            pairs[c][0] = (words)PICK(halves, x, y, 0, 32, 1, 33, 2, 34, 3, 35, 8, 40, 9, 41, 10, 42, 11, 43, 16, 48, 17,
                                      49, 18, 50, 19, 51, 24, 56, 25, 57, 26, 58, 27, 59);
            pairs[c][1] = (words)PICK(halves, x, y, 4, 36, 5, 37, 6, 38, 7, 39, 12, 44, 13, 45, 14, 46, 15, 47, 20, 52,
                                      21, 53, 22, 54, 23, 55, 28, 60, 29, 61, 30, 62, 31, 63);
            __builtin_prefetch(values + places[AHEAD + p] + STEP * c);
            __builtin_prefetch(values + places[AHEAD + p + 1] + STEP * c);
        }
        UNROLL for (int r = 0; r < queries; r++) {
            uint32_t pair;
            memcpy(&pair, (const bf16 *)(weights + r * room) + p, 4);
            words weight = (words){0} + pair;
            UNROLL for (int c = 0; c < columns; c++) UNROLL for (int i = 0; i < 2; i++)
                sums[r][c][i] = product(sums[r][c][i], weight, pairs[c][i]);
        }
    }
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int c = 0; c < columns; c++) {
        lanes x = sums[r][c][0] * shares[r], y = sums[r][c][1] * shares[r];
        store(out[r] + STEP * c, PICK(words, x, y, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23));
        store(out[r] + STEP * c + LANES, PICK(words, x, y, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31));
    }
}
#endif

/* At most MIXED queries of one key head, from their scores on. */
static void mix_some(const Pass *m, long count, bf16 *const *out, long offset, const Sight *seen, long length,
                     const bf16 *values, const int64_t *places, float *weights, long room) {
    float shares[MIXED];
    bf16 *to[MIXED];
    for (long i = 0; i < count; i++) {
        shares[i] = softmax(weights + i * room, seen[i], length, m->scale);
        to[i] = out[i] + offset;
    }
    for (long c = 0; c < m->v_dim; c += 2 * STEP) {
        int columns = c + STEP < m->v_dim ? 2 : 1;
#define MIX(n, columns) \
    case 2 * n + columns - 1: mix(n, columns, values + c, places, weights, room, length, shares, to); break;
        switch (2 * count + columns - 1) {
            MIX(1, 1) MIX(1, 2) MIX(2, 1) MIX(2, 2) MIX(3, 1) MIX(3, 2) MIX(4, 1) MIX(4, 2)
        }
#undef MIX
        for (long i = 0; i < count; i++) to[i] += 2 * STEP;
    }
}

/* `count` queries of each of some key heads from `head` on, q and out those of the first; seen[i] of the places are what
 * query i sees. fresh: nobody has read these places yet. */
static void attend_queries(const Pass *m, long count, const Queries *q, bf16 *const *out, const Sight *seen, long head,
                           long heads, const Places *at, float *weights, int fresh) {
    long length = (seen[count - 1].end + PLACES - 1) / PLACES * PLACES, room = m->longest + PLACES;
    if (m->own == 2 * STEP && m->rest == 2 * STEP)
        all_scores(m, count, q, head, heads, at, length, weights, room, 2, 2, fresh);
    else if (m->own == 4 * STEP && m->rest == 0)
        all_scores(m, count, q, head, heads, at, length, weights, room, 4, 0, fresh);
    else
        all_scores(m, count, q, head, heads, at, length, weights, room, -1, -1, fresh);
    for (long h = 0; h < heads; h++)
        for (long i = 0, some; i < count; i += some, weights += some * room) {
            some = MIXED < count - i ? MIXED : count - i;
            mix_some(m, some, out + i, h * (m->heads / m->kv_heads) * m->v_dim, seen + i, length,
                     m->values + (head + h) * m->v_dim, at->values, weights, room);
        }
}

/* Where the places begin .. end - 1 are; what is read beyond them, or fetched ahead, is the last again. */
static void find_places(const Pass *m, long request, long begin, long end, const Places *at) {
    const int64_t *table = m->blocks + m->tables[request];
    long size = m->block_size, n = 0;
    for (long place = begin; place < end;) {
        long block = place / size, stop = (block + 1) * size < end ? (block + 1) * size : end;
        for (long slot = table[block] * size + place % size; place < stop; place++, slot++, n++)
            at->keys[n] = slot * m->k_stride, at->values[n] = slot * m->v_stride;
    }
    for (int i = 0; i < AHEAD + PLACES; i++) at->keys[n + i] = at->keys[n - 1], at->values[n + i] = at->values[n - 1];
}

/* The first place that a row at `place` sees, which is none below `first`. */
static long sight_of(const Pass *m, long first, long place) {
    long begin = first < place ? first : place;
    return m->window && place + 1 - m->window > begin ? place + 1 - m->window : begin;
}

/* Of `count` queries of each of some key heads, those of the first at q. room: for their numbers, where they lie in
 * memory as others. */
static Queries queries_of(const Pass *m, long count, const bf16 *const *q, long heads, number *room) {
    const long k_dim = m->own + m->rest, next_head = m->heads / m->kv_heads * k_dim;
#ifdef WIDE
    Queries found = {.apart = k_dim};
    for (long i = 0; i < count; i++) {
        found.at[i] = room;
        for (long h = 0; h < heads; h++)
            for (long n = 0; n < k_dim; n += STEP, room += STEP) {
                factor x = factor_of(load(q[i] + h * next_head + n));
                put(room, x.even), put(room + LANES, x.odd);
            }
    }
#else
    Queries found = {.apart = next_head};
    memcpy(found.at, q, count * sizeof *q);
    (void)heads, (void)room;
#endif
    return found;
}

/* The queries of some key heads of the rows row .. row + rows - 1 of a request; below `first` there is one row, which
 * sees itself. What is read begins whole vectors behind `first`, so that a place is summed up in the same lane and pair
 * whichever rows are read for. */
static void attend_rows(const Pass *m, long request, long row, long rows, long head, long heads, const Places *at,
                        float *weights) {
    long end = m->context[request] + row + 1, first = m->first[request], begin = sight_of(m, first, end - 1);
    if (begin > first) begin -= (begin - first) % PLACES;
    long start = m->starts[request] + row, group = m->heads / m->kv_heads, k_dim = m->own + m->rest;
    number numbers[QUERIES * k_dim];
    find_places(m, request, begin, end + rows - 1, at);
    for (long i = 0, count; i < rows * group; i += count) {
        const bf16 *q[QUERIES];
        bf16 *out[QUERIES];
        Sight seen[QUERIES];
        for (count = 0; count < QUERIES && i + count < rows * group; count++) {
            long r = (i + count) / group, query = head * group + (i + count) % group;
            q[count] = m->q + (start + r) * m->q_stride + query * k_dim;
            out[count] = m->out + ((start + r) * m->heads + query) * m->v_dim;
            seen[count] = (Sight){sight_of(m, first, end + r - 1) - begin, end + r - begin};
        }
        const Queries queries = queries_of(m, count, q, heads, numbers);
        attend_queries(m, count, &queries, out, seen, head, heads, at, weights, i == 0);
    }
}

/* Tiles of at most `tile` rows and `together` key heads, as they come: `next` is the number of the next that nobody took. */
static void attend_tiles(const Pass *m, long *next, long tile, long together, float *scratch) {
    const long most = m->longest + AHEAD + PLACES;
    const Places at = {(int64_t *)scratch, (int64_t *)scratch + most};
    long number = 0, mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
    for (long r = 0; r < m->requests; r++) {
        long rows, end = m->starts[r + 1] - m->starts[r];
        for (long row = 0; row < end; row += rows) {
            rows = tile < end - row ? tile : end - row;
            if (m->first[r] > m->context[r] + row) rows = 1;
            for (long head = 0, heads; head < m->kv_heads; head += heads, number++) {
                heads = together < m->kv_heads - head ? together : m->kv_heads - head;
                if (number != mine) continue;
                attend_rows(m, r, row, rows, head, heads, &at, scratch + 4 * most);
                mine = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED);
            }
        }
    }
}

/* How many key heads one tile takes, so that all threads have work, and about as much. */
static long heads_together(const Pass *m, long tile, int threads) {
    long tiles = 0, units, group = tile * (m->heads / m->kv_heads), together = group < QUERIES ? QUERIES / group : 1;
    for (long r = 0; r < m->requests; r++) tiles += (m->starts[r + 1] - m->starts[r] + tile - 1) / tile;
    while ((units = tiles * ((m->kv_heads + together - 1) / together)) % threads && units < 4 * threads && together > 1)
        together /= 2;
    return together;
}

/* q [rows, heads, own + rest], rows `q_stride` apart. A slot has keys [kv_heads, own] and what they share [rest],
 * `k_stride` numbers on from the slot before, and values [kv_heads, v_dim], `v_stride` on; own, rest and v_dim are
 * multiples of 32. out [rows, heads, v_dim]. Query head h reads key head h / (heads / kv_heads); scale is above 0.
 * numbers: starts [requests + 1], context, first, tables [requests] and blocks, one behind the other. Request r owns the
 * rows starts[r] .. starts[r + 1], which lie at the places from context[r] on; place p is in slot blocks[tables[r] + p /
 * block_size] * block_size + p % block_size. A row sees the places first[r] .. its own (itself at least); `longest`: the
 * most that any may see. window: how many places before its own, it included, a row sees at most; 0: all. tile: rows of a
 * request that are read for together. scratch: for each thread 4 * (longest + 32)
 * + 16 * (longest + 16) floats. */
HIDDEN void attend_part(const bf16 *q, const bf16 *keys, const bf16 *shared, const bf16 *values, bf16 *out,
                        const int64_t *numbers, float *scratch, long requests, long heads, long kv_heads, long q_stride,
                        long own, long rest, long v_dim, long k_stride, long v_stride, long block_size, long longest,
                        long window, float scale, long tile, const Team *team) {
    const int64_t *context = numbers + requests + 1, *first = context + requests, *tables = first + requests;
    const Pass pass = {q,        keys,   shared,            values,   out,   numbers,  context,
                       first,    tables, tables + requests, requests, heads, kv_heads, q_stride,
                       own,      rest,   v_dim,             k_stride, v_stride, block_size, longest,
                       window,   scale};
    long room = 4 * (longest + AHEAD + PLACES) + QUERIES * (longest + PLACES);
    const long together = heads_together(&pass, tile, team->parts);
    attend_tiles(&pass, &team->meeting->next, tile, together, scratch + team->part * room);
}

void attend_heads(const bf16 *q, const bf16 *keys, const bf16 *shared, const bf16 *values, bf16 *out,
                  const int64_t *numbers, float *scratch, long requests, long heads, long kv_heads, long q_stride,
                  long own, long rest, long v_dim, long k_stride, long v_stride, long block_size, long longest,
                  long window, float scale, long tile, int threads) {
    TOGETHER(threads, attend_part(q, keys, shared, values, out, numbers, scratch, requests, heads, kv_heads, q_stride, own,
                                  rest, v_dim, k_stride, v_stride, block_size, longest, window, scale, tile, team));
}
