"""Gumbel noise keyed by place: (seed, position, token id) gives the same number, whoever asks and in whatever batch.

Sampling is Gumbel-max, `token = argmax(log p + g)`. The generator is a hash of a counter, so nothing is carried from
step to step and there is nothing to rewind when a draft is rejected: the drafter, the target and a recomputation after
preemption read the same noise. It is integer arithmetic and elementwise functions only, so that a value cannot depend
on its neighbours, on the vocabulary's padding or on the number of threads.

Sources: splitmix64 (Steele, Lea, Flood 2014) mixes (seed, position) on the host to 64 bits; the two multipliers of the
32-bit hash per token are those of `lowbias32` (github.com/skeeto/hash-prospector).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.kernels import gumbel, token_hashes

_MASK64 = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Noise:
    """Gumbel noise for a vocabulary. Keeps only the hashes of the token ids, for the largest vocabulary seen."""

    def __init__(self) -> None:
        self._hashes = torch.empty(0, dtype=torch.int32)

    def gumbel(self, places: Sequence[tuple[int, int]], vocab_size: int, device: torch.device | None = None) -> Tensor:
        """Standard Gumbel noise [len(places), vocab_size] float32, one row for each (seed, position) of `places`.

        seed and position are integers from 0 to 2**64 - 1; `position` is the logical index, in its sequence, of the
        token being chosen. Values lie in [-2.9, 22.2]: the upper end is that of 32 random bits.
        """
        device = device or torch.device("cpu")
        # 2**63 is taken off because tensors hold signed integers; it flips one bit of a random key
        keys = torch.tensor([place_key(*place) - 2**63 for place in places], dtype=torch.int64, device=device)
        return gumbel(keys, self.token_hashes(vocab_size, device))

    def token_hashes(self, vocab_size: int, device: torch.device) -> Tensor:
        """A well-mixed int32 for each token id, [vocab_size]."""
        if self._hashes.device != device or len(self._hashes) < vocab_size:
            self._hashes = token_hashes(vocab_size, device)
        return self._hashes if len(self._hashes) == vocab_size else self._hashes[:vocab_size]


def place_key(seed: int, position: int) -> int:
    """64 well-mixed bits for (seed, position)."""
    return _splitmix64(_splitmix64(seed) + position)


def _splitmix64(x: int) -> int:
    x = (x + _GOLDEN) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
