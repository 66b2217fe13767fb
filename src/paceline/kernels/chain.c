/* Modules that draft, one after the other for a batch of requests in one call: what a module reads is known before, but
 * for the drafts and outputs of those before it. Made of the other files' functions, so a row has the same bits as where
 * each depth is a call of its own. No state, no allocation. */
#include "bf16.h"

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
#include "native.h"

/* head [vocab, hidden] as bf16_linear reads it, bias [vocab] or none; pool: where the module keeps what it reads. */
typedef struct {
    const Module *module;
    const bf16 *head, *bias;
    bf16 *pool;
} Depth;

/* block_size slots in a block; heads: those of attention, whose work is shared out from `shared` on. */
typedef struct {
    const Depth *depths;
    long count, hidden, vocab, block_size, heads, shared;
} Chain;

/* One request: `length` committed tokens, those from place `known` on at tokens + token; its blocks at blocks + table. */
typedef struct {
    int64_t width, length, known, token, table;
} Asked;

/* A module's rows of a request begin at slot `start`; it sees those from `first` on. Features wait for the rows before
 * those that it reads of the module before; for the first module, for all. */
typedef struct {
    int64_t start, first;
} Way;

/* Rows of a depth, and what they are made from. */
typedef struct {
    int64_t *tokens, *positions, *slots;
    const bf16 **ends; /* of each request: behind its last output */
    bf16 *features, *last, *logits;
    float *rated;
} Rows;

/* A request's rows start .. end - 1 of a module, from row `to` of all on. */
static void lay_rows(const Asked *a, const Rows *rows, const int64_t *tokens, const int64_t *blocks, const int64_t *drafts,
                     long asked, long block_size, long start, long end, long depth, long to) {
    for (long p = start; p < end; p++, to++) {
        rows->tokens[to] = p < a->length ? tokens[a->token + p - a->known] : drafts[(p - a->length) * asked];
        rows->slots[to] = blocks[a->table + p / block_size] * block_size + p % block_size;
        rows->positions[to] = p - depth;
    }
}

/* Drafts [width, asked], of each request as many as its width, which no later request's exceeds; beyond the last module
 * that one drafts again from its own output. ways [depths, asked]: of the modules that draft. blocks: with room for 4 *
 * asked + 1 numbers before them. carried: the features that wait, depth by depth; outputs: those of all depths' rows, one
 * depth behind the other. most: rows of a depth. scratch: as attend_heads takes it, for the last place of all. */
void draft_chain(const Chain *m, const Asked *requests, const Way *ways, const int64_t *tokens, int64_t *blocks,
                 const bf16 *carried, bf16 *outputs, int64_t *drafts, float *scratch, void *room, long asked, long most,
                 int threads) {
    long hidden = m->hidden, left = asked, width = requests->width;
    Rows rows = {.tokens = room};
    rows.positions = rows.tokens + most, rows.slots = rows.positions + most, rows.ends = (const bf16 **)(rows.slots + most);
    rows.rated = (float *)(rows.ends + asked), rows.features = (bf16 *)(rows.rated + 2 * asked);
    rows.last = rows.features + most * hidden, rows.logits = rows.last + asked * hidden;
    void *inner = rows.logits + asked * m->vocab;
    for (long t = 1; t <= width; t++) {
        while (requests[left - 1].width < t) left--;
        long own = t < m->count ? t : m->count, total = 0, longest = 0, work = 0;
        const Depth *depth = m->depths + own - 1;
        int64_t *starts = blocks - 4 * left - 1, *context = starts + left + 1, *first = context + left, *tables = first + left;
        starts[0] = 0;
        for (long r = 0; r < left; r++) {
            const Way *way = ways + (own - 1) * asked + r;
            long end = requests[r].length + t - 1, start = t > own ? end - 1 : way->start, count = end - start;
            long handed = t > own ? 1 : t > 1 ? end - 1 - (way - asked)->start : 0, waiting = count - handed;
            lay_rows(requests + r, &rows, tokens, blocks, drafts + r, asked, m->block_size, start, end, own, total);
            bf16 *features = rows.features + total * hidden;
            memcpy(features, carried, waiting * hidden * sizeof *features);
            if (handed)
                memcpy(features + waiting * hidden, rows.ends[r] - handed * hidden, handed * hidden * sizeof *features);
            carried += waiting * hidden, total += count, work += count * end;
            starts[r + 1] = total, context[r] = start, first[r] = way->first, tables[r] = requests[r].table;
            longest = end > longest ? end : longest;
        }
        int attending = work * m->heads >= m->shared ? threads : 1;
        Pass pass = {rows.slots, starts, scratch, total, left, m->block_size, longest, total >= 16 * left ? 16 : 4,
                     attending, threads};
        mtp_module(depth->module, &pass, depth->pool, rows.tokens, rows.positions, rows.features, outputs, inner);
        for (long r = 0; r < left; r++) {
            rows.ends[r] = outputs + starts[r + 1] * hidden;
            memcpy(rows.last + r * hidden, rows.ends[r] - hidden, hidden * sizeof *rows.last);
        }
        bf16_linear(rows.last, depth->head, depth->bias, rows.logits, left, hidden, m->vocab, threads);
        best_of(rows.logits, drafts + (t - 1) * asked, rows.rated, left, m->vocab);
        outputs += total * hidden;
    }
}
#endif
