/* The small steps between the matrix products, for bf16 on the CPU. In torch each of them is several operations of
 * one to three microseconds; a decode step of a small model is little else. Every function treats a row by itself, so
 * a row has the same bits among any others, on any number of threads. No state, no allocation. Compiled by native.py;
 * reference.py says what each means. */
#include "native.h"
#include "quick_exp.h"

/* Rows are shared out where `threads` is above 1. */
#define EACH_ROW _Pragma("omp parallel for num_threads(threads) if (threads > 1)") for (long r = 0; r < rows; r++)

/* 1 / sqrt(mean(x^2) + eps) */
HIDDEN float scale_of(const bf16 *x, long n, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < n; i++) sum += up(x[i]) * up(x[i]);
    return 1 / sqrtf(sum / n + eps);
}

static void norm_row(const bf16 *x, const bf16 *weight, bf16 *out, long n, float eps) {
    float scale = scale_of(x, n, eps);
#pragma omp simd
    for (long i = 0; i < n; i++) out[i] = down(up(x[i]) * scale * up(weight[i]));
}

/* made[r] = all[r] / sqrt(mean(all[r]^2) + eps) * weight; rows lie `stride` apart in `all` and are dense in `made`. */
HIDDEN void norm_rows(const bf16 *all, const bf16 *weight, bf16 *made, Rows rows, long n, long stride, float eps) {
    for (long r = rows.begin; r < rows.end; r++) norm_row(all + r * stride, weight, made + r * n, n, eps);
}

void rms_norm(const bf16 *all, const bf16 *weight, bf16 *made, long rows, long n, long stride, float eps, int threads) {
    TOGETHER(threads, norm_rows(all, weight, made, rows_of(team, rows), n, stride, eps));
}

/* made[r] = the norms of table[tokens[r]] and of states[r], side by side, the state's first when `states_first`. */
void norm_pairs(const int64_t *tokens, const bf16 *table, const bf16 *states, const bf16 *token_weight,
                const bf16 *state_weight, bf16 *made, long rows, long n, int states_first, float eps) {
    for (long r = 0; r < rows; r++, made += 2 * n) {
        norm_row(table + tokens[r] * n, token_weight, made + (states_first ? n : 0), n, eps);
        norm_row(states + r * n, state_weight, made + (states_first ? 0 : n), n, eps);
    }
}

/* Of each row of scores [rows, n] the best column, the first of equals, and log(exp(score) / sum of exp(scores)) where
 * there is room for it. */
HIDDEN void best_rows(const bf16 *all, int64_t *best, float *rated, Rows rows, long n) {
    for (long r = rows.begin; r < rows.end; r++) {
        const bf16 *scores = all + r * n;
        float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
        for (long i = 0; i < n; i++) most = up(scores[i]) > most ? up(scores[i]) : most;
        int at = (int)n;
#pragma omp simd reduction(min : at)
        for (int i = 0; i < (int)n; i++) at = up(scores[i]) == most && i < at ? i : at;
        best[r] = at < n ? at : 0; /* none is best where all is NaN */
        if (!rated) continue;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < n; i++) sum += quick_exp(up(scores[i]) - most);
        rated[r] = -logf(sum);
    }
}

void best_of(const bf16 *scores, int64_t *best, float *rated, long rows, long n, int threads) {
    TOGETHER(threads, best_rows(scores, best, rated, rows_of(team, rows), n));
}

/* In place on made [rows, heads, rank + rope]: rotates the last `rope` numbers of every head, interleaved pairs to
 * halves, by all_cos and all_sin [rows, rope / 2]; and normalises the first `rank` of the last head, the key's latent. */
void rotate_and_norm(bf16 *made, const float *all_cos, const float *all_sin, const bf16 *weight, long rows, long heads,
                     long rank, long rope, float eps, int threads) {
    long half = rope / 2;
    EACH_ROW {
        const float *cos = all_cos + r * half, *sin = all_sin + r * half;
        bf16 *latent = made + (r * heads + heads - 1) * (rank + rope);
        for (long h = 0; h < heads; h++) rotate_pairs(made + (r * heads + h) * (rank + rope) + rank, cos, sin, half);
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

/* x . w of as many rows w as there are sums: together, for one sum alone waits for itself. */
static void dots(const bf16 *x, const bf16 *w, long n, long count, float *sums) {
    float a = 0, b = 0, c = 0, d = 0;
    if (count < 4) {
        for (long e = 0; e < count; e++, w += n) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (long i = 0; i < n; i++) sum += up(x[i]) * up(w[i]);
            sums[e] = sum;
        }
        return;
    }
#pragma omp simd reduction(+ : a, b, c, d)
    for (long i = 0; i < n; i++) {
        float y = up(x[i]);
        a += y * up(w[i]), b += y * up(w[n + i]), c += y * up(w[2 * n + i]), d += y * up(w[3 * n + i]);
    }
    sums[0] = a, sums[1] = b, sums[2] = c, sums[3] = d;
    dots(x, w + 4 * n, n, count - 4, sums + 4);
}

/* all [rows, hidden], weight [experts, hidden], bias [experts] to all_shares [rows, experts]: sigmoid scores of the `top`
 * experts with the largest score + bias (the lowest of equals), made to sum to 1 when `normalise`, times `scaling`; 0
 * elsewhere. */
HIDDEN void route_rows(const bf16 *all, const bf16 *weight, const float *bias, float *all_shares, Rows rows, long experts,
                       long hidden, long top, int normalise, float scaling) {
    for (long r = rows.begin; r < rows.end; r++) {
        const bf16 *x = all + r * hidden;
        float *shares = all_shares + r * experts;
        float scores[256], choice[256], total = 0;
        dots(x, weight, hidden, experts, scores);
#pragma omp simd
        for (long e = 0; e < experts; e++) {
            float sum = scores[e];
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

void route(const bf16 *all, const bf16 *weight, const float *bias, float *all_shares, long rows, long experts, long hidden,
           long top, int normalise, float scaling, int threads) {
    TOGETHER(threads, route_rows(all, weight, bias, all_shares, rows_of(team, rows), experts, hidden, top, normalise, scaling));
}

/* gate_up [rows, 2 * n] to made [rows, n] = silu(first n) * last n, times all_shares[row, i / width] for the first
 * experts * width columns. */
void gated(const bf16 *gate_up, const float *all_shares, bf16 *made, long rows, long n, long experts, long width,
           int threads) {
    EACH_ROW {
        const bf16 *gate = gate_up + r * 2 * n, *value = gate + n;
        const float *shares = all_shares + r * experts;
        bf16 *out = made + r * n;
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
