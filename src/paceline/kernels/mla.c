/* The attention half of a decoder layer with latent attention (MLA) and few heads, for a pass over a paged cache in one
 * call: norm, projections, rotation, the cache, attention, output, the sum, and the norm for what follows. The cache has
 * keys and values, not latents: where heads are few they are no more numbers, and several times fewer to multiply. Made
 * of the other files' functions, so a row has the same bits among any others. No state, no allocation. */
#include "tile.h"

#ifdef TILES
#include "native.h"

/* norms [hidden], latent_norm [rank]; the products' weights as packed_linear reads them, all with codes or none: in
 * [heads * (nope + rope) + rank + rope, hidden], kv [heads * nope, then heads * v; rank], out [hidden, heads * v]. */
struct HalfLayer {
    const bf16 *norm;
    const void *in;
    const bf16 *latent_norm;
    const void *kv, *out;
    const bf16 *next_norm;
    long hidden, heads, nope, rope, rank, v, codes;
    float eps, latent_eps, scale;
};

/* The norms of my rows: `first` of all; of the rows that are wanted, if not all are, `picked` as well. */
static void norm_first(const HalfLayer *m, const Pass *pass, const bf16 *x, bf16 *first, bf16 *picked, const Team *team) {
    Rows few = rows_of(team, wanted_of(pass)->rows);
    norm_rows(x, m->norm, first, rows_of(team, pass->rows), m->hidden, m->hidden, m->eps);
    for (long i = few.begin; pass->wanted && i < few.end; i++)
        norm_rows(x + pass->index[i] * m->hidden, m->norm, picked + i * m->hidden, (Rows){0, 1}, m->hidden, m->hidden, m->eps);
}

/* normed [rows, hidden] to the queries q of the rows that are wanted, and to `own` of all. */
static void project_some(const HalfLayer *m, const Pass *pass, bf16 *normed, bf16 *picked, bf16 *q, long queries, bf16 *own,
                         long rest, const Team *team) {
    const byte *others = (const byte *)m->in + queries / OUTPUTS * block_bytes((int)m->codes, m->hidden);
    const Product asked = {picked, m->in, 0, q, 0, pass->wanted->rows, m->hidden, queries, queries, queries, 0, m->codes};
    const Product kept = {normed, others, 0, own, 0, pass->rows, m->hidden, rest, rest, rest, 0, m->codes};
    linear_part(&asked, team);
    linear_part(&kept, team);
}

/* Of my rows: turns the key's part that all heads share, and puts it into its slot; the norm of the latent; and turns the
 * queries of the wanted ones. */
static void turn_rows(const HalfLayer *m, const Pass *pass, bf16 *own, long stride, bf16 *latents, bf16 *slots, long kept,
                      bf16 *q, long q_stride, const float *cos, const float *sin, const Team *team) {
    Rows mine = rows_of(team, pass->rows), few = rows_of(team, wanted_of(pass)->rows);
    long half = m->rope / 2;
    norm_rows(own, m->latent_norm, latents, mine, m->rank, stride, m->latent_eps);
    for (long r = mine.begin; r < mine.end; r++) {
        bf16 *shared = own + r * stride + m->rank;
        rotate_pairs(shared, cos + r * half, sin + r * half, half);
        memcpy(slots + pass->slots[r] * kept, shared, m->rope * sizeof *slots);
    }
    for (long i = few.begin; i < few.end; i++)
        for (long h = 0, r = wanted_row(pass, i); h < m->heads; h++)
            rotate_pairs(q + i * q_stride + h * (m->nope + m->rope) + m->nope, cos + r * half, sin + r * half, half);
}

/* As `mla`. Afterwards each thread has made its own rows of sum and normed. */
HIDDEN void mla_part(const HalfLayer *m, const Pass *pass, bf16 *pool, const bf16 *x, const float *cos, const float *sin, bf16 *sum,
                     bf16 *normed, bf16 *room, const Team *team) {
    const Pass *wanted = wanted_of(pass);
    long queries = m->heads * (m->nope + m->rope), rest = m->rank + m->rope, keys = m->heads * m->nope;
    long values = m->heads * m->v, kept = keys + m->rope + values, rows = pass->rows, few = wanted->rows;
    bf16 *first = room, *q = first + rows * m->hidden, *latents = q + rows * (queries + rest), *mixed = latents + rows * m->rank,
         *added = mixed + rows * values;
    bf16 *own = pass->wanted ? q + few * queries : q + queries; /* what keys and values are made of, beside the queries */
    long q_stride = pass->wanted ? queries : queries + rest, stride = pass->wanted ? rest : queries + rest;
    const Product all = {first, m->in, 0, q, 0, rows, m->hidden, queries + rest, queries + rest, queries + rest, 0, m->codes};
    const Product keep = {latents, m->kv, 0, pool, pass->slots, rows, m->rank, keys + values, kept, keys, m->rope, m->codes};
    const Product out = {mixed, m->out, 0, added, 0, few, values, m->hidden, m->hidden, m->hidden, 0, m->codes};
    norm_first(m, pass, x, first, sum, team);
    meet(team);
    if (pass->wanted)
        project_some(m, pass, first, sum, q, queries, own, rest, team);
    else
        linear_part(&all, team);
    meet(team);
    turn_rows(m, pass, own, stride, latents, pool + keys, kept, q, q_stride, cos, sin, team);
    meet(team);
    linear_part(&keep, team);
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
 * [rows, rope / 2]; pool [slots, heads * (nope + v) + rope]; room: for a row 2 * hidden + heads * (nope + rope + v) + 2 *
 * rank + rope numbers. */
void mla(const HalfLayer *m, const Pass *pass, bf16 *pool, const bf16 *x, const float *cos, const float *sin, bf16 *sum,
         bf16 *normed, bf16 *room) {
    TOGETHER(pass->threads, mla_part(m, pass, pool, x, cos, sin, sum, normed, room, team));
}
#endif
