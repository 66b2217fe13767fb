"""The loss and the held-out acceptance against their definitions, written out for one document at a time."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from train_tools import corpus, packed, states_of_document, trainer

from conftest import MTP_FAMILIES
from paceline.cache.dense import DenseAttend
from paceline.train import attention, evaluate, loss
from paceline.train.attention import BlockAttend
from paceline.train.loss import Trainee, goals, linear_cross_entropy, losses
from paceline.train.packing import PADDING, Batch, Packed, pack


def rows_of_documents(rows: list[list[int]]) -> Tensor:
    """Lengths of documents, row by row, to document ids [B, T]; a row's rest is padding."""
    size = max(map(sum, rows))
    ids = torch.full((len(rows), size), PADDING)
    for r, lengths in enumerate(rows):
        row = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        ids[r, : len(row)] = row
    return ids


ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=3)


def test_goals_by_hand() -> None:
    """Documents 5 6 7 and 8 9; token 6 does not count."""
    tokens, documents = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[0, 0, 0, 1, 1]])
    goal = goals(Batch(tokens, tokens, documents, tokens != 6), 3)
    assert [p.tolist() for p in goal.places] == [[1, 3], [0], [], []]
    assert [t.tolist() for t in goal.targets] == [[7, 9], [7], [], []]


@given(ROWS, st.integers(0, 2**31))
@settings(deadline=None)
def test_goals_are_the_counted_tokens_ahead_in_the_document(rows: list[list[int]], seed: int) -> None:
    documents = rows_of_documents(rows)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 99, documents.shape, generator=generator)
    counted = (torch.rand(documents.shape, generator=generator) < 0.6) & (documents != PADDING)
    goal = goals(Batch(tokens, tokens, documents, counted), 2)
    size = documents.shape[1]
    for d in range(3):
        wanted = [
            (b * size + i, int(tokens[b, i + d + 1]))
            for b in range(len(rows))
            for i in range(size - d - 1)
            if documents[b, i] == documents[b, i + d + 1] and counted[b, i + d + 1]
        ]
        assert list(zip(goal.places[d].tolist(), goal.targets[d].tolist(), strict=True)) == wanted


