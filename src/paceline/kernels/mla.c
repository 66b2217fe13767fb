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

/* One row: turns the key's part that all heads share; keeps keys [heads, nope], that part and values [heads, v] in
 * `slot`. made: keys and values. */
static void keep_row(const HalfLayer *m, bf16 *shared, const bf16 *made, bf16 *slot, const float *cos, const float *sin) {
    long keys = m->heads * m->nope;
    rotate_pairs(shared, cos, sin, m->rope / 2);
    memcpy(slot, made, keys * sizeof *slot);
    memcpy(slot + keys, shared, m->rope * sizeof *slot);
    memcpy(slot + keys + m->rope, made + keys, m->heads * m->v * sizeof *slot);
}

/* normed [rows, hidden] to the queries q of the rows that are wanted, and to `own` of all. picked: room for those rows. */
static void project_some(const HalfLayer *m, const Pass *pass, bf16 *normed, bf16 *picked, bf16 *q, long queries, bf16 *own,
                         long rest) {
    const byte *others = (const byte *)m->in + queries / OUTPUTS * block_bytes((int)m->codes, m->hidden);
    long few = pass->wanted->rows;
    for (long i = 0; i < few; i++)
        memcpy(picked + i * m->hidden, normed + pass->index[i] * m->hidden, m->hidden * sizeof *picked);
    packed_linear(picked, m->in, 0, q, few, m->hidden, queries, (int)m->codes, pass->threads);
    packed_linear(normed, others, 0, own, pass->rows, m->hidden, rest, (int)m->codes, pass->threads);
}

/* x [rows, hidden] to sum = x + attention(norm(x)) and normed = next_norm(sum), of the rows that are wanted. cos, sin
 * [rows, rope / 2]; pool [slots, heads * (nope + v) + rope]; room: for a row 2 * hidden + heads * (2 * nope + rope + 2 *
 * v) + 2 * rank + rope numbers. */
void mla(const HalfLayer *m, const Pass *pass, bf16 *pool, const bf16 *x, const float *cos, const float *sin, bf16 *sum,
         bf16 *normed, bf16 *room) {
    const Pass *wanted = wanted_of(pass);
    long query = m->nope + m->rope, queries = m->heads * query, rest = m->rank + m->rope, keys = m->heads * m->nope;
    long values = m->heads * m->v, kept = keys + m->rope + values, rows = pass->rows, few = wanted->rows, half = m->rope / 2;
    bf16 *first = room, *q = first + rows * m->hidden, *latents = q + rows * (queries + rest), *made = latents + rows * m->rank,
         *mixed = made + rows * (keys + values), *added = mixed + rows * values;
    bf16 *own = pass->wanted ? q + few * queries : q + queries; /* what keys and values are made of, beside the queries */
    long q_stride = pass->wanted ? queries : queries + rest, stride = pass->wanted ? rest : queries + rest;
    rms_norm(x, m->norm, first, rows, m->hidden, m->hidden, m->eps, threads_for(pass, rows));
    if (pass->wanted)
        project_some(m, pass, first, sum, q, queries, own, rest);
    else
        packed_linear(first, m->in, 0, q, rows, m->hidden, queries + rest, (int)m->codes, pass->threads);
    rms_norm(own, m->latent_norm, latents, rows, m->rank, stride, m->latent_eps, threads_for(pass, rows));
    packed_linear(latents, m->kv, 0, made, rows, m->rank, keys + values, (int)m->codes, pass->threads);
    for (long r = 0; r < rows; r++)
        keep_row(m, own + r * stride + m->rank, made + r * (keys + values), pool + pass->slots[r] * kept, cos + r * half,
                 sin + r * half);
    for (long i = 0; i < few; i++)
        for (long h = 0, r = wanted_row(pass, i); h < m->heads; h++)
            rotate_pairs(q + i * q_stride + h * query + m->nope, cos + r * half, sin + r * half, half);
    attend_heads(q, pool, pool + keys, pool + keys + m->rope, mixed, wanted->numbers, wanted->scratch, wanted->requests,
                 m->heads, m->heads, q_stride, m->nope, m->rope, m->v, kept, kept, wanted->block_size, wanted->longest,
                 m->scale, wanted->tile, wanted->attending);
    packed_linear(mixed, m->out, 0, added, few, values, m->hidden, (int)m->codes, pass->threads);
    for (long i = 0; i < few; i++) {
        const bf16 *from = x + wanted_row(pass, i) * m->hidden;
        bf16 *to = sum + i * m->hidden, *more = added + i * m->hidden;
#pragma omp simd
        for (long j = 0; j < m->hidden; j++) to[j] = down(up(from[j]) + up(more[j]));
    }
    rms_norm(sum, m->next_norm, normed, few, m->hidden, m->hidden, m->eps, threads_for(pass, few));
}
#endif
