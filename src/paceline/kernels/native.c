/* The small steps between the matrix products, for bf16 on the CPU. In torch each of them is several operations of
 * one to three microseconds; a decode step of a small model is little else. Every function treats a row by itself, so
 * a row has the same bits among any others. No state, no allocation, one thread. Compiled by native.py; reference.py
 * says what each means. */
#include <math.h>
#include <string.h>

#include "bf16.h"

/* e^y to 2e-7 relative for y <= 88, 0 below -87; vectorises without a library */
static inline float quick_exp(float y) {
    float x = y < -87 ? -87 : y;
    float n = nearbyintf(x * 1.44269504f);
    float f = (x - n * 0.693145752f) - n * 1.42860677e-6f; /* |f| <= ln 2 / 2 */
    float p = 1.0f / 720;
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1;
    p = p * f + 1;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return y < -87 ? 0 : p * power;
}

static float scale_of(const bf16 *x, long n, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < n; i++) sum += up(x[i]) * up(x[i]);
    return 1 / sqrtf(sum / n + eps);
}

/* out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight; rows lie `stride` apart in x and are dense in out. */
void rms_norm(const bf16 *x, const bf16 *weight, bf16 *out, long rows, long n, long stride, float eps) {
    for (long r = 0; r < rows; r++, x += stride, out += n) {
        float scale = scale_of(x, n, eps);
#pragma omp simd
        for (long i = 0; i < n; i++) out[i] = down(up(x[i]) * scale * up(weight[i]));
    }
}

/* In place on made [rows, heads, rank + rope]: rotates the last `rope` numbers of every head, interleaved pairs to
 * halves, by cos and sin [rows, rope / 2]; and normalises the first `rank` of the last head, the key's latent. */
void rotate_and_norm(bf16 *made, const float *cos, const float *sin, const bf16 *weight, long rows, long heads,
                     long rank, long rope, float eps) {
    long half = rope / 2;
    float a[256], b[256];
    for (long r = 0; r < rows; r++, cos += half, sin += half) {
        for (long h = 0; h < heads; h++, made += rank + rope) {
            bf16 *x = made + rank;
            for (long i = 0; i < half; i++) a[i] = up(x[2 * i]), b[i] = up(x[2 * i + 1]);
            for (long i = 0; i < half; i++) {
                x[i] = down(a[i] * cos[i] - b[i] * sin[i]);
                x[half + i] = down(b[i] * cos[i] + a[i] * sin[i]);
            }
        }
        bf16 *latent = made - (rank + rope);
        float scale = scale_of(latent, rank, eps);
#pragma omp simd
        for (long i = 0; i < rank; i++) latent[i] = down(up(latent[i]) * scale * up(weight[i]));
    }
}

/* In place on scores [rows, heads, width]: softmax over the columns first .. context + row (a row below `first` sees
 * itself), 0 elsewhere. */
void causal_softmax(bf16 *scores, long rows, long heads, long width, long context, long first) {
    for (long r = 0; r < rows; r++) {
        long end = context + r + 1, begin = first < end ? first : end - 1;
        for (long h = 0; h < heads; h++, scores += width) {
            float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
            for (long i = begin; i < end; i++) most = up(scores[i]) > most ? up(scores[i]) : most;
#pragma omp simd reduction(+ : sum)
            for (long i = begin; i < end; i++) sum += quick_exp(up(scores[i]) - most);
            float share = 1 / sum;
#pragma omp simd
            for (long i = begin; i < end; i++) scores[i] = down(quick_exp(up(scores[i]) - most) * share);
            memset(scores, 0, begin * sizeof(bf16));
            memset(scores + end, 0, (width - end) * sizeof(bf16));
        }
    }
}

/* x [rows, hidden], weight [experts, hidden], bias [experts] to shares [rows, experts]: sigmoid scores of the `top`
 * experts with the largest score + bias (the lowest of equals), made to sum to 1 when `normalise`, times `scaling`; 0
 * elsewhere. */
