/* Gumbel noise keyed by place, as reference.py defines it, and the choice of tokens by it. Numbers go in blocks of one
 * size, so that a value has the same bits in any vocabulary, and in a choice as in `gumbel`. No state, no allocation. */
#include "native.h"
#include "quick_exp.h"

enum { BLOCK = 64 };

/* log y of a positive normal number, to 2e-7 relative; vectorises without a library. Polynomial: logf of Cephes. */
static inline float quick_log(float y) {
    int32_t bits;
    memcpy(&bits, &y, 4);
    int32_t power = (bits - 0x3F3504F3) >> 23; /* y = 2^power * m with m from sqrt(1/2) to sqrt(2) */
    bits -= power << 23;
    float m;
    memcpy(&m, &bits, 4);
    float f = m - 1, square = f * f, n = (float)power, p = 7.0376836292e-2f;
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    return f + (f * square * p - 2.12194440e-4f * n - 0.5f * square) + 0.693359375f * n;
}

/* 31 random bits for a token: its hash and the place's key. */
static inline int32_t mixed(uint32_t hash, const uint32_t *key) {
    uint32_t b = (hash ^ key[0]) * 0x21F0AAADu;
    b = (b ^ b >> 15 ^ key[1]) * 0xD35A2D97u;
    return (int32_t)b ^ (int32_t)b >> 15;
}

/* The noise of BLOCK such numbers. Not inlined: a compiler may contract its sums in another way elsewhere. */
static __attribute__((noinline)) void noise_of(const int32_t *numbers, float *noise) {
#pragma omp simd
    for (int j = 0; j < BLOCK; j++) {
        float x = (float)numbers[j] * -0x1.fffffep-32f - 0x1p-32f; /* -((1 - 2^-24) 2^-31 number + 2^-32) */
        float y = 1 + x;
        noise[j] = -quick_log(-(quick_log(y) + (x - (y - 1)) / y)); /* the last term: what was lost in 1 + x */
    }
}

/* made [rows, n] from keys [rows, 2] and the hashes [n] of the token ids. */
void gumbel(const uint32_t *keys, const int32_t *hashes, float *made, long rows, long n) {
    for (long r = 0; r < rows; r++, keys += 2)
        for (long i = 0; i < n; i += BLOCK) {
            long count = n - i < BLOCK ? n - i : BLOCK;
            int32_t numbers[BLOCK] = {0};
            float noise[BLOCK];
            memcpy(numbers, hashes + i, count * sizeof *numbers);
#pragma omp simd
            for (int j = 0; j < BLOCK; j++) numbers[j] = mixed((uint32_t)numbers[j], keys);
            noise_of(numbers, noise);
            memcpy(made + r * n + i, noise, count * sizeof *made);
        }
}

static uint64_t splitmix64(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

/* The noise of a number is at most -log((number + 1/2) / 2^31), and log2 y at least what y's bits are as an integer,
 * over 2^23, less the exponent's bias. This is that bound and 1/128, more than all roundings together. */
static inline float most_noise(int32_t number) {
    const float log2 = 0.69314718f;
    float y = (float)number + 0.5f;
    int32_t bits;
    memcpy(&bits, &y, 4);
    return (31 + 127) * log2 + 0x1p-7f - (float)bits * (log2 / (1 << 23));
}

/* The first token of those with the most logit / heat + noise. A block of which none can reach what was found before
 * it needs no noise: rounding keeps order, so a token's score is at most what its logit and the bound add up to. */
static int64_t drawn(const bf16 *logits, const int32_t *hashes, const uint32_t *key, float heat, long n) {
    float best = -INFINITY;
    int64_t found = 0;
    for (long i = 0; i < n; i += BLOCK) {
        long count = n - i < BLOCK ? n - i : BLOCK;
        int32_t numbers[BLOCK] = {0};
        bf16 mine[BLOCK];
        float scores[BLOCK], noise[BLOCK], reach = -INFINITY, most = -INFINITY;
        for (int j = 0; j < BLOCK; j++) mine[j] = 0xFF80; /* -inf */
        memcpy(mine, logits + i, count * sizeof *mine);
        memcpy(numbers, hashes + i, count * sizeof *numbers);
#pragma omp simd reduction(max : reach)
        for (int j = 0; j < BLOCK; j++) {
            numbers[j] = mixed((uint32_t)numbers[j], key);
            scores[j] = up(mine[j]) / heat;
            float bound = scores[j] + most_noise(numbers[j]);
            reach = bound > reach ? bound : reach;
        }
        if (!(reach > best)) continue;
        noise_of(numbers, noise);
#pragma omp simd reduction(max : most)
        for (int j = 0; j < BLOCK; j++) {
            scores[j] += noise[j];
            most = scores[j] > most ? scores[j] : most;
        }
        if (!(most > best)) continue;
        int at = BLOCK;
#pragma omp simd reduction(min : at)
        for (int j = 0; j < BLOCK; j++) at = scores[j] == most && j < at ? j : at;
        best = most, found = i + at;
    }
    return found;
}

/* log(exp(x[token] / heat) / sum of exp(x / heat)) */
static float rate(const bf16 *x, float heat, int64_t token, long n) {
    float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
    for (long i = 0; i < n; i++) most = up(x[i]) > most ? up(x[i]) : most;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < n; i++) sum += quick_exp((up(x[i]) - most) / heat);
    return (up(x[token]) - most) / heat - logf(sum);
}

/* The token of each row of logits [rows, n]: the first of those with the most logit, where heats[r] is 0; else with the
 * most logit / heats[r] + noise of places[r], a seed and a position. rated [rows]: its log-probability at that
 * temperature, or at 1; or none. */
HIDDEN void choose_rows(const bf16 *logits, const uint64_t *places, const float *heats, const int32_t *hashes, int64_t *chosen,
                        float *rated, Rows rows, long n) {
    for (long r = rows.begin; r < rows.end; r++) {
        const bf16 *mine = logits + r * n;
        if (!(heats[r] > 0)) {
            best_rows(logits, chosen, rated, (Rows){r, r + 1}, n);
            continue;
        }
        uint64_t mix = splitmix64(splitmix64(places[2 * r]) + places[2 * r + 1]) ^ 1ull << 63; /* as noise.py */
        uint32_t key[2] = {(uint32_t)mix, (uint32_t)(mix >> 32)};
        chosen[r] = drawn(mine, hashes, key, heats[r], n);
        if (rated) rated[r] = rate(mine, heats[r], chosen[r], n);
    }
}

void choose(const bf16 *logits, const uint64_t *places, const float *heats, const int32_t *hashes, int64_t *chosen,
            float *rated, long rows, long n, int threads) {
    TOGETHER(threads, choose_rows(logits, places, heats, hashes, chosen, rated, rows_of(team, rows), n));
}
