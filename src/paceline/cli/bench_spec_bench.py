"""`paceline bench spec-bench`: Spec-Bench's questions, turn by turn, answered as its public scripts want them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paceline.cli import bench_options as shared
from paceline.cli import bench_setup as setup
from paceline.cli import options as opt
from paceline.cli.groups import grouped
from paceline.request import SamplingParams

if TYPE_CHECKING:
    from paceline.bench.spec_bench import Talk


@grouped
def bench_spec_bench(
    *,
    questions: Annotated[Path, typer.Argument(help="Spec-Bench's or MT-Bench's question.jsonl.")],
    out: Annotated[Path, typer.Option(help="The answers: FILE-ARM.jsonl for each arm.", metavar="FILE")],
    num_questions: Annotated[
        int | None, typer.Option(help="Only the first so many.", show_default="all", min=1)
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens a turn.", min=1)] = 1024,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="For temperatures above 0.", min=0)] = 0,
    arms: shared.Arms = None,
    drafting: opt.Drafting,
    modules: opt.Modules,
    model: opt.ModelChoice,
) -> None:
    """Answer the questions at batch 1 with every arm in turn, and write them for Spec-Bench's speed.py and equal.py.

    Exit 1 if the arms' answers differ."""
    setup.check_places(out)
    names = setup.arm_names(arms, drafting, modules)
    from paceline.bench.datasets import MAX_PROMPTS, read_dataset
    from paceline.bench.spec_bench import converse, fitting, write_talks

    asked = read_dataset(str(questions), num_questions or MAX_PROMPTS)
    subject = setup.subject(model)
    context = subject.context
    prompts = fitting(asked, subject.tokenizer, context)
    sides = setup.make_arms(names, subject, 1, context, opt.engine_options(drafting, modules))
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    for arm in sides:  # not counted: caches and allocators warm up
        converse(arm, prompts[0], replace(params, max_tokens=min(16, max_tokens)), subject.tokenizer, context)
    talks: dict[str, list[Talk]] = {name: [] for name in names}
    try:
        with setup.progress_bar(len(prompts) * len(names)) as (tick, say):
            for number, prompt in enumerate(prompts):
                say(prompt.source)
                for place in range(len(sides)):
                    arm = sides[(number + place) % len(sides)]
                    talks[arm.name].append(converse(arm, prompt, params, subject.tokenizer, context))
                    tick(1)
    finally:
        for path in write_talks(out, talks, subject.name, subject.tokenizer):
            print(path)
    _summarise(talks)


def _summarise(talks: dict[str, list[Talk]]) -> None:
    """Tokens a second and mean accepted length, as speed.py means them, and whether the answers are the same."""
    from rich.console import Console
    from rich.table import Table

    from paceline.bench.spec_bench import accepted_length, tokens_per_second

    base, *_ = talks.values()
    table = Table("arm", "tok/s", "speed-up", "accepted", "same text")
    same = {name: all(a.said == b.said for a, b in zip(mine, base, strict=True)) for name, mine in talks.items()}
    for name, mine in talks.items():
        speed = tokens_per_second(mine)
        figures = (f"{speed:.1f}", f"{speed / tokens_per_second(base):.2f}x", f"{accepted_length(mine):.2f}")
        table.add_row(name, *figures, "yes" if same[name] else "NO")
    Console().print(table)
    if not all(same.values()):
        raise typer.Exit(1)
