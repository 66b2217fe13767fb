/* The attention half of a decoder layer with latent attention (MLA, absorbed), for a pass over paged latents in one call:
 * norm, projections, rotation, the cache, attention, output, the sum, and the norm for what follows. Made of the other
 * files' functions, so a row has the same bits among any others. Weights are as checkpoints have them: multiplied
 * together, W_uk W_q and W_o W_uv would be calls less in Python and twice the numbers to read. No state, no allocation. */
#include "bf16.h"

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#include "native.h"

/* norms [hidden], latent_norm [rank]; the products' weights as bf16_linear reads them: in [heads * (nope + rope) + rank +
 * rope, hidden], uk [rank, nope] and uv [v, rank] for each head, out [hidden, heads * v]. */
typedef struct {
    const bf16 *norm, *in, *latent_norm, *uk, *uv, *out, *next_norm;
    long hidden, heads, nope, rope, rank, v;
    float eps, latent_eps, scale;
} MLA;

static void copy_rows(bf16 *to, long to_stride, const bf16 *from, long from_stride, long rows, long n) {
    for (long r = 0; r < rows; r++) memcpy(to + r * to_stride, from + r * from_stride, n * sizeof *to);
}

/* all [rows, heads * (nope + rope) + rank + rope] to made [rows, heads + 1, rank + rope]: each query head's part without
 * positions by W_uk, the rest as it is. room: rows * heads * (nope + rank). */
static void absorb(const MLA *m, const bf16 *all, bf16 *made, bf16 *room, long rows, int threads) {
    long query = m->nope + m->rope, key = m->rank + m->rope, stride = m->heads * query + key;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long h = 0; h <= m->heads; h++) {
        const bf16 *from = all + h * query;
        bf16 *to = made + h * key, *x = room + h * rows * (m->nope + m->rank), *y = x + rows * m->nope;
        if (h == m->heads) {
            copy_rows(to, (m->heads + 1) * key, from, stride, rows, key);
            continue;
        }
        copy_rows(x, m->nope, from, stride, rows, m->nope);
        bf16_linear(x, m->uk + h * m->nope * m->rank, 0, y, rows, m->nope, m->rank, 1);
        copy_rows(to, (m->heads + 1) * key, y, m->rank, rows, m->rank);
        copy_rows(to + m->rank, (m->heads + 1) * key, from + m->nope, stride, rows, m->rope);
    }
}

/* mixed [rows, heads, rank] by W_uv to values [rows, heads, v]. room: rows * heads * (rank + v). */
static void expand(const MLA *m, const bf16 *mixed, bf16 *values, bf16 *room, long rows, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long h = 0; h < m->heads; h++) {
        bf16 *x = room + h * rows * (m->rank + m->v), *y = x + rows * m->rank;
        copy_rows(x, m->rank, mixed + h * m->rank, m->heads * m->rank, rows, m->rank);
        bf16_linear(x, m->uv + h * m->rank * m->v, 0, y, rows, m->rank, m->v, 1);
        copy_rows(values + h * m->v, m->heads * m->v, y, m->v, rows, m->v);
    }
}

/* x [rows, hidden] to sum = x + attention(norm(x)) and normed = next_norm(sum). cos, sin [rows, rope / 2]; keys [slots of
 * the pool, rank + rope], of which these rows' are slots [rows]; numbers: starts [requests + 1], context, first, tables
 * [requests] and blocks as attend_latent reads them, one behind the other; scratch for attend_latent; room: for a row
 * 2 * hidden + heads * (2 * nope + rope + 4 * rank + rope + 2 * v) + 2 * (rank + rope) numbers; attending: threads for
 * attention. */
void mla(const MLA *m, const bf16 *x, bf16 *sum, bf16 *normed, const float *cos, const float *sin, bf16 *keys,
         const int64_t *slots, const int64_t *numbers, float *scratch, bf16 *room, long rows, long requests,
         long block_size, long longest, long tile, int attending, int threads) {
    long key = m->rank + m->rope, in = m->heads * (m->nope + m->rope) + key, made_stride = (m->heads + 1) * key;
    bf16 *first = room, *all = first + rows * m->hidden, *made = all + rows * in, *mixed = made + rows * made_stride,
         *values = mixed + rows * m->heads * m->rank, *added = values + rows * m->heads * m->v,
         *rest = added + rows * m->hidden;
    rms_norm(x, m->norm, first, rows, m->hidden, m->hidden, m->eps, 1);
    bf16_linear(first, m->in, 0, all, rows, m->hidden, in, threads);
    absorb(m, all, made, rest, rows, threads);
    rotate_and_norm(made, cos, sin, m->latent_norm, rows, m->heads + 1, m->rank, m->rope, m->latent_eps, 1);
    for (long r = 0; r < rows; r++)
        memcpy(keys + slots[r] * key, made + r * made_stride + m->heads * key, key * sizeof *keys);
    attend_latent(made, keys, mixed, numbers, numbers + requests + 1, numbers + 2 * requests + 1,
                  numbers + 3 * requests + 1, numbers + 4 * requests + 1, scratch, requests, m->heads, made_stride, key,
                  m->rank, block_size, longest, m->scale, tile, attending);
    expand(m, mixed, values, rest, rows, threads);
    bf16_linear(values, m->out, 0, added, rows, m->heads * m->v, m->hidden, threads);
#pragma omp simd
    for (long i = 0; i < rows * m->hidden; i++) sum[i] = down(up(x[i]) + up(added[i]));
    rms_norm(sum, m->next_norm, normed, rows, m->hidden, m->hidden, m->eps, 1);
}
#endif
