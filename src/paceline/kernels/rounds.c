/* Rounds in one call: modules draft for a batch of requests, one pass of the target verifies, and what it says itself is
 * where the next round begins. Made of the other files' functions, so every token, state and slot has the same bits as where
 * each round is a step. They are over when one has brought a token that ends somebody, or so many that the next might go
 * beyond somebody's length. No state, no allocation. */
#include "bf16.h"

#ifdef TILES
#include "chain.h"
#include <time.h>

/* The target: its layers, its head as packed_linear reads it, its pool, whose layers lie `stride` numbers behind one
 * another. chain: who drafts, or nobody. */
typedef struct {
    const Stack *stack;
    const Chain *chain;
    const bf16 *head, *bias;
    bf16 *pool;
    const int32_t *hashes;
    long hidden, vocab, block_size, stride;
} Rounds;

/* What a request brought: `count` tokens, from emitted + at on, and as many states. `stops`, `ends`: the tokens that would
 * end it are stop_tokens[stops .. ends - 1]. left: how many it may bring. */
typedef struct {
    int64_t at, count, stops, ends, left;
} Brought;

/* What a module made of a request's committed rows: `count` rows, from outputs + at * hidden on. */
typedef struct {
    int64_t at, count;
} Trail;

/* One call for `requests` requests, in order of falling width, of which the first `drafting` have drafts: at most `most`
 * rounds, of which `done` were. lines: of what chain.h says of requests. accepted [most, requests]; trails [depths,
 * drafting]; carried: the features that wait at first; rows: most of a depth; made: outputs of all depths in a round.
 * nanoseconds: of drafting in all, of the target, and of all else. room: rounds.py counts it. */
typedef struct {
    Asked *lines;
    Way *ways;
    int64_t *tokens, *blocks;
    Brought *brought;
    Trail *trails;
    int64_t *emitted, *accepted, *spent, *drafts;
    const int64_t *stop_tokens;
    const float *heats;
    const bf16 *carried;
    bf16 *states, *outputs;
    float *scratch;
    void *room;
    long requests, drafting, most, rows, made, threads, done, nanoseconds[3];
} Burst;

/* A pass of the target over pending tokens and drafts, and what is made of it. */
typedef struct {
    Pass pass;
    int64_t *tokens, *positions, *slots, *chosen;
    uint64_t *places;
    float *heats;
    bf16 *hidden, *logits, *carried, *made;
    void *room;
    long since, began, over;
} Target;

static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000l + t.tv_nsec;
}

/* The time since this was last asked belongs to that part. */
static void lap(Burst *a, Target *t, int part) {
    long then = t->since;
    t->since = now();
    a->nanoseconds[part] += t->since - then;
}

static void lay_target(const Rounds *m, const Burst *a, Target *t) {
    long row = 0, longest = 0, n = a->requests;
    int64_t *starts = a->blocks - 4 * n - 1, *context = starts + n + 1, *first = context + n, *tables = first + n;
    for (long r = 0; r < n; r++) {
        const Asked *line = a->lines + r;
        starts[r] = row, context[r] = line->length - 1, first[r] = 0, tables[r] = line->table;
        for (long j = 0; j <= line->width; j++, row++) {
            long place = line->length - 1 + j;
            t->tokens[row] = j ? a->drafts[(j - 1) * a->drafting + r] : a->tokens[line->token + place - line->known];
            t->positions[row] = place;
            t->slots[row] = a->blocks[line->table + place / m->block_size] * m->block_size + place % m->block_size;
            t->places[2 * row] = (uint64_t)line->seed, t->places[2 * row + 1] = (uint64_t)place + 1;
            t->heats[row] = a->heats[r];
        }
        longest = line->length + line->width > longest ? line->length + line->width : longest;
    }
    starts[n] = row;
    t->pass = (Pass){.slots = t->slots, .numbers = starts, .scratch = a->scratch, .rows = row, .requests = n,
                     .block_size = m->block_size, .longest = longest, .tile = row >= MANY_ROWS * n ? MANY_ROWS : FEW_ROWS};
}

/* How many drafts of each request the target agrees with; whether one of the tokens that this brings ends somebody. */
static int walk(const Burst *a, const Target *t, int64_t *accepted) {
    const int64_t *chosen = t->chosen;
    int ends = 0;
    for (long r = 0; r < a->requests; chosen += a->lines[r++].width + 1) {
        const Brought *own = a->brought + r;
        long right = 0;
        while (right < a->lines[r].width && chosen[right] == a->drafts[right * a->drafting + r]) right++;
        for (long i = 0; i <= right; i++)
            for (long s = own->stops; s < own->ends; s++)
                ends |= chosen[i] == a->stop_tokens[s];
        accepted[r] = right;
    }
    return ends;
}

/* What modules made of committed rows is kept, and where each of them goes on. Beyond the last module there is a row for
 * each draft, of which nothing is. */
static void keep_made(const Rounds *m, Burst *a, const Target *t) {
    const bf16 *made = t->made;
    for (long depth = 1; a->drafting && depth <= a->lines->width; depth++)
        for (long r = 0; r < a->drafting && a->lines[r].width >= depth; r++) {
            const Asked *line = a->lines + r;
            if (depth > m->chain->count) {
                made += m->hidden;
                continue;
            }
            Trail *trail = a->trails + (depth - 1) * a->drafting + r;
            Way *way = a->ways + (depth - 1) * a->drafting + r;
            long committed = line->length - way->start, last = line->width < m->chain->count ? line->width : m->chain->count;
            if (line->silent && depth == last) {
                made += m->hidden;
            } else {
                memcpy(a->outputs + (trail->at + trail->count) * m->hidden, made, committed * m->hidden * sizeof *made);
                trail->count += committed;
                made += (committed + depth - 1) * m->hidden;
            }
            way->start = line->length;
        }
}

