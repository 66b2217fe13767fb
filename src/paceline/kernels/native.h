/* What the files call of each other. */
#include "bf16.h"

void rms_norm(const bf16 *all, const bf16 *weight, bf16 *made, long rows, long n, long stride, float eps, int threads);
void bf16_linear(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *out, long rows, long inputs, long outputs,
                 int threads);
void attend_heads(const bf16 *q, const bf16 *keys, const bf16 *shared, const bf16 *values, bf16 *out,
                  const int64_t *numbers, float *scratch, long requests, long heads, long kv_heads, long q_stride,
                  long own, long rest, long v_dim, long k_stride, long v_stride, long block_size, long longest,
                  float scale, long tile, int threads);

/* In place on x [2 * half]: interleaved pairs to halves, turned by cos and sin [half]; half is at most 256. */
static inline void rotate_pairs(bf16 *x, const float *cos, const float *sin, long half) {
    float a[256], b[256];
    for (long i = 0; i < half; i++) a[i] = up(x[2 * i]), b[i] = up(x[2 * i + 1]);
    for (long i = 0; i < half; i++) {
        x[i] = down(a[i] * cos[i] - b[i] * sin[i]);
        x[half + i] = down(b[i] * cos[i] + a[i] * sin[i]);
    }
}