void route(const bf16 *x, const bf16 *weight, const float *bias, float *shares, long rows, long experts, long hidden,
           long top, int normalise, float scaling) {
    for (long r = 0; r < rows; r++, x += hidden, shares += experts) {
        float scores[256], choice[256], total = 0;
        for (long e = 0; e < experts; e++) {
            const bf16 *w = weight + e * hidden;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < hidden; i++) sum += up(x[i]) * up(w[i]);
            scores[e] = 1 / (1 + quick_exp(-sum < 88 ? -sum : 88));
            choice[e] = scores[e] + bias[e];
            shares[e] = 0;
        }
        for (long k = 0; k < top; k++) {
            long best = 0;
            for (long e = 1; e < experts; e++)
                if (choice[e] > choice[best]) best = e;
            choice[best] = -INFINITY;
            shares[best] = scores[best];
            total += scores[best];
        }
        float factor = normalise ? scaling / (total + 1e-20f) : scaling;
        for (long e = 0; e < experts; e++) shares[e] *= factor;
    }
}

/* gate_up [rows, 2 * n] to out [rows, n] = silu(first n) * last n, times shares[row, i / width] for the first
 * experts * width columns. */
void gated(const bf16 *gate_up, const float *shares, bf16 *out, long rows, long n, long experts, long width) {
    for (long r = 0; r < rows; r++, gate_up += 2 * n, out += n, shares += experts) {
        const bf16 *gate = gate_up, *value = gate_up + n;
        for (long e = 0; e <= experts; e++) { /* the last round: what no expert owns */
            long begin = e * width, end = e < experts ? begin + width : n;
            float share = e < experts ? shares[e] : 1;
            if (share == 0) {
                memset(out + begin, 0, (end - begin) * sizeof(bf16));
                continue;
            }
#pragma omp simd
            for (long i = begin; i < end; i++) {
                float g = up(gate[i]);
                out[i] = down(g / (1 + quick_exp(-g < 88 ? -g : 88)) * up(value[i]) * share);
            }
        }
    }
}

/* Sixteen floats; arithmetic on them is elementwise, so the order of every sum is written here and not found by a
 * compiler. */
typedef float lanes __attribute__((vector_size(64), aligned(4)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2)));

static inline lanes load(const bf16 *x) {
    return (lanes)(__builtin_convertvector(*(const halves *)x, words) << 16);
}

static inline float total(lanes x) {
    typedef float eight __attribute__((vector_size(32)));
    typedef float four __attribute__((vector_size(16)));
    eight halves_of[2];
    memcpy(halves_of, &x, 64);
    eight e = halves_of[0] + halves_of[1];
    four quarters[2];
    memcpy(quarters, &e, 32);
    four f = quarters[0] + quarters[1];
    return (f[0] + f[2]) + (f[1] + f[3]);
}

#define INLINE static inline __attribute__((always_inline))

#ifdef __AVX512BF16__ /* two bf16 products a lane in one instruction */
#include <immintrin.h>
#define STEP 32
INLINE lanes product(lanes sum, const bf16 *x, const bf16 *y) {
    __m512bh a = (__m512bh)_mm512_loadu_si512(x), b = (__m512bh)_mm512_loadu_si512(y);
    return (lanes)_mm512_dpbf16_ps((__m512)sum, a, b);
}
#else
#define STEP 16
INLINE lanes product(lanes sum, const bf16 *x, const bf16 *y) { return sum + load(x) * load(y); }
#endif

/* out[g] = queries[g] . key for n queries, `size` numbers each, one behind the other. */
INLINE void dots(const int n, const bf16 *queries, const bf16 *key, long size, float *out) {
    lanes sums[n];
#pragma GCC unroll 16
    for (int g = 0; g < n; g++) sums[g] = (lanes){0};
    for (long i = 0; i < size; i += STEP) {
#pragma GCC unroll 16
        for (int g = 0; g < n; g++) sums[g] = product(sums[g], queries + g * size + i, key + i);
    }
#pragma GCC unroll 16
    for (int g = 0; g < n; g++) out[g] = total(sums[g]);
}

/* out[g] = sum over p of weights[p][g] * (16 * wide numbers of latents[p]) / sum[g], for n weights a place. */
INLINE void mix(const int n, const int wide, const bf16 *const *latents, const float *weights, long length,
                const float *sum, long column, bf16 *out, long stride, long row_stride) {
    lanes mixed[n * wide];
#pragma GCC unroll 16
    for (int i = 0; i < n * wide; i++) mixed[i] = (lanes){0};
    for (long p = 0; p < length; p++) {
#pragma GCC unroll 4
        for (int i = 0; i < wide; i++) {
            lanes v = load(latents[p] + column + 16 * i);
#pragma GCC unroll 16
            for (int g = 0; g < n; g++) mixed[g * wide + i] += v * weights[n * p + g];
        }
    }
    for (int g = 0; g < n; g++)
        for (int i = 0; i < 16 * wide; i++)
            out[g / 4 * row_stride + g % 4 * stride + i] = down(mixed[g * wide + i / 16][i % 16] / sum[g]);
}

