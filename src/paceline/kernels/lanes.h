/* Vectors of 16 floats, or of 32 bf16 numbers in pairs, and what attention does with them: for any processor. */
#include "bf16.h"
#include "quick_exp.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { LANES = 16, STEP = 2 * LANES /* bf16 numbers in a vector */ };

/* Arithmetic on these is elementwise: the order of every sum is written here and not found by a compiler. */
typedef float lanes __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(64)));
typedef uint16_t half_as_many __attribute__((vector_size(32)));

#ifdef __clang__
#define PICK(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(type, a, b, ...) __builtin_shuffle(a, b, (type){__VA_ARGS__})
#endif

#ifdef __AVX512BF16__ /* two bf16 products a lane in one instruction */
#include <immintrin.h>
INLINE lanes product(lanes sum, words x, words y) { /* written out, as in tile.h */
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
    return sum;
}
#else
INLINE lanes product(lanes sum, words x, words y) {
    const words high = (words){0} + 0xFFFF0000u;
    sum += (lanes)(x & high) * (lanes)(y & high);
    return sum + (lanes)(x << 16) * (lanes)(y << 16);
}
#endif

INLINE words load(const bf16 *x) {
    words y;
    memcpy(&y, x, sizeof y);
    return y;
}
INLINE lanes at(const float *x) {
    lanes y;
    memcpy(&y, x, sizeof y);
    return y;
}
INLINE void put(float *x, lanes y) { memcpy(x, &y, sizeof y); }

/* A vector of bf16 numbers as a factor, in `product`'s order: as it lies where pairs are quick; else in 32 bits, which a
 * factor that is used several times should be only once. `number`: what one lies in memory as. */
#if defined(__AVX512BF16__) && MADE_BY_AMD
typedef words factor;
typedef bf16 number;
INLINE factor factor_of(words x) { return x; }
INLINE factor factor_at(const number *x) { return load(x); }
INLINE lanes times(lanes sum, factor x, factor y) { return product(sum, x, y); }
#else
#define WIDE
typedef struct {
    lanes even, odd;
} factor;
typedef float number;
INLINE factor factor_of(words x) { return (factor){(lanes)(x << 16), (lanes)(x & ((words){0} + 0xFFFF0000u))}; }
INLINE factor factor_at(const number *x) { return (factor){at(x), at(x + LANES)}; }
INLINE lanes times(lanes sum, factor x, factor y) {
    sum += x.odd * y.odd;
    return sum + x.even * y.even;
}
#endif

INLINE words rounded(lanes x) { /* bf16 in the low half of each word: to nearest, ties to even */
    words bits = (words)x;
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

INLINE void store(bf16 *to, lanes x) {
    half_as_many y = __builtin_convertvector(rounded(x), half_as_many);
    memcpy(to, &y, sizeof y);
}

/* Lane i of the answer is the sum of the lanes of x[i]: halves, then quarters, then the rest, as one would fold one. */
INLINE lanes folded(lanes *x) {
    UNROLL for (int i = 0; i < 8; i++)
        x[i] = PICK(words, x[i], x[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
               PICK(words, x[i], x[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    UNROLL for (int i = 0; i < 4; i++)
        x[i] = PICK(words, x[i], x[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27) +
               PICK(words, x[i], x[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31);
    UNROLL for (int i = 0; i < 2; i++)
        x[i] = PICK(words, x[i], x[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               PICK(words, x[i], x[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return PICK(words, x[0], x[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30) +
           PICK(words, x[0], x[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
}

INLINE lanes larger(lanes x, lanes y) {
    words first = (words)(x > y);
    return (lanes)(((words)x & first) | ((words)y & ~first));
}
