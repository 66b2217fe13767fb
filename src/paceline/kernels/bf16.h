/* bf16 to float and back. */
#pragma once
/* For processors that multiply bf16 and int8, but have no tiles of their own (oneDNN is better at those). */
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && !defined(__AMX_BF16__)
#define TILES
#endif
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float up(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static inline bf16 down(float x) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bf16)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