@given(ROWS, st.sampled_from([1, 3, 128]), st.sampled_from([1, 2]), st.integers(0, 12), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_block_attention_is_dense_attention(
    rows: list[list[int]], block: int, groups: int, window: int, seed: int
) -> None:
    documents = rows_of_documents(rows)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(documents.numel(), heads, dim) for heads, dim in ((2, 5), (2 // groups, 5), (2 // groups, 3))]
    inputs = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    direction = torch.randn(documents.numel(), 2, 3, generator=generator)
    with patch.object(attention, "BLOCK", block):
        blocks = BlockAttend(documents, window)
    results = []
    for attend in (blocks, DenseAttend(documents, window)):
        out = attend(0, *inputs, 0.7)
        results.append([out, *torch.autograd.grad((out * direction).sum(), inputs)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_block_reads_no_keys_of_documents_before() -> None:
    with patch.object(attention, "BLOCK", 4):
        spans = BlockAttend(rows_of_documents([[3, 5, 8]])).spans
        narrow = BlockAttend(rows_of_documents([[3, 5, 8]]), 2).spans
    assert [(s.first, s.start, s.end) for s in spans] == [(0, 0, 4), (3, 4, 8), (8, 8, 12), (8, 12, 16)]
    assert [s.first for s in narrow] == [0, 3, 8, 11]


@given(n=st.integers(0, 20), chunk=st.integers(1, 8), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_cross_entropy_is_that_of_torch(n: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, head = (torch.randn(size, 6, generator=generator, requires_grad=True) for size in (n, 11))
    targets = torch.randint(0, 11, (n,), generator=generator)
    weights = torch.rand(n, generator=generator)
    with patch.object(loss, "CHUNK", chunk):
        total, each = linear_cross_entropy(rows, head, targets, weights)
    wanted = F.cross_entropy(rows @ head.t(), targets, reduction="none")
    torch.testing.assert_close(each, wanted.detach())
    torch.testing.assert_close(total, (wanted * weights).sum())
    found = torch.autograd.grad(3 * total, (rows, head))
    for a, b in zip(found, torch.autograd.grad(3 * (wanted * weights).sum(), (rows, head)), strict=True):
        torch.testing.assert_close(a, b)


def defined_loss(model: Trainee, data: Packed, mtp_loss_weight: float) -> tuple[Tensor, list[float]]:
    """main + lambda / D * sum of the depths' means; and the means. Every document for itself."""
    sums, counts = [torch.zeros(()) for _ in range(model.num_depths + 1)], [0] * (model.num_depths + 1)
    for row in data.packed:
        for start, end in row:
            tokens, counted = data.corpus.tokens[start:end].long(), data.counts[start:end]
            for d, states in enumerate(states_of_document(model, tokens)):
                here = counted[d + 1 :]
                logits = (model.target if d == 0 else model.mtp.depths[d - 1]).logits(states[: len(here)])
                sums[d] = sums[d] + F.cross_entropy(logits[here], tokens[d + 1 :][here], reduction="sum")
                counts[d] += int(here.sum())
    means = [s / n for s, n in zip(sums, counts, strict=True)]
    extra = sum(means[1:], torch.zeros(()))
    return means[0] + mtp_loss_weight / max(model.num_depths, 1) * extra, [float(m.detach()) for m in means]


@pytest.mark.parametrize(
    ("depths", "family"), [(0, "deepseek_v3"), (1, "deepseek_v3"), (3, "deepseek_v3"), (1, "glm4_moe"), (2, "mimo")]
)
def test_loss_and_gradients_are_the_definition(depths: int, family: str) -> None:
    data = pack(corpus([3, 9, 1, 17, 2, 30, 5, 16]), 24, 0, answers_only=True)
    changes = MTP_FAMILIES[family] | {"num_nextn_predict_layers": depths}
    run = trainer(data, changes, dtype="float32", batch_tokens=24 * len(data), seq_len=24)
    wanted, means = defined_loss(run.model, data, 0.3)
    names, params = zip(*((n, p) for n, p in run.model.named_parameters() if p.requires_grad), strict=True)
    wanted_grads = torch.autograd.grad(wanted, params)
    batch = data.batch(range(len(data)))
    counts = goals(batch, depths).counts
    weights = [share / n for share, n in zip([1.0] + [0.3 / max(depths, 1)] * depths, counts, strict=True)]
    total, sums = losses(run.model, batch, weights)
    torch.testing.assert_close(total, wanted, rtol=1e-4, atol=1e-5)
    assert [s / n for s, n in zip(sums, counts, strict=True)] == pytest.approx(means, rel=1e-4)
    for name, grad, right in zip(names, torch.autograd.grad(total, params), wanted_grads, strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-3, atol=1e-5, msg=name)
    report = run.step()
    norm = torch.stack([grad.norm() for grad in wanted_grads]).norm()
    assert report.loss == pytest.approx(means, rel=1e-4)
    assert report.grad_norm == pytest.approx(float(norm), rel=1e-3), "and a step weighs them so"


def test_detached_depths_do_not_teach_the_target() -> None:
    run = trainer(dtype="float32")
    batch = packed().batch(range(4))
    inner = [p for name, p in run.model.target.named_parameters() if "layers." in name and p.requires_grad]
    grads = [
        torch.autograd.grad(losses(run.model, batch, weights, detach)[0], inner)
        for weights, detach in (([1.0, 0.0, 0.0], False), ([1.0, 5.0, 5.0], True), ([1.0, 5.0, 5.0], False))
    ]
    same, differ = (max(float((a - b).abs().max()) for a, b in zip(grads[0], g, strict=True)) for g in grads[1:])
    assert same == 0 and differ > 1e-4


@torch.no_grad()
def defined_acceptance(model: Trainee, data: Packed) -> tuple[list[int], list[int]]:
    """For each depth the places that had it to draft, and those where it and all before it drafted the target's own."""
    places, agreed = ([0] * (model.num_depths + 1) for _ in range(2))
    for start, end in [piece for row in data.packed for piece in row]:
        counted = data.counts[start:end].tolist()
        states = states_of_document(model, data.corpus.tokens[start:end].long())
        words = [model.target.logits(rows).argmax(-1).tolist() for rows in states]
        for i in range(end - start):
            for d in range(model.num_depths + 1):
                if i + d + 1 >= end - start or not all(counted[i + 1 : i + d + 2]):
                    break
                places[d] += 1
                agreed[d] += all(words[j][i] == words[0][i + j] for j in range(1, d + 1))
    return places, agreed


def test_evaluation_is_the_definition() -> None:
    """After some steps, so that the depths are right now and then; in pieces, and with a small chunk of logits."""
    run = trainer(dtype="float32", lr=3e-2, steps=25)
    for _ in range(25):
        run.step()
    held_out = packed(answers_only=True)
    run.optimizer.use("ema")
    places, agreed = defined_acceptance(run.model, held_out)
    run.optimizer.use("master")
    with patch.object(evaluate, "CHUNK", 7):
        result = run.evaluate(held_out, len(held_out))
    assert result.total.places == places and result.total.agreed == agreed
    assert 0 < agreed[2] < agreed[1] < places[1], "the test would tell a difference"
    assert result.total.reached[2] <= agreed[1]
    assert result.acceptance_length == pytest.approx(1 + agreed[1] / places[1] + agreed[2] / places[2])
    for part in ("places", "loss", "agreed", "reached"):
        parts = [getattr(tally, part) for tally in result.sources.values()]
        assert [sum(x) for x in zip(*parts, strict=True)] == pytest.approx(getattr(result.total, part))
    assert run.model.training, "evaluation leaves the model training"
