"""Products on packed weights equal the plain ones, and a row is its own: in any tile, on any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from paceline.kernels import linear as kernel
from paceline.kernels import native, pack_weight, packed_linear

BF16 = torch.bfloat16
ROWS = 41
SHAPES = [(32, 64), (34, 96), (256, 2880), (2048, 256), (40, 33)]  # the last one is no whole block
needs_bf16 = pytest.mark.skipif(
    pack_weight(torch.ones(4, 4, dtype=BF16)) is None, reason="this CPU has no bf16 products"
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(kernel, "SHARED_AT_LEAST", 0)
    yield request.param
    torch.set_num_threads(before)


@needs_bf16
@pytest.mark.parametrize("way", ["AMD's", "others'", "oneDNN"])
@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
@torch.inference_mode()
def test_it_equals_the_plain_product_and_a_row_is_its_own(
    inputs: int, outputs: int, biased: bool, way: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = None if way == "oneDNN" else native.made_for(amd=way == "AMD's")
    monkeypatch.setattr(native, "library", lambda: library)
    x, weight = draw(ROWS, inputs), draw(outputs, inputs, seed=1) / inputs**0.5
    bias = draw(outputs, seed=2) if biased else None
    packed = pack_weight(weight)
    assert packed is not None
    whole = packed_linear(x, packed, bias)
    truth = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    torch.testing.assert_close(whole.double(), truth, rtol=1e-2, atol=1e-2)
    for cut in (1, 2, 5, 12, 13, 30):
        assert torch.equal(torch.cat([packed_linear(part, packed, bias) for part in x.split(cut)]), whole)


@needs_bf16
@torch.inference_mode()
def test_the_number_of_threads_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "SHARED_AT_LEAST", 0)
    x, packed, found = draw(ROWS, 256), pack_weight(draw(224, 256, seed=1)), []
    assert packed is not None
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(packed_linear(x, packed))
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
