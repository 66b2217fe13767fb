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
struct Stack {
    const Layer *const *layers;
    const bf16 *table, *norm;
    const float *cos, *sin;
    long count, hidden, places, half;
    float eps;
};

/* The angles of these positions, [rows, half] each, for my rows; those beyond the context mean nothing. */
static void take_angles(const int64_t *positions, Rows rows, const float *all_cos, const float *all_sin, long places,
                        long half, float *cos, float *sin) {
    for (long r = rows.begin; r < rows.end; r++) {
        long place = positions[r] < 0 ? 0 : positions[r] < places ? positions[r] : places - 1;
        memcpy(cos + r * half, all_cos + place * half, half * sizeof *cos);
        memcpy(sin + r * half, all_sin + place * half, half * sizeof *sin);
    }
}

/* As decoder_layer. Before, my rows of x are made; afterwards all are. */
static void layer_part(const Layer *m, const Pass *p, bf16 *pool, const bf16 *x, const float *cos, const float *sin, bf16 *out,
                       void *room, const Team *team) {
    long rows = wanted_of(p)->rows, count = rows * m->hidden, pairs = rows * (m->top + m->all - m->experts);
    float *sums = room, *shares = sums + count;
    int32_t *numbers = (int32_t *)(shares + rows * m->experts);
    bf16 *normed = (bf16 *)(numbers + m->all + 1 + pairs), *inner = normed + count;
    const Mixture mixture = {normed, m->gate_up, m->down, shares, out, inner, sums, numbers, numbers + m->all + 1,
                             rows, m->hidden, m->width, m->experts, m->all, m->codes, 1};
    mla_part(m->attention, p, pool, x, cos, sin, out, normed, inner + pairs * m->width, team);
    if (m->experts)
        route_rows(normed, m->router, m->bias, shares, rows_of(team, rows), m->experts, m->hidden, m->top, (int)m->normalise,
                   m->scaling);
    experts_part(&mixture, team);
    meet(team);
}

/* x [rows, hidden] to out [rows, hidden], of the rows that are wanted. room: layer.py counts it. */
void decoder_layer(const Layer *m, const Pass *p, bf16 *pool, const bf16 *x, const float *cos, const float *sin, bf16 *out,
                   void *room) {
    TOGETHER(p->threads, layer_part(m, p, pool, x, cos, sin, out, room, team));
}

/* As decoder_stack. Before, what it reads is there; afterwards each thread has made its own rows of out. */
HIDDEN void stack_part(const Stack *m, const Pass *p, bf16 *pool, const int64_t *tokens, const int64_t *positions, bf16 *out,
                       void *room, long stride, const Team *team) {
    long rows = p->rows, count = rows * m->hidden;
    float *cos = room, *sin = cos + rows * m->half;
    bf16 *x = (bf16 *)(sin + rows * m->half), *made = x + count, *inner = made + count;
    Rows mine = rows_of(team, rows);
    take_angles(positions, mine, m->cos, m->sin, m->places, m->half, cos, sin);
    for (long r = mine.begin; r < mine.end; r++) memcpy(x + r * m->hidden, m->table + tokens[r] * m->hidden, m->hidden * sizeof *x);
    for (long i = 0; i < m->count; i++, pool += stride) {
        bf16 *before = x;
        layer_part(m->layers[i], p, pool, x, cos, sin, made, inner, team);
        x = made, made = before;
    }
    if (m->norm)
        norm_rows(x, m->norm, out, mine, m->hidden, m->hidden, m->eps);
    else
        memcpy(out + mine.begin * m->hidden, x + mine.begin * m->hidden, (mine.end - mine.begin) * m->hidden * sizeof *out);
}

/* tokens, positions [rows] to out [rows, hidden]; the slots of each layer lie `stride` numbers behind those of the one
 * before. room: layer.py counts it. */
void decoder_stack(const Stack *m, const Pass *p, bf16 *pool, const int64_t *tokens, const int64_t *positions, bf16 *out,
                   void *room, long stride) {
    TOGETHER(p->threads, stack_part(m, p, pool, tokens, positions, out, room, stride, team));
}

/* As mtp_module. Before, what it reads is there; afterwards each thread has made its own rows of out. */
HIDDEN void module_part(const Module *m, const Pass *p, bf16 *pool, const int64_t *tokens, const int64_t *positions,
                        const bf16 *states, bf16 *out, void *room, const Team *team) {
    long rows = p->rows, hidden = m->layer->hidden;
    float *cos = room, *sin = cos + rows * m->half;
    bf16 *pairs = (bf16 *)(sin + rows * m->half), *x = pairs + rows * 2 * hidden, *y = x + rows * hidden;
    const Product join = {pairs, m->join, 0, x, rows, 2 * hidden, hidden, m->layer->codes};
    Rows mine = rows_of(team, rows);
    take_angles(positions, mine, m->cos, m->sin, m->places, m->half, cos, sin);
    norm_pairs(tokens + mine.begin, m->table, states + mine.begin * hidden, m->token_norm, m->state_norm,
               pairs + mine.begin * 2 * hidden, mine.end - mine.begin, hidden, (int)m->states_first, m->eps);
    meet(team);
    linear_part(&join, team);
    meet(team);
    layer_part(m->layer, p, pool, x, cos, sin, y, y + rows * hidden, team);
    norm_rows(y, m->norm, out, rows_of(team, wanted_of(p)->rows), hidden, hidden, m->eps);
}

/* tokens, positions [rows] and states [rows, hidden] to out [rows, hidden], of the rows that are wanted. room: layer.py
 * counts it. */
void mtp_module(const Module *m, const Pass *p, bf16 *pool, const int64_t *tokens, const int64_t *positions,
                const bf16 *states, bf16 *out, void *room) {
    TOGETHER(p->threads, module_part(m, p, pool, tokens, positions, states, out, room, team));
}
#endif
