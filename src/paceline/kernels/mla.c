/* The attention half of a decoder layer with latent attention (MLA) and few heads, for a pass over a paged cache in one
 * call: norm, projections, rotation, the cache, attention, output, the sum, and the norm for what follows. The cache has
 * keys and values, not latents: where heads are few they are no more numbers, and several times fewer to multiply. Made
 * of the other files' functions, so a row has the same bits among any others. No state, no allocation. */
#include "bf16.h"

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#include "native.h"

/* norms [hidden], latent_norm [rank]; the products' weights as bf16_linear reads them: in [heads * (nope + rope) + rank +
 * rope, hidden], kv [heads * nope, then heads * v; rank], out [hidden, heads * v]. */
typedef struct {
    const bf16 *norm, *in, *latent_norm, *kv, *out, *next_norm;
    long hidden, heads, nope, rope, rank, v;
    float eps, latent_eps, scale;
} MLA;

/* One row: turns its queries [heads, nope + rope] and the key's part behind them and the latent; keeps keys [heads, nope],
 * that part and values [heads, v] in `slot`. made: keys and values. */
static void keep_row(const MLA *m, bf16 *all, const bf16 *made, bf16 *slot, const float *cos, const float *sin) {
    long query = m->nope + m->rope, keys = m->heads * m->nope;
    bf16 *turned = all + m->heads * query + m->rank;
    for (long h = 0; h < m->heads; h++) rotate_pairs(all + h * query + m->nope, cos, sin, m->rope / 2);
    rotate_pairs(turned, cos, sin, m->rope / 2);
    memcpy(slot, made, keys * sizeof *slot);
    memcpy(slot + keys, turned, m->rope * sizeof *slot);
    memcpy(slot + keys + m->rope, made + keys, m->heads * m->v * sizeof *slot);
}

/* x [rows, hidden] to sum = x + attention(norm(x)) and normed = next_norm(sum). cos, sin [rows, rope / 2]; pool [slots,
 * heads * (nope + v) + rope], of which these rows' are slots [rows]; numbers and scratch for attend_heads; room: for a
 * row 2 * hidden + heads * (2 * nope + rope + 2 * v) + 2 * rank + rope numbers; attending: threads for attention. */
void mla(const MLA *m, const bf16 *x, bf16 *sum, bf16 *normed, const float *cos, const float *sin, bf16 *pool,
         const int64_t *slots, const int64_t *numbers, float *scratch, bf16 *room, long rows, long requests,
         long block_size, long longest, long tile, int attending, int threads) {
    long queries = m->heads * (m->nope + m->rope), in = queries + m->rank + m->rope, keys = m->heads * m->nope;
    long values = m->heads * m->v, kept = keys + m->rope + values;
    bf16 *first = room, *all = first + rows * m->hidden, *latents = all + rows * in, *made = latents + rows * m->rank,
         *mixed = made + rows * (keys + values), *added = mixed + rows * values;
    rms_norm(x, m->norm, first, rows, m->hidden, m->hidden, m->eps, 1);
    bf16_linear(first, m->in, 0, all, rows, m->hidden, in, threads);
    rms_norm(all + queries, m->latent_norm, latents, rows, m->rank, in, m->latent_eps, 1);
    bf16_linear(latents, m->kv, 0, made, rows, m->rank, keys + values, threads);
    for (long r = 0; r < rows; r++)
        keep_row(m, all + r * in, made + r * (keys + values), pool + slots[r] * kept, cos + r * m->rope / 2,
                 sin + r * m->rope / 2);
    attend_heads(all, pool, pool + keys, pool + keys + m->rope, mixed, numbers, scratch, requests, m->heads, m->heads, in,
                 m->nope, m->rope, m->v, kept, kept, block_size, longest, m->scale, tile, attending);
    bf16_linear(mixed, m->out, 0, added, rows, values, m->hidden, threads);
#pragma omp simd
    for (long i = 0; i < rows * m->hidden; i++) sum[i] = down(up(x[i]) + up(added[i]));
    rms_norm(sum, m->next_norm, normed, rows, m->hidden, m->hidden, m->eps, 1);
}
#endif
