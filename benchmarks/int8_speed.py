"""Plain decoding at batch 1 in bf16 and in int8, and the memory of the weights, on a random model of realistic size.

    python benchmarks/int8_speed.py [--shape dense|moe] [--tokens 32] [--prompt 16] [--repeats 5] [--threads N] [--json]

dense: as Llama, 331 M parameters. moe: as DeepSeek-V3 (latent attention, 32 experts of which 4, a shared one), 656 M.
The checkpoint is written to a temporary directory and loaded twice, once as it is and once with int8 weights. The two
generate in turn, and who goes first alternates; the ratio is the median of the ratios within the rounds. Speed does
not depend on what the weights are; what quantisation costs in quality is `quantised_loss.py`'s subject.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from paceline.checkpoint.resolve import bundled_model
from paceline.checkpoint.writer import write_checkpoint
from paceline.config import ModelConfig
from paceline.llm import LLM
from paceline.models import build_model
from paceline.models.meta import laid_out
from paceline.request import SamplingParams

_COMMON = {"vocab_size": 16384, "max_position_embeddings": 2048, "dtype": "bfloat16"}
SHAPES: dict[str, dict[str, Any]] = {
    "dense": _COMMON
    | {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "num_hidden_layers": 21,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "moe": _COMMON
    | {
        "model_type": "deepseek_v3",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "moe_intermediate_size": 512,
        "num_hidden_layers": 12,
        "first_k_dense_replace": 1,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "q_lora_rank": 512,
        "kv_lora_rank": 256,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "n_routed_experts": 32,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_nextn_predict_layers": 0,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="dense")
    for name, default in (("tokens", 32), ("prompt", 16), ("repeats", 5), ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path, parameters = write_random(Path(directory) / args.shape, SHAPES[args.shape])
        options: dict[str, Any] = {"drafter": "none", "threads": args.threads, "max_num_seqs": 1}
        sides = {kind: LLM(path, quantization=kind, **options) for kind in ("none", "int8")}
    found = race(sides, args.prompt, args.tokens, args.repeats)
    found |= {"shape": args.shape, "parameters": parameters, "threads": args.threads}
    found |= {"bytes_bf16": weight_bytes(sides["none"]), "bytes_int8": weight_bytes(sides["int8"])}
    print(json.dumps(found) if args.json else summary(found))


def write_random(directory: Path, raw: dict[str, Any]) -> tuple[Path, int]:
    """A checkpoint of random weights with the bundled model's tokenizer; and its number of parameters."""
    config = ModelConfig.from_dict(raw)
    with laid_out(config.dtype):
        views = build_model(config).weights()
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.ones(view.shape, dtype=view.dtype)
        if "norm" in name
        else torch.empty(view.shape, dtype=view.dtype).normal_(std=0.02, generator=generator)
        for name, view in views.items()
    }
    files = {name: (bundled_model() / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    return write_checkpoint(directory, tensors, raw, extra_files=files), sum(t.numel() for t in tensors.values())


def race(sides: dict[str, LLM], prompt: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of both sides in each round, from first token to last; a round that is not counted warms up."""
    rates: dict[str, list[float]] = {kind: [] for kind in sides}
    for number in range(repeats + 1):
        for kind in sorted(sides, reverse=bool(number % 2)):
            rate = decode(sides[kind], [(7 * i + number) % 16000 for i in range(prompt)], tokens)
            if number:
                rates[kind].append(rate)
    ratios = [int8 / plain for plain, int8 in zip(rates["none"], rates["int8"], strict=True)]
    return {"bf16": median(rates["none"]), "int8": median(rates["int8"]), "ratio": median(ratios), "ratios": ratios}


def decode(llm: LLM, prompt: list[int], tokens: int) -> float:
    began, count = 0.0, 0
    for delta in llm.stream(prompt, SamplingParams(max_tokens=tokens, ignore_eos=True)):
        if not began:
            began = time.perf_counter()
        else:
            count += len(delta.token_ids)
    return count / (time.perf_counter() - began)


def weight_bytes(llm: LLM) -> int:
    """Parameters, once each; what oneDNN keeps packed beside them in bf16 is not counted."""
    return sum(parameter.nbytes for parameter in llm.loaded.target.parameters())


def summary(found: dict[str, Any]) -> str:
    plain, int8 = found["bytes_bf16"], found["bytes_int8"]
    return (
        f"{found['shape']}, {found['parameters'] / 1e6:.0f} M parameters, {found['threads']} threads, batch 1\n"
        f"bf16   {found['bf16']:7.2f} tokens/s  {plain / 1e6:7.1f} MB\n"
        f"int8   {found['int8']:7.2f} tokens/s  {int8 / 1e6:7.1f} MB\n"
        f"ratio  {found['ratio']:7.2f}           {int8 / plain:10.3f}"
    )


if __name__ == "__main__":
    main()
