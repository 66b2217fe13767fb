/* What a grammar's masks leave of logits. */
#include "native.h"

enum { WORD = 64 };

/* made [rows, n]: the logits that the masks [rows, bytes] allow, a bit each from the lowest of the first byte on, raised
 * to `least`; -inf for the rest. A mask has whole words of 32 bits. */
void only_allowed(const bf16 *logits, const uint8_t *masks, bf16 *made, long rows, long n, long bytes, float least) {
    bf16 floor = down(least), never = 0xFF80;
    for (long r = 0; r < rows; r++, logits += n, masks += bytes, made += n)
        for (long i = 0; i < n; i += WORD) {
            long count = n - i < WORD ? n - i : WORD, left = bytes - i / 8;
            uint64_t word = 0;
            memcpy(&word, masks + i / 8, left < 8 ? left : 8);
            bf16 mine[WORD] = {0};
            memcpy(mine, logits + i, count * sizeof *mine);
#pragma omp simd
            for (int j = 0; j < WORD; j++) {
                bf16 raised = up(mine[j]) < least ? floor : mine[j];
                mine[j] = word >> j & 1 ? raised : never;
            }
            memcpy(made + i, mine, count * sizeof *mine);
        }
}
