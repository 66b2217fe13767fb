/* The attention half of a decoder layer with latent attention (MLA) and few heads, for a pass over a paged cache in one
 * call: norm, projections, rotation, the cache, attention, output, the sum, and the norm for what follows. The cache has
 * keys and values, not latents: where heads are few they are no more numbers, and several times fewer to multiply. They
 * come from the state in one product: the latent's norm divides a row by one number, which they may be divided by as
 * well. Made of the other files' functions, so a row has the same bits among any others. No state, no allocation. */
#include "tile.h"

#ifdef TILES
#include "native.h"

/* norms [hidden]; the products' weights as packed_linear reads them, all with codes or none: in [heads * (nope + rope) +
 * root + rope + heads * (nope + v), hidden] makes queries, numbers whose mean square is the latent's, the rotary key, and
 * keys and values before they are divided; out [hidden, heads * v]. */
struct HalfLayer {
    const bf16 *norm;
    const void *in, *out;
    const bf16 *next_norm;
    long hidden, heads, nope, rope, root, v, codes;
    float eps, latent_eps, scale;
};

/* Numbers of a row: its queries, and what it leaves in the cache with the root before it. */
static long queries_of(const HalfLayer *m) { return m->heads * (m->nope + m->rope); }
static long rest_of(const HalfLayer *m) { return m->root + m->rope + m->heads * (m->nope + m->v); }

/* The norms of my rows: `first` of all; of the rows that are wanted, if not all are, `picked` as well. */
static void norm_first(const HalfLayer *m, const Pass *pass, const bf16 *x, bf16 *first, bf16 *picked, const Team *team) {
    Rows few = rows_of(team, wanted_of(pass)->rows);
    norm_rows(x, m->norm, first, rows_of(team, pass->rows), m->hidden, m->hidden, m->eps);
    for (long i = few.begin; pass->wanted && i < few.end; i++)
        norm_rows(x + pass->index[i] * m->hidden, m->norm, picked + i * m->hidden, (Rows){0, 1}, m->hidden, m->hidden, m->eps);
}

/* normed [rows, hidden] to the queries q of the rows that are wanted, and to `own` of all. */
static void project_some(const HalfLayer *m, const Pass *pass, bf16 *normed, bf16 *picked, bf16 *q, bf16 *own,
                         const Team *team) {
    const byte *others = (const byte *)m->in + queries_of(m) / OUTPUTS * block_bytes((int)m->codes, m->hidden);
    const Product asked = {picked, m->in, 0, q, pass->wanted->rows, m->hidden, queries_of(m), m->codes};
    const Product kept = {normed, others, 0, own, pass->rows, m->hidden, rest_of(m), m->codes};
    linear_part(&asked, team);
    linear_part(&kept, team);
}

static void multiply_row(const bf16 *x, float factor, bf16 *out, long n) {
#pragma omp simd
    for (long i = 0; i < n; i++) out[i] = down(up(x[i]) * factor);
}

/* Of my rows: keys, the part of them that all heads share, turned, and values to their slots. */
static void keep_rows(const HalfLayer *m, const Pass *pass, bf16 *own, long stride, bf16 *pool, const float *cos,
                      const float *sin, const Team *team) {
    Rows mine = rows_of(team, pass->rows);
    long half = m->rope / 2, keys = m->heads * m->nope, values = m->heads * m->v;
    for (long r = mine.begin; r < mine.end; r++) {
        bf16 *root = own + r * stride, *shared = root + m->root, *to = pool + pass->slots[r] * (keys + m->rope + values);
        float factor = scale_of(root, m->root, m->latent_eps);
        rotate_pairs(shared, cos + r * half, sin + r * half, half);
        multiply_row(shared + m->rope, factor, to, keys);
        memcpy(to + keys, shared, m->rope * sizeof *to);
        multiply_row(shared + m->rope + keys, factor, to + keys + m->rope, values);
    }
}

/* Of my rows that are wanted: turns the queries. */
static void turn_queries(const HalfLayer *m, const Pass *pass, bf16 *q, long stride, const float *cos, const float *sin,
                         const Team *team) {
    Rows few = rows_of(team, wanted_of(pass)->rows);
    for (long i = few.begin, half = m->rope / 2; i < few.end; i++)
        for (long h = 0, r = wanted_row(pass, i); h < m->heads; h++)
            rotate_pairs(q + i * stride + h * (m->nope + m->rope) + m->nope, cos + r * half, sin + r * half, half);
}

/* As `mla`. Afterwards each thread has made its own rows of sum and normed. */
HIDDEN void mla_part(const HalfLayer *m, const Pass *pass, bf16 *pool, const bf16 *x, const float *cos, const float *sin, bf16 *sum,
                     bf16 *normed, bf16 *room, const Team *team) {
    const Pass *wanted = wanted_of(pass);
    long queries = queries_of(m), rest = rest_of(m), keys = m->heads * m->nope, values = m->heads * m->v;
    long rows = pass->rows, few = wanted->rows, kept = keys + m->rope + values;
    bf16 *first = room, *q = first + rows * m->hidden, *mixed = q + rows * (queries + rest), *added = mixed + rows * values;
    bf16 *own = pass->wanted ? q + few * queries : q + queries; /* what is kept, beside the queries */
    long q_stride = pass->wanted ? queries : queries + rest, stride = pass->wanted ? rest : queries + rest;
    const Product all = {first, m->in, 0, q, rows, m->hidden, queries + rest, m->codes};
    const Product out = {mixed, m->out, 0, added, few, values, m->hidden, m->codes};
    norm_first(m, pass, x, first, sum, team);
    meet(team);
    if (pass->wanted)
        project_some(m, pass, first, sum, q, own, team);
    else
        linear_part(&all, team);
    meet(team);
    keep_rows(m, pass, own, stride, pool, cos, sin, team);
    turn_queries(m, pass, q, q_stride, cos, sin, team);
    meet(team);
    attend_part(q, pool, pool + keys, pool + keys + m->rope, mixed, wanted->numbers, wanted->scratch, wanted->requests,
                m->heads, m->heads, q_stride, m->nope, m->rope, m->v, kept, kept, wanted->block_size, wanted->longest,
                wanted->window, m->scale, wanted->tile, team);
    meet(team);
    linear_part(&out, team);
    meet(team);
    Rows mine = rows_of(team, few);
    for (long i = mine.begin; i < mine.end; i++) {
        const bf16 *from = x + wanted_row(pass, i) * m->hidden;
        bf16 *to = sum + i * m->hidden, *more = added + i * m->hidden;
#pragma omp simd
        for (long j = 0; j < m->hidden; j++) to[j] = down(up(from[j]) + up(more[j]));
    }
    norm_rows(sum, m->next_norm, normed, mine, m->hidden, m->hidden, m->eps);
}

/* x [rows, hidden] to sum = x + attention(norm(x)) and normed = next_norm(sum), of the rows that are wanted. cos, sin
 * [rows, rope / 2]; pool [slots, heads * (nope + v) + rope]; room: for a row 2 * hidden + heads * (2 * nope + rope + 2 * v)
 * + root + rope numbers. */
void mla(const HalfLayer *m, const Pass *pass, bf16 *pool, const bf16 *x, const float *cos, const float *sin, bf16 *sum,
         bf16 *normed, bf16 *room) {
    TOGETHER(pass->threads, mla_part(m, pass, pool, x, cos, sin, sum, normed, room, team));
}
#endif
