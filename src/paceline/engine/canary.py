"""Whether a trained drafter guesses at all, told from its first drafts.

Damaged or misread draft weights still give the right text, only slowly, so nothing else would tell. What trained
modules reach is far above `LEAST_SHARE`: a module that gets 3 of 10 first tokens right is below it once in a million.
Where the number of drafts is chosen by the clock, modules that are never right soon rest, and there will not be so many
drafts; but none of 24 is what such a module gets twice in ten thousand times.
"""

from __future__ import annotations

import warnings

from paceline.errors import PacelineWarning
from paceline.request import SpeculationStats

FIRST_DRAFTS, LEAST_SHARE = 96, 0.1  # drafts of the first place of a proposal, and accepted ones among them
NONE_OF = 24  # enough of them where none was accepted


class Canary:
    """Judges once, as soon as requests with `FIRST_DRAFTS` drafts have ended, or with `NONE_OF` that were all wrong;
    suspects None: it has nothing to judge.

    Example: suspects "the MTP modules of DIR: see ..." becomes part of the one warning."""

    def __init__(self, suspects: str | None) -> None:
        self.suspects = suspects

    def look(self, stats: SpeculationStats) -> None:
        """Warns with `PacelineWarning` when fewer than `LEAST_SHARE` of the first drafts were accepted."""
        if self.suspects is None or not stats.offered:
            return
        if stats.offered[0] < (FIRST_DRAFTS if stats.taken[0] else NONE_OF):
            return
        suspects, self.suspects = self.suspects, None
        if stats.taken[0] < LEAST_SHARE * stats.offered[0]:
            # One text for all engines on the same weights: it is shown once.
            warnings.warn(
                f"fewer than 1 in {1 / LEAST_SHARE:.0f} of the first drafts were right, which is chance: the text is "
                f"what it should be, but no sooner; suspect {suspects}",
                PacelineWarning,
                stacklevel=2,
            )
