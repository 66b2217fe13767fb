/* A whole decoder layer in one call: mla.c's half, then a mixture of experts or one gated MLP, and the sum; a whole stack
 * of them, from tokens to states; and a whole module for drafting around one. Made of the other files' functions, so a
 * row has the same bits among any others. No state, no allocation. */
#include "bf16.h"

#ifdef TILES
#include "native.h"

/* attention: as mla reads it. router [experts, hidden], bias [experts], gate_up, down: as route and gated_experts read
 * them; one gated MLP is a mixture of no experts and of one that is everybody's (`all` counts both). */
typedef struct {
    const HalfLayer *attention;
    const bf16 *router;
    const float *bias;
    const void *gate_up, *down;
    long hidden, experts, all, top, width, normalise, codes;
    float scaling;
} Layer;

/* A layer between embedding and state, and a norm: cos, sin [places, half] by position. join: as packed_linear reads it,
 * with codes if the layer has them. */
struct Module {
    const Layer *layer;
    const bf16 *table, *token_norm, *state_norm;
    const void *join;
    const bf16 *norm;
    const float *cos, *sin;
    long places, half, states_first;
    float eps;
};

/* Layers between the embedding and a norm, or none: cos, sin [places, half] by position. */
typedef struct {
    const Layer *const *layers;
    const bf16 *table, *norm;
    const float *cos, *sin;
    long count, hidden, places, half;
    float eps;
} Stack;

/* The angles of these positions, [rows, half] each; those beyond the context mean nothing. */
static void take_angles(const int64_t *positions, long rows, const float *all_cos, const float *all_sin, long places,
                        long half, float *cos, float *sin) {
    for (long r = 0; r < rows; r++) {
        long place = positions[r] < 0 ? 0 : positions[r] < places ? positions[r] : places - 1;
        memcpy(cos + r * half, all_cos + place * half, half * sizeof *cos);
        memcpy(sin + r * half, all_sin + place * half, half * sizeof *sin);
    }
}

/* x [rows, hidden] to out [rows, hidden], of the rows that are wanted. room: layer.py counts it. */
void decoder_layer(const Layer *m, const Pass *p, bf16 *pool, const bf16 *x, const float *cos, const float *sin, bf16 *out,
                   void *room) {
    long rows = wanted_of(p)->rows, count = rows * m->hidden, pairs = rows * (m->top + m->all - m->experts);
    float *sums = room, *shares = sums + count;
    int32_t *numbers = (int32_t *)(shares + rows * m->experts);
    bf16 *normed = (bf16 *)(numbers + m->all + 1 + pairs), *added = normed + count, *inner = added + count;
    mla(m->attention, p, pool, x, cos, sin, out, normed, inner + pairs * m->width);
    if (m->experts)
        route(normed, m->router, m->bias, shares, rows, m->experts, m->hidden, m->top, (int)m->normalise, m->scaling,
              threads_for(p, rows));
    gated_experts(normed, shares, m->gate_up, m->down, added, inner, sums, numbers, rows, m->hidden, m->width, m->experts,
                  m->all, (int)m->codes, p->threads);
#pragma omp simd
    for (long i = 0; i < count; i++) out[i] = down(up(out[i]) + up(added[i]));
}

/* tokens, positions [rows] to out [rows, hidden]; the slots of each layer lie `stride` numbers behind those of the one
 * before. room: layer.py counts it. */
void decoder_stack(const Stack *m, const Pass *p, bf16 *pool, const int64_t *tokens, const int64_t *positions, bf16 *out,
                   void *room, long stride) {
    long rows = p->rows, count = rows * m->hidden;
    float *cos = room, *sin = cos + rows * m->half;
    bf16 *x = (bf16 *)(sin + rows * m->half), *made = x + count, *inner = made + count;
    take_angles(positions, rows, m->cos, m->sin, m->places, m->half, cos, sin);
    for (long r = 0; r < rows; r++) memcpy(x + r * m->hidden, m->table + tokens[r] * m->hidden, m->hidden * sizeof *x);
    for (long i = 0; i < m->count; i++, pool += stride) {
        bf16 *before = x;
        decoder_layer(m->layers[i], p, pool, x, cos, sin, made, inner);
        x = made, made = before;
    }
    if (m->norm)
        rms_norm(x, m->norm, out, rows, m->hidden, m->hidden, m->eps, threads_for(p, rows));
    else
        memcpy(out, x, count * sizeof *out);
}

/* tokens, positions [rows] and states [rows, hidden] to out [rows, hidden], of the rows that are wanted. room: layer.py
 * counts it. */
void mtp_module(const Module *m, const Pass *p, bf16 *pool, const int64_t *tokens, const int64_t *positions,
                const bf16 *states, bf16 *out, void *room) {
    long rows = p->rows, hidden = m->layer->hidden;
    float *cos = room, *sin = cos + rows * m->half;
    bf16 *pairs = (bf16 *)(sin + rows * m->half), *x = pairs + rows * 2 * hidden, *y = x + rows * hidden;
    take_angles(positions, rows, m->cos, m->sin, m->places, m->half, cos, sin);
    norm_pairs(tokens, m->table, states, m->token_norm, m->state_norm, pairs, rows, hidden, (int)m->states_first, m->eps);
    packed_linear(pairs, m->join, 0, x, rows, 2 * hidden, hidden, (int)m->layer->codes, p->threads);
    decoder_layer(m->layer, p, pool, x, cos, sin, y, y + rows * hidden);
    rms_norm(y, m->norm, out, wanted_of(p)->rows, hidden, hidden, m->eps, threads_for(p, wanted_of(p)->rows));
}
#endif
