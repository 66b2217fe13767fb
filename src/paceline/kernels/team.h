/* Threads that go through the same lines, each with its part of the work, and meet where one needs what others made.
 * OpenMP starts them; it also has a barrier, which asks the kernel to wake sleepers at each meeting, whether anybody sleeps
 * or not: several times a layer, for work of microseconds. */
#pragma once
#include <sched.h>
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
#endif

#ifdef __x86_64__
#define RELAX() __builtin_ia32_pause()
#else
#define RELAX() ((void)0)
#endif
#define HIDDEN __attribute__((visibility("hidden"))) /* for the other files only */

enum { SPINS = 4096 }; /* tens of microseconds; who waits longer lets others have the core */

/* here: who has come; turn: meetings that are over; next: of work that is taken piece by piece between two meetings, the
 * first piece that nobody took. */
typedef struct {
    int here;
    unsigned turn;
    long next;
} Meeting;

typedef struct {
    Meeting *meeting;
    int part, parts;
} Team;

typedef struct {
    long begin, end;
} Rows;

/* A thread's part of so many rows: the same one each time. */
static inline Rows rows_of(const Team *team, long rows) {
    return (Rows){rows * team->part / team->parts, rows * (team->part + 1) / team->parts};
}

/* Who comes last goes on at once, alone, and then lets the others go by `part_again`; they wait here, and get 0. */
static inline int last_to_come(const Team *team) {
    Meeting *m = team->meeting;
    unsigned turn = __atomic_load_n(&m->turn, __ATOMIC_RELAXED);
    if (__atomic_add_fetch(&m->here, 1, __ATOMIC_ACQ_REL) == team->parts) return 1;
    for (int spins = 0; __atomic_load_n(&m->turn, __ATOMIC_ACQUIRE) == turn;) {
        if (spins < SPINS) spins++, RELAX();
        else sched_yield();
    }
    return 0;
}

static inline void part_again(const Team *team) {
    Meeting *m = team->meeting;
    m->here = 0, m->next = 0;
    __atomic_store_n(&m->turn, m->turn + 1, __ATOMIC_RELEASE);
}

/* What anybody did before is done for everybody behind. */
static inline void meet(const Team *team) {
    if (team->parts > 1 && last_to_come(team)) part_again(team);
    else if (team->parts == 1) team->meeting->next = 0;
}

/* Does `work`, which knows its `team`; a team of one is not worth the microsecond that it takes to come together. */
#define TOGETHER(many, work)                                                                          \
    do {                                                                                              \
        const int threads_here = (many);                                                              \
        Meeting meeting = {0};                                                                        \
        if (threads_here == 1) {                                                                      \
            const Team alone = {&meeting, 0, 1}, *team = &alone;                                      \
            work;                                                                                     \
            break;                                                                                    \
        }                                                                                             \
        _Pragma("omp parallel num_threads(threads_here)") {                                           \
            const Team mine = {&meeting, omp_get_thread_num(), omp_get_num_threads()}, *team = &mine; \
            work;                                                                                     \
        }                                                                                             \
    } while (0)
