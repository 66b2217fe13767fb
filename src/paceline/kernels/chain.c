/* Modules that draft, one after the other for a batch of requests in one call: what a module reads is known before, but
 * for the drafts and outputs of those before it. Made of the other files' functions, so a row has the same bits as where
 * each depth is a call of its own. No state, no allocation. */
#include "bf16.h"

#ifdef TILES
#include "chain.h"

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
static void lay_wanted(const Chain *m, const Work *w, long t, long left, int64_t *numbers, Pass *pass) {
    long depth = t < m->count ? t : m->count, rows = 0, longest = 0, row = 0;
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
        longest = end > longest ? end : longest;
    }
    *pass = (Pass){.numbers = numbers, .rows = rows, .requests = left, .block_size = m->block_size,
                   .longest = longest, .window = m->window, .tile = rows >= MANY_ROWS * left ? MANY_ROWS : FEW_ROWS, .scratch = pass->scratch};
}

/* The pass of draft number t. */
static void lay(const Chain *m, const Work *w, long t, long left, Laid *at) {
    at->wanted = (Pass){.scratch = w->scratch};
    lay_wanted(m, w, t, left, w->blocks - 4 * left - 1, &at->wanted);
    at->all = at->wanted;
    at->carried = lay_pass(m, w, t, left, at->carried, &at->all);
    if (at->wanted.rows < at->all.rows) at->all.wanted = &at->wanted, at->all.index = w->index;
}

/* What each of my requests drafts from: the last of its outputs. */
static void take_last(const Chain *m, const Work *w, long t, Rows mine, const bf16 *outputs, const int64_t *ends) {
    for (long r = mine.begin; r < mine.end; r++) {
        w->ends[r] = outputs + ends[r + 1] * m->hidden;
        memcpy(w->last + r * m->hidden, w->ends[r] - m->hidden, m->hidden * sizeof *w->last);
        w->places[2 * r] = (uint64_t)w->requests[r].seed;
        w->places[2 * r + 1] = (uint64_t)(w->requests[r].length + t - 1);
    }
}

/* room: chain.py counts it. */
HIDDEN Work chain_work(const Chain *m, const Asked *requests, const Way *ways, const int64_t *tokens, int64_t *blocks,
                       const float *heats, int64_t *drafts, float *scratch, void *room, long asked, long most) {
    int64_t *columns = room;
    const bf16 **ends = (const bf16 **)(columns + 4 * most);
    uint64_t *places = (uint64_t *)(ends + asked);
    bf16 *features = (bf16 *)(places + 2 * asked), *last = features + most * m->hidden, *logits = last + asked * m->hidden;
    return (Work){requests, ways, tokens, blocks, drafts, heats, scratch, asked, columns, columns + most,
                  columns + 2 * most, columns + 3 * most, ends, places, features, last, logits, logits + asked * m->vocab};
}

HIDDEN void chain_part(const Chain *m, const Work *w, Laid *at, bf16 *outputs, const Team *team) {
    for (long t = 1, left = w->asked; t <= w->requests->width; t++) {
        while (w->requests[left - 1].width < t) left--;
        const Depth *depth = m->depths + (t < m->count ? t : m->count) - 1;
        const Product head = {w->last, depth->head, depth->bias, w->logits, left, m->hidden, m->vocab, depth->codes};
        if (last_to_come(team)) {
            lay(m, w, t, left, at);
            part_again(team);
        }
        module_part(depth->module, &at->all, depth->pool, w->row_tokens, w->positions, w->features, outputs, w->room, team);
        meet(team);
        take_last(m, w, t, rows_of(team, left), outputs, at->wanted.numbers);
        outputs += at->wanted.rows * m->hidden;
        meet(team);
        linear_part(&head, team);
        meet(team);
        choose_rows(w->logits, w->places, w->heats, m->hashes, w->drafts + (t - 1) * w->asked, 0, rows_of(team, left), m->vocab);
    }
}

/* Drafts for `asked` requests in order of falling width, of each as many as its width; beyond the last module that one
 * drafts again from its own output. blocks: with room for 4 * asked + 1 numbers before them. heats [asked]: as `choose`
 * takes them. carried: the features that wait, depth by depth; outputs: those that are wanted, one depth behind the other.
 * most: rows of a depth. scratch: as attend_heads takes it, for the last place of all. room: chain.py counts it. */
void draft_chain(const Chain *m, const Asked *requests, const Way *ways, const int64_t *tokens, int64_t *blocks,
                 const float *heats, const bf16 *carried, bf16 *outputs, int64_t *drafts, float *scratch, void *room,
                 long asked, long most, int threads) {
    const Work w = chain_work(m, requests, ways, tokens, blocks, heats, drafts, scratch, room, asked, most);
    Laid at = {.carried = carried};
    TOGETHER(threads, chain_part(m, &w, &at, outputs, team));
}
#endif
