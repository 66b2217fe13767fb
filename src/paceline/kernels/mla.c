/* The attention half of a decoder layer with latent attention (MLA) and few heads, for a pass over a paged cache in one
 * call: norm, projections, rotation, the cache, attention, output, the sum, and the norm for what follows. The cache has
 * keys and values, not latents: where heads are few they are no more numbers, and several times fewer to multiply. Made
 * of the other files' functions, so a row has the same bits among any others. No state, no allocation. */
#include "bf16.h"

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

/* One row: turns its queries [heads, nope + rope] and the key's part behind them and the latent; keeps keys [heads, nope],
 * that part and values [heads, v] in `slot`. made: keys and values. */
static void keep_row(const HalfLayer *m, bf16 *all, const bf16 *made, bf16 *slot, const float *cos, const float *sin) {
    long query = m->nope + m->rope, keys = m->heads * m->nope;
    bf16 *turned = all + m->heads * query + m->rank;
    for (long h = 0; h < m->heads; h++) rotate_pairs(all + h * query + m->nope, cos, sin, m->rope / 2);
    rotate_pairs(turned, cos, sin, m->rope / 2);
    memcpy(slot, made, keys * sizeof *slot);
    memcpy(slot + keys, turned, m->rope * sizeof *slot);
    memcpy(slot + keys + m->rope, made + keys, m->heads * m->v * sizeof *slot);
}

/* x [rows, hidden] to sum = x + attention(norm(x)) and normed = next_norm(sum). cos, sin [rows, rope / 2]; pool [slots,
 * heads * (nope + v) + rope]; room: for a row 2 * hidden + heads * (2 * nope + rope + 2 * v) + 2 * rank + rope numbers. */
void mla(const HalfLayer *m, const Pass *pass, bf16 *pool, const bf16 *x, const float *cos, const float *sin, bf16 *sum,
         bf16 *normed, bf16 *room) {
    long queries = m->heads * (m->nope + m->rope), in = queries + m->rank + m->rope, keys = m->heads * m->nope;
    long values = m->heads * m->v, kept = keys + m->rope + values, rows = pass->rows;
    bf16 *first = room, *all = first + rows * m->hidden, *latents = all + rows * in, *made = latents + rows * m->rank,
         *mixed = made + rows * (keys + values), *added = mixed + rows * values;
    rms_norm(x, m->norm, first, rows, m->hidden, m->hidden, m->eps, 1);
    packed_linear(first, m->in, 0, all, rows, m->hidden, in, (int)m->codes, pass->threads);
    rms_norm(all + queries, m->latent_norm, latents, rows, m->rank, in, m->latent_eps, 1);
    packed_linear(latents, m->kv, 0, made, rows, m->rank, keys + values, (int)m->codes, pass->threads);
    for (long r = 0; r < rows; r++)
        keep_row(m, all + r * in, made + r * (keys + values), pool + pass->slots[r] * kept, cos + r * m->rope / 2,
                 sin + r * m->rope / 2);
    attend_heads(all, pool, pool + keys, pool + keys + m->rope, mixed, pass->numbers, pass->scratch, pass->requests,
                 m->heads, m->heads, in, m->nope, m->rope, m->v, kept, kept, pass->block_size, pass->longest, m->scale,
                 pass->tile, pass->attending);
    packed_linear(mixed, m->out, 0, added, rows, values, m->hidden, (int)m->codes, pass->threads);
#pragma omp simd
    for (long i = 0; i < rows * m->hidden; i++) sum[i] = down(up(x[i]) + up(added[i]));
    rms_norm(sum, m->next_norm, normed, rows, m->hidden, m->hidden, m->eps, 1);
}
#endif
