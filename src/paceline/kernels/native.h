/* What the files call of each other. */
#include "bf16.h"

void rms_norm(const bf16 *all, const bf16 *weight, bf16 *made, long rows, long n, long stride, float eps, int threads);
void rotate_and_norm(bf16 *made, const float *all_cos, const float *all_sin, const bf16 *weight, long rows, long heads,
                     long rank, long rope, float eps, int threads);
void bf16_linear(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *out, long rows, long inputs, long outputs,
                 int threads);
void attend_latent(const bf16 *q, const bf16 *keys, bf16 *out, const int64_t *starts, const int64_t *context,
                   const int64_t *first, const int64_t *tables, const int64_t *blocks, float *scratch, long requests,
                   long heads, long q_stride, long k_dim, long v_dim, long block_size, long longest, float scale,
                   long tile, int threads);
