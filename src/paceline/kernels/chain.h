/* What a batch of requests is while modules draft for it, one after the other: chain.c says how they do. */
#pragma once
#include "native.h"

enum { FEW_ROWS = 4, MANY_ROWS = 16 }; /* of a request in a tile; as in heads.py */

/* head [vocab, hidden] as packed_linear reads it, with codes or not, bias [vocab] or none; pool: where the module keeps
 * what it reads. */
typedef struct {
    const Module *module;
    const void *head;
    const bf16 *bias;
    bf16 *pool;
    long codes;
} Depth;

/* hashes [vocab]: of the token ids; block_size slots in a block; window: as attend_heads takes it. */
typedef struct {
    const Depth *depths;
    const int32_t *hashes;
    long count, hidden, vocab, block_size, window;
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

/* What a call works on; drafts [width, asked], ways [depths, asked]; ends: of each request, behind its last output. room:
 * for a module, behind the logits. */
typedef struct {
    const Asked *requests;
    const Way *ways;
    const int64_t *tokens;
    int64_t *blocks, *drafts;
    const float *heats;
    float *scratch;
    long asked;
    int64_t *row_tokens, *positions, *slots, *index;
    const bf16 **ends;
    uint64_t *places;
    bf16 *features, *last, *logits;
    void *room;
} Work;

/* A pass of a module, the rows of it that are wanted, and the features that wait for the passes behind it. */
typedef struct {
    Pass all, wanted;
    const bf16 *carried;
} Laid;

/* most: rows of a depth. */
HIDDEN Work chain_work(const Chain *m, const Asked *requests, const Way *ways, const int64_t *tokens, int64_t *blocks,
                       const float *heats, int64_t *drafts, float *scratch, void *room, long asked, long most);
/* Drafts for the first `w->asked` requests, of each as many as its width, which is at least 1; features that wait are
 * read from at->carried on. outputs: as draft_chain has them. All threads come with what they read there; afterwards each
 * thread has chosen its own rows' last drafts. */
HIDDEN void chain_part(const Chain *m, const Work *w, Laid *at, bf16 *outputs, const Team *team);
