"""A checkpoint in DeepSeek-V3's exact layout, at any size, from random bytes.

    python benchmarks/make_deepseek_checkpoint.py OUT --hidden-size 1024 --moe-intermediate-size 128

Names, dtypes, order, shards, index and config.json are those of the published one: 61 layers and an MTP module as
layer 61, weights in FP8 (e4m3) with float32 `weight_scale_inv` for each 128x128 block, norms, router, embedding and
head in bfloat16, the correction bias in float32. It is meant for tests of reading and writing: it knows nothing.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

BLOCK = 128
POOL = 1 << 21  # random numbers of each kind; tensors are slices of them, again and again
ITEMSIZE = {"F8_E4M3": 1, "BF16": 2, "F32": 4}


@dataclass(frozen=True)
class Sizes:
    """The fields of config.json that give shapes, by their names there; the defaults are DeepSeek-V3's."""

    hidden_size: int = 7168
    vocab_size: int = 129280
    num_hidden_layers: int = 61
    num_nextn_predict_layers: int = 1
    first_k_dense_replace: int = 3
    intermediate_size: int = 18432
    moe_intermediate_size: int = 2048
    n_routed_experts: int = 256
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    num_attention_heads: int = 128
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128


# Partial blocks at every edge, and done in a moment.
TINY = Sizes(
    hidden_size=192, vocab_size=320, num_hidden_layers=2, first_k_dense_replace=1, intermediate_size=160,
    moe_intermediate_size=96, n_routed_experts=8, num_experts_per_tok=2, n_group=2, topk_group=1,
    num_attention_heads=2, q_lora_rank=136, kv_lora_rank=144, qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=24,
)  # fmt: skip

Entry = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def config_json(sizes: Sizes) -> dict[str, Any]:
    """As the published file."""
    modules = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM"}
    files = {"AutoConfig": "configuration_deepseek"}
    return asdict(sizes) | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {k: f"{files.get(k, 'modeling_deepseek')}.DeepseekV3{name}" for k, name in modules.items()},
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 163840,
        "model_type": "deepseek_v3",
        "moe_layer_freq": 1,
        "norm_topk_prob": True,
        "num_key_value_heads": sizes.num_attention_heads,
        "quantization_config": {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        },
        "rms_norm_eps": 1e-6,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.33.1",
        "use_cache": True,
    }


def entries(sizes: Sizes) -> Iterator[Entry]:
    """Every tensor of the checkpoint in its order."""
    s = sizes
    yield "model.embed_tokens.weight", "BF16", (s.vocab_size, s.hidden_size)
    for index in range(s.num_hidden_layers + s.num_nextn_predict_layers):
        for part, dtype, shape in layer_entries(s, index):
            yield f"model.layers.{index}.{part}", dtype, shape
    yield "model.norm.weight", "BF16", (s.hidden_size,)
    yield "lm_head.weight", "BF16", (s.vocab_size, s.hidden_size)


def layer_entries(sizes: Sizes, index: int) -> Iterator[Entry]:
    s = sizes
    h = s.hidden_size
    if index >= s.num_hidden_layers:
        yield "embed_tokens.weight", "BF16", (s.vocab_size, h)
        yield "enorm.weight", "BF16", (h,)
        yield "hnorm.weight", "BF16", (h,)
        yield "eh_proj.weight", "BF16", (h, 2 * h)
        yield "shared_head.norm.weight", "BF16", (h,)
        yield "shared_head.head.weight", "BF16", (s.vocab_size, h)
    yield "input_layernorm.weight", "BF16", (h,)
    yield from attention_entries(s)
    yield from mlp_entries(s, index)
    yield "post_attention_layernorm.weight", "BF16", (h,)


def attention_entries(s: Sizes) -> Iterator[Entry]:
    heads, q_dim = s.num_attention_heads, s.qk_nope_head_dim + s.qk_rope_head_dim
    yield from fp8("self_attn.q_a_proj", s.q_lora_rank, s.hidden_size)
    yield "self_attn.q_a_layernorm.weight", "BF16", (s.q_lora_rank,)
    yield from fp8("self_attn.q_b_proj", heads * q_dim, s.q_lora_rank)
    yield from fp8("self_attn.kv_a_proj_with_mqa", s.kv_lora_rank + s.qk_rope_head_dim, s.hidden_size)
    yield "self_attn.kv_a_layernorm.weight", "BF16", (s.kv_lora_rank,)
    yield from fp8("self_attn.kv_b_proj", heads * (s.qk_nope_head_dim + s.v_head_dim), s.kv_lora_rank)
    yield from fp8("self_attn.o_proj", s.hidden_size, heads * s.v_head_dim)


