"""Every kernel equals the reference, and says of a row what it says of it alone, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor

from paceline.batch import tables_of
from paceline.kernels import cpu, latent, native, reference

BF16 = torch.bfloat16
ROWS = 37


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(BF16)


def norm(kernels: object, rows: slice) -> Tensor:
    return kernels.rms_norm(draw(ROWS, 100)[rows], draw(100, seed=1), 1e-6)  # type: ignore[attr-defined,no-any-return]


def strided_norm(kernels: object, rows: slice) -> Tensor:
    return kernels.rms_norm(draw(ROWS, 3, 64)[rows, -1, :48], draw(48, seed=1), 1e-6)  # type: ignore[attr-defined,no-any-return]


def norms_of_pairs(kernels: object, rows: slice, states_first: bool = False) -> Tensor:
    tokens = torch.arange(ROWS)[rows] * 5 % 29
    weights = draw(100, seed=1), draw(100, seed=2)
    return kernels.norm_pairs(tokens, draw(29, 100, seed=3), draw(ROWS, 100)[rows], weights, 1e-6, states_first)  # type: ignore[attr-defined,no-any-return]


def norms_of_pairs_states_first(kernels: object, rows: slice) -> Tensor:
    return norms_of_pairs(kernels, rows, states_first=True)


def best(kernels: object, rows: slice) -> Tensor:
    """Few different scores, so that the best are often equal."""
    tokens, rated = kernels.best_of((2 * draw(ROWS, 1000)).round()[rows])  # type: ignore[attr-defined]
    return torch.stack((tokens.float(), rated), dim=1)


def rotated(kernels: object, rows: slice) -> Tensor:
    made, angles = draw(ROWS, 5, 96 + 16)[rows].contiguous(), draw(ROWS, 1, 8, seed=2).float()[rows]
    kernels.rotate_and_norm(made, angles.cos(), angles.sin(), draw(96, seed=1), 1e-6)  # type: ignore[attr-defined]
    return made


def routed(kernels: object, rows: slice) -> Tensor:
    x, bias = draw(ROWS, 100)[rows].contiguous(), draw(11, seed=3).float()
    return kernels.route(x, draw(11, 100, seed=1), bias, 3, True, 1.5)  # type: ignore[attr-defined,no-any-return]


def unnormalised(kernels: object, rows: slice) -> Tensor:
    x = draw(ROWS, 100)[rows].contiguous()
    return kernels.route(x, draw(4, 100, seed=1), torch.zeros(4), 1, False, 1.0)  # type: ignore[attr-defined,no-any-return]


def gated(kernels: object, rows: slice) -> Tensor:
    return kernels.gated(5 * draw(ROWS, 2 * 70)[rows].contiguous(), None, 0)  # type: ignore[attr-defined,no-any-return]


def gated_by_experts(kernels: object, rows: slice) -> Tensor:
    shares = draw(ROWS, 3, seed=4).float().relu()[rows].contiguous()
    return kernels.gated(draw(ROWS, 2 * 70)[rows].contiguous(), shares, 20)  # type: ignore[attr-defined,no-any-return]


CASES: list[Callable[[object, slice], Tensor]] = [
    norm, strided_norm, norms_of_pairs, norms_of_pairs_states_first, best, rotated, routed, unnormalised, gated,
    gated_by_experts,
]  # fmt: skip
compiled = pytest.mark.skipif(native.library() is None, reason="this machine has no C compiler, or is not Linux")


@pytest.mark.parametrize("way", [pytest.param("compiled", marks=compiled), "plain torch"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
@torch.inference_mode()
def test_a_kernel_equals_the_reference_and_a_row_is_its_own(
    case: Callable[[object, slice], Tensor], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "plain torch":
        monkeypatch.setattr(native, "library", lambda: None)
    whole = case(cpu, slice(None))
    torch.testing.assert_close(whole.float(), case(reference, slice(None)).float(), rtol=2e-2, atol=2e-2)
    for start, end in ((0, 1), (5, 6), (3, 7), (0, 16), (20, ROWS)):
        assert torch.equal(case(cpu, slice(start, end)), whole[start:end])


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@torch.inference_mode()
def test_a_routers_scores_of_a_row_are_its_own(scoring: str) -> None:
    x, weight = draw(300, 512), 0.1 * draw(100, 512, seed=1)
    whole = cpu.router_scores(x, weight, scoring)
    logits = x.double() @ weight.double().T
    truth = logits.sigmoid() if scoring == "sigmoid" else logits.softmax(-1)
    torch.testing.assert_close(whole.double(), truth, rtol=1e-4, atol=1e-6)
    for rows in (1, 2, 7, 33, 100):
        assert torch.equal(torch.cat([cpu.router_scores(part, weight, scoring) for part in x.split(rows)]), whole)


@compiled
@pytest.mark.parametrize(("context", "first"), [(0, 0), (30, 0), (0, 3), (5, 9), (30, 2)])
def test_softmax_equals_the_reference(context: int, first: int) -> None:
    rows, width = 6, 64
    scores = 4 * draw(rows, 2, width)
    sight = reference.Sight(rows, width, context, first, scores.device)
    expected = scores.float().masked_fill(sight.hidden[:, None], float("-inf")).softmax(-1)
    found = scores.clone()
    native.causal_softmax(found, context, first)
    torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-3)
    assert (found[sight.hidden[:, None].expand_as(found)] == 0).all()
    longer = torch.cat((scores[2:3], draw(1, 2, width, seed=9)), dim=-1)
    native.causal_softmax(longer, context + 2, first)
    assert torch.equal(longer[0, :, :width], found[2])


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """As many share whatever there is."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(latent, "SHARED_AT_LEAST", 0)
    yield request.param
    torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("first", [0, 2, 9])