/* What is new of each request: tokens, and the states that they come from. */
static void append(const Rounds *m, Burst *a, const Target *t, const int64_t *accepted) {
    for (long r = 0, row = 0; r < a->requests; row += a->lines[r++].width + 1) {
        Asked *line = a->lines + r;
        Brought *own = a->brought + r;
        long count = accepted[r] + 1, to = own->at + own->count;
        memcpy(a->tokens + line->token + line->length - line->known, t->chosen + row, count * sizeof *t->chosen);
        memcpy(a->emitted + to, t->chosen + row, count * sizeof *t->chosen);
        memcpy(a->states + to * m->hidden, t->hidden + row * m->hidden, count * m->hidden * sizeof *t->hidden);
        line->length += count, own->count += count;
    }
}

/* Whether a further round could bring somebody more than it may. */
static int near_end(const Burst *a) {
    for (long r = 0; r < a->requests; r++)
        if (a->brought[r].left - a->brought[r].count <= a->lines[r].width) return 1;
    return 0;
}

/* The features that modules read next: of the target what it just made, of a module its output before its next row. */
static void carry(const Rounds *m, const Burst *a, const Target *t, const int64_t *accepted) {
    bf16 *to = t->carried;
    for (long r = 0; r < a->drafting; r++) {
        const Brought *own = a->brought + r;
        long count = accepted[r] + 1;
        memcpy(to, a->states + (own->at + own->count - count) * m->hidden, count * m->hidden * sizeof *to);
        to += count * m->hidden;
    }
    for (long depth = 2; a->drafting && depth <= m->chain->count && depth <= a->lines->width; depth++)
        for (long r = 0; r < a->drafting && a->lines[r].width >= depth; r++, to += m->hidden) {
            const Trail *trail = a->trails + (depth - 2) * a->drafting + r;
            memcpy(to, a->outputs + (trail->at + trail->count - 1) * m->hidden, m->hidden * sizeof *to);
        }
}

static void rounds_part(const Rounds *m, Burst *a, const Work *w, Laid *at, Target *t, const Team *team) {
    for (;;) {
        if (a->drafting) chain_part(m->chain, w, at, t->made, team);
        if (last_to_come(team)) {
            lap(a, t, 0);
            lay_target(m, a, t);
            lap(a, t, 2);
            part_again(team);
        }
        const Product head = {t->hidden, m->head, m->bias, t->logits, t->pass.rows, m->hidden, m->vocab, 0};
        stack_part(m->stack, &t->pass, m->pool, t->tokens, t->positions, t->hidden, t->room, m->stride, team);
        meet(team);
        linear_part(&head, team);
        if (last_to_come(team)) {
            lap(a, t, 1);
            part_again(team);
        }
        choose_rows(t->logits, t->places, t->heats, m->hashes, t->chosen, 0, rows_of(team, t->pass.rows), m->vocab);
        if (last_to_come(team)) {
            int64_t *accepted = a->accepted + a->done * a->requests;
            int ends = walk(a, t, accepted);
            keep_made(m, a, t);
            append(m, a, t, accepted);
            carry(m, a, t, accepted);
            at->carried = t->carried;
            lap(a, t, 2);
            a->spent[a->done++] = t->since - t->began;
            t->began = t->since;
            t->over = ends || near_end(a) || a->done == a->most;
            part_again(team);
        }
        if (t->over) return;
    }
}

/* rows: of a pass of the target. */
static Target target_in(const Rounds *m, const Burst *a, long rows, char *room, void **rest) {
    int64_t *columns = (int64_t *)room;
    long begin = now();
    uint64_t *places = (uint64_t *)(columns + 4 * rows);
    float *heats = (float *)(places + 2 * rows);
    bf16 *hidden = (bf16 *)(heats + 2 * rows), *logits = hidden + rows * m->hidden, *carried = logits + rows * m->vocab,
         *made = carried + 2 * rows * m->hidden;
    *rest = (void *)(((uintptr_t)(made + a->made * m->hidden) + 63) & ~(uintptr_t)63);
    return (Target){.tokens = columns, .positions = columns + rows, .slots = columns + 2 * rows, .chosen = columns + 3 * rows,
                    .places = places, .heats = heats, .hidden = hidden, .logits = logits, .carried = carried, .made = made,
                    .since = begin, .began = begin};
}

/* Every request's next round must fit into its blocks and its part of tokens, emitted and states. */
void run_rounds(const Rounds *m, Burst *a) {
    long rows = a->requests;
    for (long r = 0; r < a->requests; r++) rows += a->lines[r].width;
    void *rest;
    Target t = target_in(m, a, rows, a->room, &rest);
    Laid at = {.carried = a->carried};
    Work w = {0};
    if (a->drafting)
        w = chain_work(m->chain, a->lines, a->ways, a->tokens, a->blocks, a->heats, a->drafts, a->scratch, rest, a->drafting,
                       a->rows);
    t.room = rest; /* chain and stack work one after the other */
    TOGETHER((int)a->threads, rounds_part(m, a, &w, &at, &t, team));
}
#endif