/* Four heads of `rows` rows, the first of which sees the latents begin .. end - 1, each next one more. Sums run over
 * the places in order, and what a row does not see weighs 0: the bits are the same for any `rows`. `weights` has room
 * for 16 numbers more. */
INLINE void attend_tile(const int rows, const bf16 *q, long q_stride, const bf16 *const *latents, long begin, long end,
                        bf16 *query, float *weights, bf16 *out, long out_stride, long k_dim, long v_dim, float scale) {
    const int n = 4 * rows, wide = rows == 1 ? 4 : 1;
    long length = end + rows - 1 - begin;
    for (int r = 0; r < rows; r++)
        memcpy(query + r * 4 * k_dim, q + r * q_stride, 4 * k_dim * sizeof(bf16));
    for (long p = 0; p < length; p++) dots(n, query, latents[begin + p], k_dim, weights + n * p);
    for (long p = end - begin; p < length; p++)
        for (int g = 0; g < n; g++)
            if (begin + p >= end + g / 4) weights[n * p + g] = -INFINITY;
    float most[16], sum[16] = {0};
    for (int g = 0; g < n; g++) most[g] = weights[g];
    for (long p = 1; p < length; p++)
        for (int g = 0; g < n; g++) most[g] = weights[n * p + g] > most[g] ? weights[n * p + g] : most[g];
    for (int i = n; i < 16; i++) most[i] = most[i % n];
    for (long i = 0; i < n * length; i += 16)
        for (int j = 0; j < 16; j++) weights[i + j] = quick_exp((weights[i + j] - most[j]) * scale);
    for (long p = 0; p < length; p++)
        for (int g = 0; g < n; g++) sum[g] += weights[n * p + g];
    for (long c = 0; c < v_dim; c += 16 * wide)
        mix(n, wide, latents + begin, weights, length, sum, c, out + c, v_dim, out_stride);
}

/* Attention over one key head that keeps latents: the value is the first v_dim numbers of the key. k_dim is a
 * multiple of 32, v_dim of 64, heads of 4; scale is above 0. q [rows, heads, k_dim], rows `q_stride` apart; keys
 * [slots, k_dim]; out [rows, heads, v_dim]. Request r owns the rows starts[r] .. starts[r + 1], which lie at the
 * places from context[r] on; place p is in slot blocks[tables[r] + p / block_size] * block_size + p % block_size. A
 * row sees the places first[r] .. its own (itself at least). latents: as many pointers as the longest context with its
 * rows; scratch: 16 * (k_dim + as many + 1) floats. */
void attend_latent(const bf16 *q, const bf16 *keys, bf16 *out, const int64_t *starts, const int64_t *context,
                   const int64_t *first, const int64_t *tables, const int64_t *blocks, const bf16 **latents,
                   float *scratch, long requests, long heads, long q_stride, long k_dim, long v_dim, long block_size,
                   float scale) {
    bf16 *query = (bf16 *)scratch;
    float *weights = scratch + 8 * k_dim;
    for (long r = 0; r < requests; r++) {
        const int64_t *table = blocks + tables[r];
        long rows = starts[r + 1] - starts[r], row = 0, end = context[r] + 1;
        for (long p = 0; p < context[r] + rows; p++)
            latents[p] = keys + (table[p / block_size] * block_size + p % block_size) * k_dim;
        while (row < rows) {
            int tile = rows - row >= 4 && first[r] < end + row ? 4 : 1;
            long begin = first[r] < end + row ? first[r] : end + row - 1;
            const bf16 *x = q + (starts[r] + row) * q_stride;
            bf16 *y = out + (starts[r] + row) * heads * v_dim;
            for (long h = 0; h < heads; h += 4, x += 4 * k_dim, y += 4 * v_dim)
#define TILE(n)                                                                                               \
    attend_tile(n, x, q_stride, latents, begin, end + row, query, weights, y, heads * v_dim, k_dim, v_dim, scale)
                if (tile == 4)
                    TILE(4);
                else
                    TILE(1);
#undef TILE
            row += tile;
        }
    }
}