def mlp_entries(s: Sizes, index: int) -> Iterator[Entry]:
    if index < s.first_k_dense_replace:
        yield from gated_entries("mlp", s.hidden_size, s.intermediate_size)
        return
    yield "mlp.gate.weight", "BF16", (s.n_routed_experts, s.hidden_size)
    yield "mlp.gate.e_score_correction_bias", "F32", (s.n_routed_experts,)
    yield from gated_entries("mlp.shared_experts", s.hidden_size, s.n_shared_experts * s.moe_intermediate_size)
    for expert in range(s.n_routed_experts):
        yield from gated_entries(f"mlp.experts.{expert}", s.hidden_size, s.moe_intermediate_size)


def gated_entries(prefix: str, hidden: int, inner: int) -> Iterator[Entry]:
    yield from fp8(f"{prefix}.gate_proj", inner, hidden)
    yield from fp8(f"{prefix}.up_proj", inner, hidden)
    yield from fp8(f"{prefix}.down_proj", hidden, inner)


def fp8(name: str, rows: int, columns: int) -> Iterator[Entry]:
    yield f"{name}.weight", "F8_E4M3", (rows, columns)
    yield f"{name}.weight_scale_inv", "F32", (-(-rows // BLOCK), -(-columns // BLOCK))


def size_of(entry: Entry) -> int:
    return prod(entry[2]) * ITEMSIZE[entry[1]]


class Numbers:
    """Bytes for a tensor, the same ones for the same name: finite numbers of a plausible size."""

    def __init__(self) -> None:
        random = torch.Generator().manual_seed(0)
        fp8 = torch.randn(POOL, generator=random).mul_(100).clamp_(-448, 448).to(torch.float8_e4m3fn)
        bf16 = torch.randn(POOL, generator=random).mul_(0.02).to(torch.bfloat16)
        f32 = torch.rand(POOL, generator=random).add_(0.5).mul_(1e-4)
        kinds = {"F8_E4M3": fp8, "BF16": bf16, "F32": f32}
        self.pools = {kind: memoryview(bytearray(pool.view(torch.uint8).numpy())) for kind, pool in kinds.items()}

    def pieces(self, entry: Entry) -> Iterator[memoryview]:
        name, dtype, _ = entry
        # An MTP module repeats the main embedding and head.
        like = "lm_head.weight" if name.endswith("shared_head.head.weight") else name
        like = "embed_tokens.weight" if name.endswith("embed_tokens.weight") else like
        pool, left = self.pools[dtype], size_of(entry)
        start = zlib.crc32(like.encode()) % len(pool) // 8 * 8
        while left:
            piece = pool[start : start + left]
            yield piece
            left, start = left - len(piece), 0


def split(tensors: list[Entry], shards: int) -> list[list[Entry]]:
    """In order, and of about the same size."""
    each = sum(map(size_of, tensors)) / shards
    parts: list[list[Entry]] = [[] for _ in range(shards)]
    before = 0
    for number, entry in enumerate(tensors):
        # No shard is left empty, however large single tensors are.
        least, most = max(0, shards - (len(tensors) - number)), number
        parts[max(least, min(int(before / each), shards - 1, most))].append(entry)
        before += size_of(entry)
    return parts


def write_shard(file: Path, tensors: list[Entry], numbers: Numbers | None) -> None:
    """numbers None: zeros, as a hole in the file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + size_of((name, dtype, shape))
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for entry in tensors if numbers is not None else ():
            for piece in numbers.pieces(entry):
                out.write(piece)
        out.truncate(8 + len(text) + end)


def make_checkpoint(directory: Path, sizes: Sizes, shards: int = 163, *, hollow: bool = False) -> Path:
    """Writes the directory: shards, index, config.json, and the small files that stand beside them.

    hollow: all numbers are 0 and take no room where files may have holes, whatever the sizes."""
    directory.mkdir(parents=True)
    numbers, tensors = None if hollow else Numbers(), list(entries(sizes))
    weight_map = {}
    for number, part in enumerate(split(tensors, shards), 1):
        file = f"model-{number:05d}-of-{shards:06d}.safetensors"
        write_shard(directory / file, part, numbers)
        weight_map |= {name: file for name, _, _ in part}
    index = {"metadata": {"total_size": sum(map(size_of, tensors))}, "weight_map": weight_map}
    generation = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 0.6, "top_p": 0.95}
    small = {"config.json": config_json(sizes), "model.safetensors.index.json": index}
    small |= {"generation_config.json": generation, "tokenizer.json": {}, "tokenizer_config.json": {}}
    for name, content in small.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name in ("README.md", "modeling_deepseek.py", "configuration_deepseek.py"):
        (directory / name).write_text("# not for an export\n", encoding="utf-8")
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shards", type=int, default=163)
    parser.add_argument("--hollow", action="store_true", help="zeros that take no room on the disk")
    for name, default in asdict(Sizes()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    given = vars(parser.parse_args())
    directory, shards, hollow = (given.pop(name) for name in ("out", "shards", "hollow"))
    make_checkpoint(directory, Sizes(**given), shards, hollow=hollow)


if __name__ == "__main__":
    main()
