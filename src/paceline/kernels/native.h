/* What the files call of each other. */
#pragma once
#include "bf16.h"
#include "team.h"

/* x [rows, inputs] times a weight, as packed_linear says. */
typedef struct {
    bf16 *x;
    const void *weight;
    const bf16 *bias;
    bf16 *out;
    long rows, inputs, outputs, codes;
} Product;
HIDDEN float scale_of(const bf16 *x, long n, float eps);
HIDDEN void norm_rows(const bf16 *all, const bf16 *weight, bf16 *made, Rows rows, long n, long stride, float eps);
HIDDEN void linear_part(const Product *p, const Team *team);
HIDDEN void attend_part(const bf16 *q, const bf16 *keys, const bf16 *shared, const bf16 *values, bf16 *out,
                        const int64_t *numbers, float *scratch, long requests, long heads, long kv_heads, long q_stride,
                        long own, long rest, long v_dim, long k_stride, long v_stride, long block_size, long longest,
                        long window, float scale, long tile, const Team *team);
HIDDEN void best_rows(const bf16 *all, int64_t *best, float *rated, Rows rows, long n);
HIDDEN void choose_rows(const bf16 *logits, const uint64_t *places, const float *heats, const int32_t *hashes,
                        int64_t *chosen, float *rated, Rows rows, long n);
void norm_pairs(const int64_t *tokens, const bf16 *table, const bf16 *states, const bf16 *token_weight,
                const bf16 *state_weight, bf16 *made, long rows, long n, int states_first, float eps);
HIDDEN void route_rows(const bf16 *all, const bf16 *weight, const float *bias, float *all_shares, Rows rows, long experts,
                       long hidden, long top, int normalise, float scaling);
/* As gated_experts says; onto: what is made is added to what `out` holds. */
typedef struct {
    bf16 *x;
    const void *gate_up, *down;
    const float *shares;
    bf16 *out, *inner; /* inner: a row for each pair of an expert and a row that chose it, by experts */
    float *sums;       /* [hidden / 32, rows, 32] */
    int32_t *ends, *chosen; /* expert e owns the pairs ends[e - 1] .. ends[e]; the rows that chose it, in order */
    long rows, hidden, width, experts, all, codes, onto;
} Mixture;
HIDDEN void experts_part(const Mixture *m, const Team *team);

/* A pass over a paged cache, for all its layers: the slots of its rows, and what attend_heads takes. wanted: the rows of
 * which there are outputs, if not of all: `index` says which they are; of the others only keys and values are kept. */
typedef struct Pass {
    const int64_t *slots, *numbers;
    float *scratch;
    const struct Pass *wanted;
    const int64_t *index;
    long rows, requests, block_size, longest, window, tile;
    int threads;
} Pass;
/* The pass over those rows. */
static inline const Pass *wanted_of(const Pass *p) { return p->wanted ? p->wanted : p; }
static inline long wanted_row(const Pass *p, long i) { return p->wanted ? p->index[i] : i; }
typedef struct HalfLayer HalfLayer;
HIDDEN void mla_part(const HalfLayer *m, const Pass *pass, bf16 *pool, const bf16 *x, const float *cos, const float *sin,
                     bf16 *sum, bf16 *normed, bf16 *room, const Team *team);
typedef struct Stack Stack;
HIDDEN void stack_part(const Stack *m, const Pass *p, bf16 *pool, const int64_t *tokens, const int64_t *positions, bf16 *out,
                       void *room, long stride, const Team *team);
typedef struct Module Module;
HIDDEN void module_part(const Module *m, const Pass *p, bf16 *pool, const int64_t *tokens, const int64_t *positions,
                        const bf16 *states, bf16 *out, void *room, const Team *team);

/* In place on x [2 * half]: interleaved pairs to halves, turned by cos and sin [half]; half is at most 256. */
static inline void rotate_pairs(bf16 *x, const float *cos, const float *sin, long half) {
    float a[256], b[256];
    for (long i = 0; i < half; i++) a[i] = up(x[2 * i]), b[i] = up(x[2 * i + 1]);
    for (long i = 0; i < half; i++) {
        x[i] = down(a[i] * cos[i] - b[i] * sin[i]);
        x[half + i] = down(b[i] * cos[i] + a[i] * sin[i]);
    }
}
