/* Up to 12 rows of bf16 numbers times 32 outputs of a weight, with all sums in registers: what products are made of. */
#include "bf16.h"

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#define TILES
#include <immintrin.h>

#define INSIDE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum {
    ROWS = 12,    /* at most in a tile: 24 sums in registers */
    OUTPUTS = 32, /* a block: two vectors */
    AHEAD = 8192, /* numbers of weights */
    AT_ONCE = 1 << 18 /* numbers of x that stay in the cache while all weights pass by */
};

/* A tile's rows are known when it is compiled. */
#define FOR_ROWS(count, TILE)                                                                                       \
    switch (count) {                                                                                                \
        TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) \
    }

/* sum += x w, over a pair of inputs a lane. Written out, for gcc moves sums to other registers, and to memory, around the
 * instruction that it knows: half as fast. */
INSIDE __m512 add_pairs(__m512 sum, __m512i x, __m512i w) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
    return sum;
}

/* sums[r] += x[r] times one block [inputs / 2, 32, 2], over pairs of inputs in order. fetch: where the weights to come
 * lie; of them `share` numbers are fetched for two inputs. */
INSIDE void multiply(const int rows, const bf16 *const *x, const bf16 *weight, long inputs, const bf16 *fetch, long share,
                     __m512 (*sums)[2]) {
    for (long k = 0; k < inputs; k += 2, weight += 2 * OUTPUTS, fetch += share) {
        __m512i low = _mm512_loadu_si512(weight), high = _mm512_loadu_si512(weight + OUTPUTS);
        __builtin_prefetch(fetch, 0, 2);
        __builtin_prefetch(fetch + share / 2, 0, 2);
        UNROLL for (int r = 0; r < rows; r++) {
            int pair;
            memcpy(&pair, x[r] + k, 4);
            __m512i v = _mm512_set1_epi32(pair);
            sums[r][0] = add_pairs(sums[r][0], v, low);
            sums[r][1] = add_pairs(sums[r][1], v, high);
        }
    }
}
#endif