def test_attention_over_latents_equals_the_reference_and_a_row_is_its_own(
    first: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three requests in one call, scattered blocks; then each request's rows in other cuts, on one thread."""
    heads, k_dim, v_dim, size = 8, 96, 64, 4
    contexts, counts, firsts = [0, 5, 37], [6, 1, 11], [first, 2 * first, 3 * first]
    needs = [-(-(context + count) // size) for context, count in zip(contexts, counts, strict=True)]
    blocks = torch.randperm(sum(needs), generator=torch.Generator().manual_seed(1)).tolist()
    tables = [[blocks.pop() for _ in range(need)] for need in needs]
    keys, q = draw(sum(needs) * size, 1, k_dim), 0.5 * draw(sum(counts), heads + 1, k_dim, seed=2)[:, :heads]

    def attend(pieces: list[tuple[int, int, int]]) -> Tensor:
        """pieces: request, its first row here, the row after its last."""
        begins = [sum(counts[:r]) for r in range(3)]
        rows = torch.cat([q[begins[r] + start : begins[r] + end] for r, start, end in pieces])
        starts = [0, *accumulate(end - start for _, start, end in pieces)]
        places = [contexts[r] + start for r, start, _ in pieces]
        numbers = tables_of(starts, places, [firsts[r] for r, *_ in pieces], [tables[r] for r, *_ in pieces])
        where = latent.Tables.of(torch.tensor(numbers), starts, places)
        padded = torch.cat((rows, rows[:, :1]), dim=1)[:, :heads]  # rows apart by more than their heads
        return latent.attend_latent(padded, keys, where, v_dim, size, 0.3)

    whole = attend([(r, 0, count) for r, count in enumerate(counts)]).split(counts)
    for r, (context, count, table) in enumerate(zip(contexts, counts, tables, strict=True)):
        slots = torch.tensor([table[p // size] * size + p % size for p in range(context + count)])
        sight = reference.Sight(count, context + count, context, firsts[r], q.device)
        begin = sum(counts[:r])
        expected = reference.attend_rows(
            q[begin : begin + count].float(), [keys[slots].float()], [keys[slots, :, :v_dim].float()], sight, 0.3
        )
        torch.testing.assert_close(whole[r].float(), expected, rtol=2e-2, atol=1e-2)
        monkeypatch.setattr(latent, "SHARED_AT_LEAST", 1 << 60)
        for cut in (1, 3, 4, 7):
            pieces = [(r, start, min(start + cut, count)) for start in range(0, count, cut)]
            assert torch.equal(torch.cat([attend([piece]) for piece in pieces]), whole[r])


@compiled
def test_it_is_compiled_once_and_a_broken_compiler_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "made_for", native.made_for.__wrapped__)
    fresh = native.library.__wrapped__
    assert fresh() is not None and fresh() is not None
    assert len(list((tmp_path / "paceline").iterdir())) == 1
    false = tmp_path / "cc"
    false.write_text("#!/bin/sh\nexit 1\n")
    false.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert fresh() is None
    monkeypatch.setenv(native.OFF, "1")
    assert fresh() is None
