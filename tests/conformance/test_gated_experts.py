"""Gated MLPs in one compiled call equal the formula, and a row is its own: in any tile, on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.kernels import moe as kernel
from paceline.kernels.moe import PackedExperts, gated_experts, pack_experts
from paceline.kernels.pages import Pages

BF16 = torch.bfloat16
ROWS = 67
CASES = {  # hidden, width, experts, chosen of them, shared
    "two of five and one for all": (64, 48, 5, 2, 1),
    "no shared expert": (96, 32, 9, 3, 0),
    "all of them": (32, 16, 3, 3, 2),
    "a plain gated MLP": (160, 208, 0, 0, 1),
    "longer than what is fetched ahead": (288, 64, 4, 1, 1),
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ONE = [torch.ones(32, 32, dtype=BF16)]
needs_bf16 = pytest.mark.skipif(pack_experts(ONE, ONE, ONE, Pages()) is None, reason="this CPU has no bf16 products")


class Drawn:
    """Weights and shares for rows of x, of which some experts may get none. codes: in int8."""

    def __init__(self, hidden: int, width: int, experts: int, chosen: int, shared: int, codes: bool) -> None:
        count, self.experts, self.chosen, self.codes = experts + shared, experts, chosen, codes
        self.x = draw(ROWS, hidden).to(BF16)
        gate_ups = (draw(2, count, width, hidden, seed=1) / hidden**0.5).to(BF16)
        self.weights = [list(part) for part in (*gate_ups, (draw(count, hidden, width, seed=2) / width**0.5).to(BF16))]
        best = (
            draw(ROWS, max(experts, 1), seed=3)[:, : max(experts - 1, 1)].topk(min(chosen, max(experts - 1, 1))).indices
        )
        self.shares = (
            torch.zeros(ROWS, experts).scatter(1, best, draw(ROWS, chosen, seed=4).abs() + 0.1) if experts else None
        )

    def packed(self) -> PackedExperts:
        packed = pack_experts(*self.weights, Pages(), self.codes)
        assert packed is not None
        return packed

    def found(self, packed: PackedExperts, rows: Tensor) -> Tensor:
        shares = None if self.shares is None else self.shares[rows].contiguous()
        return gated_experts(self.x[rows], shares, self.chosen, packed)

    def truth(self) -> Tensor:
        x, total = self.kept(self.x), torch.zeros(self.x.shape, dtype=torch.float64)
        for e, weights in enumerate(zip(*self.weights, strict=True)):
            gate, up, down = map(self.kept, weights)
            share = self.shares[:, e : e + 1] if self.shares is not None and e < self.experts else 1.0
            inner = F.silu(x @ gate.T) * (x @ up.T) * share
            total += self.kept(inner.to(BF16)) @ down.T
        return total

    def kept(self, numbers: Tensor) -> Tensor:
        """As they are multiplied: rows of codes have a scale each, those of weights one of a bf16 number."""
        if not self.codes:
            return numbers.double()
        rounded = numbers.shape[0] != ROWS
        scale = numbers.float().abs().amax(1, keepdim=True) / 127
        scale = (scale.to(BF16) if rounded else scale).double().clamp(min=1e-30)
        return (numbers.double() / scale).round().clamp(-127, 127) * scale


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(kernel, "SHARED_AT_LEAST", 0)
    yield request.param
    torch.set_num_threads(before)


@needs_bf16
@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("codes", [False, True])
@torch.inference_mode()
def test_it_equals_the_formula_and_a_row_is_its_own(
    sizes: tuple[int, int, int, int, int], codes: bool, threads: int
) -> None:
    drawn = Drawn(*sizes, codes)
    packed, everyone = drawn.packed(), torch.arange(ROWS)
    whole = drawn.found(packed, everyone)
    truth = drawn.truth()
    if not codes:
        torch.testing.assert_close(whole.double(), truth, rtol=1e-2, atol=1e-2)
    assert (whole.double() - truth).norm() < 4e-3 * truth.norm()  # a code may be one off where an inner number is
    turned = torch.randperm(ROWS, generator=torch.Generator().manual_seed(5))
    assert torch.equal(drawn.found(packed, turned), whole[turned])
    torch.set_num_threads(1)
    for cut in (1, 2, 5, 12, 13, 30):
        assert torch.equal(torch.cat([drawn.found(packed, part) for part in everyone.split(cut)]), whole)


@needs_bf16
@pytest.mark.parametrize("codes", [False, True])
@torch.inference_mode()
def test_an_expert_that_no_row_chose_is_not_read(codes: bool) -> None:
    drawn = Drawn(64, 48, 5, 2, 1, codes)
    assert drawn.shares is not None and not drawn.shares[:, 4].any()
    whole = drawn.found(drawn.packed(), torch.arange(ROWS))
    for part in drawn.weights:
        part[4] = torch.full_like(part[4], float("nan"))
    assert torch.equal(drawn.found(drawn.packed(), torch.arange(ROWS)), whole)


@pytest.mark.parametrize(("hidden", "width", "dtype"), [(48, 32, BF16), (64, 24, BF16), (64, 32, torch.float32)])
def test_other_sizes_and_numbers_take_another_way(hidden: int, width: int, dtype: torch.dtype) -> None:
    inward, back = [torch.ones(width, hidden, dtype=dtype)], [torch.ones(hidden, width, dtype=dtype)]
    assert pack_experts(inward, inward, back, Pages()) is None
