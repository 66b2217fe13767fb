/* What the files call of each other. */
#include "bf16.h"

void rms_norm(const bf16 *all, const bf16 *weight, bf16 *made, long rows, long n, long stride, float eps, int threads);
void packed_linear(bf16 *x, const void *weight, const bf16 *bias, bf16 *out, long rows, long inputs, long outputs,
                   int codes, int threads);
void attend_heads(const bf16 *q, const bf16 *keys, const bf16 *shared, const bf16 *values, bf16 *out,
                  const int64_t *numbers, float *scratch, long requests, long heads, long kv_heads, long q_stride,
                  long own, long rest, long v_dim, long k_stride, long v_stride, long block_size, long longest,
                  float scale, long tile, int threads);
void best_of(const bf16 *scores, int64_t *best, float *rated, long rows, long n);
void choose(const bf16 *logits, const uint64_t *places, const float *heats, const int32_t *hashes, int64_t *chosen,
            float *rated, long rows, long n, int threads);
void norm_pairs(const int64_t *tokens, const bf16 *table, const bf16 *states, const bf16 *token_weight,
                const bf16 *state_weight, bf16 *made, long rows, long n, int states_first, float eps);
void route(const bf16 *all, const bf16 *weight, const float *bias, float *all_shares, long rows, long experts, long hidden,
           long top, int normalise, float scaling, int threads);
void gated_experts(bf16 *x, const float *shares, const void *gate_up, const void *down, bf16 *out, bf16 *inner,
                   float *sums, int32_t *numbers, long rows, long hidden, long width, long experts, long all, int codes,
                   int threads);

/* A pass over a paged cache, for all its layers: the slots of its rows, and what attend_heads takes. wanted: the rows of
 * which there are outputs, if not of all: `index` says which they are; of the others only keys and values are kept. */
typedef struct Pass {
    const int64_t *slots, *numbers;
    float *scratch;
    const struct Pass *wanted;
    const int64_t *index;
    long rows, requests, block_size, longest, tile;
    int attending, threads; /* threads for attention, and for products */
} Pass;
/* The pass over those rows. */
static inline const Pass *wanted_of(const Pass *p) { return p->wanted ? p->wanted : p; }
/* For what takes a tenth of a microsecond a row: waking others costs more for few. */
static inline int threads_for(const Pass *p, long rows) { return rows >= 64 ? p->threads : 1; }
static inline long wanted_row(const Pass *p, long i) { return p->wanted ? p->index[i] : i; }
typedef struct HalfLayer HalfLayer;
void mla(const HalfLayer *m, const Pass *pass, bf16 *pool, const bf16 *x, const float *cos, const float *sin, bf16 *sum,
         bf16 *normed, bf16 *room);
typedef struct Module Module;
void mtp_module(const Module *m, const Pass *p, bf16 *pool, const int64_t *tokens, const int64_t *positions,
                const bf16 *states, bf16 *out, void *room);

/* In place on x [2 * half]: interleaved pairs to halves, turned by cos and sin [half]; half is at most 256. */
static inline void rotate_pairs(bf16 *x, const float *cos, const float *sin, long half) {
    float a[256], b[256];
    for (long i = 0; i < half; i++) a[i] = up(x[2 * i]), b[i] = up(x[2 * i + 1]);
    for (long i = 0; i < half; i++) {
        x[i] = down(a[i] * cos[i] - b[i] * sin[i]);
        x[half + i] = down(b[i] * cos[i] + a[i] * sin[i]);
    }
}
