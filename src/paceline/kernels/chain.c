/* Modules that draft, one after the other for a batch of requests in one call: what a module reads is known before, but
 * for the drafts and outputs of those before it. Made of the other files' functions, so a row has the same bits as where
 * each depth is a call of its own. No state, no allocation. */
#include "bf16.h"

#ifdef TILES
#include "native.h"

enum { FEW_ROWS = 4, MANY_ROWS = 16 }; /* of a request in a tile; as in heads.py */
enum { MANY = 1 << 16 };               /* logits; as in native.py */

/* head [vocab, hidden] as packed_linear reads it, with codes or not, bias [vocab] or none; pool: where the module keeps
 * what it reads. */
typedef struct {
    const Module *module;
    const void *head;
    const bf16 *bias;
    bf16 *pool;
    long codes;
} Depth;

/* hashes [vocab]: of the token ids; block_size slots in a block; heads: those of attention, whose work is shared out from
 * `shared` on. */
typedef struct {
    const Depth *depths;
    const int32_t *hashes;
    long count, hidden, vocab, block_size, heads, shared;
} Chain;

/* One request: `length` committed tokens, those from place `known` on at tokens + token; its blocks at blocks + table.
 * seed: of its noise. silent: of its last module only the last output is wanted. */
typedef struct {
    int64_t width, length, known, token, table, seed, silent;
} Asked;

/* A module's rows of a request begin at slot `start`; it sees those from `first` on. Features wait for the rows before
 * those that it reads of the module before; for the first module, for all. */
typedef struct {
    int64_t start, first;
} Way;

/* What a call works on; drafts [width, asked], ways [depths, asked]; ends: of each request, behind its last output. */
typedef struct {
    const Asked *requests;
    const Way *ways;
    const int64_t *tokens, *blocks;
    int64_t *drafts;
    long asked;
    int64_t *row_tokens, *positions, *slots, *index;
    const bf16 **ends;
    bf16 *features;
} Work;

/* A request's rows in a pass of module `depth`, the places start .. end - 1, from row `to` of all on. */
static void lay_rows(const Work *w, long r, long depth, long start, long end, long block_size, long to) {
    const Asked *a = w->requests + r;
    for (long p = start; p < end; p++, to++) {
        long draft = p - a->length;
        w->row_tokens[to] = draft < 0 ? w->tokens[a->token + p - a->known] : w->drafts[draft * w->asked + r];
        w->slots[to] = w->blocks[a->table + p / block_size] * block_size + p % block_size;
        w->positions[to] = p - depth;
    }
}

/* All rows of draft number t for the first `left` requests. What waits, from `carried` on, lies before what the module
 * before handed on; returns where it ends. */
static const bf16 *lay_pass(const Chain *m, const Work *w, long t, long left, const bf16 *carried, Pass *pass) {
    long depth = t < m->count ? t : m->count, hidden = m->hidden, rows = 0;
    for (long r = 0; r < left; r++) {
        const Way *way = w->ways + (depth - 1) * w->asked + r;
        long end = w->requests[r].length + t - 1, start = t > depth ? end - 1 : way->start, count = end - start;
        long handed = t > depth ? 1 : t > 1 ? end - 1 - (way - w->asked)->start : 0, waiting = count - handed;
        bf16 *features = w->features + rows * hidden;
        lay_rows(w, r, depth, start, end, m->block_size, rows);
        memcpy(features, carried, waiting * hidden * sizeof *features);
        if (handed) memcpy(features + waiting * hidden, w->ends[r] - handed * hidden, handed * hidden * sizeof *features);
        carried += waiting * hidden, rows += count;
    }
    pass->slots = w->slots, pass->rows = rows;
    return carried;
}

/* The same pass over the rows whose outputs are wanted, of which attention wants to know. numbers: as attend_heads takes
 * them. */
static void lay_wanted(const Chain *m, const Work *w, long t, long left, int64_t *numbers, int threads, Pass *pass) {
    long depth = t < m->count ? t : m->count, rows = 0, longest = 0, work = 0, row = 0;
    int64_t *starts = numbers, *context = starts + left + 1, *first = context + left, *tables = first + left;
    starts[0] = 0;
    for (long r = 0; r < left; r++) {
        const Asked *a = w->requests + r;
        const Way *way = w->ways + (depth - 1) * w->asked + r;
        long end = a->length + t - 1, start = t > depth ? end - 1 : way->start;
        long count = a->silent && t == (a->width < m->count ? a->width : m->count) ? 1 : end - start;
        row += end - start;
        for (long i = row - count; i < row; i++) w->index[rows++] = i;
        starts[r + 1] = rows, context[r] = end - count, first[r] = way->first, tables[r] = a->table;
        work += count * end, longest = end > longest ? end : longest;
    }
    *pass = (Pass){.numbers = numbers, .rows = rows, .requests = left, .block_size = m->block_size,
                   .longest = longest, .tile = rows >= MANY_ROWS * left ? MANY_ROWS : FEW_ROWS, .threads = threads,
                   .attending = work * m->heads >= m->shared ? threads : 1, .scratch = pass->scratch};
}

/* Drafts for `asked` requests in order of falling width, of each as many as its width; beyond the last module that one
 * drafts again from its own output. blocks: with room for 4 * asked + 1 numbers before them. heats [asked]: as `choose`
 * takes them. carried: the features that wait, depth by depth; outputs: those that are wanted, one depth behind the other.
 * most: rows of a depth. scratch: as attend_heads takes it, for the last place of all. room: chain.py counts it. */
void draft_chain(const Chain *m, const Asked *requests, const Way *ways, const int64_t *tokens, int64_t *blocks,
                 const float *heats, const bf16 *carried, bf16 *outputs, int64_t *drafts, float *scratch, void *room,
                 long asked, long most, int threads) {
    long hidden = m->hidden, left = asked;
    int64_t *columns = room;
    const bf16 **ends = (const bf16 **)(columns + 4 * most);
    uint64_t *places = (uint64_t *)(ends + asked);
    bf16 *features = (bf16 *)(places + 2 * asked), *last = features + most * hidden, *logits = last + asked * hidden;
    void *inner = logits + asked * m->vocab;
    const Work w = {requests, ways,           tokens,             blocks, drafts,  asked,
                    columns,  columns + most, columns + 2 * most, columns + 3 * most, ends, features};
    for (long t = 1; t <= requests->width; t++) {
        while (requests[left - 1].width < t) left--;
        const Depth *depth = m->depths + (t < m->count ? t : m->count) - 1;
        Pass wanted = {.scratch = scratch}, pass;
        lay_wanted(m, &w, t, left, blocks - 4 * left - 1, threads, &wanted);
        pass = wanted;
        carried = lay_pass(m, &w, t, left, carried, &pass);
        if (wanted.rows < pass.rows) pass.wanted = &wanted, pass.index = w.index;
        mtp_module(depth->module, &pass, depth->pool, w.row_tokens, w.positions, features, outputs, inner);
        for (long r = 0; r < left; r++) {
            ends[r] = outputs + wanted.numbers[r + 1] * hidden;
            memcpy(last + r * hidden, ends[r] - hidden, hidden * sizeof *last);
            places[2 * r] = (uint64_t)requests[r].seed, places[2 * r + 1] = (uint64_t)(requests[r].length + t - 1);
        }
        packed_linear(last, depth->head, depth->bias, logits, left, hidden, m->vocab, (int)depth->codes, threads);
        choose(logits, places, heats, m->hashes, drafts + (t - 1) * asked, 0, left, m->vocab,
               left * m->vocab >= MANY ? threads : 1);
        outputs += wanted.rows * hidden;
    }
}
#endif
