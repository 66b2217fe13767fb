"""`python -m paceline.compat.export_model`: PaddleNLP's export_model.py, with its flags.

There it makes a static graph; here a checkpoint directory that the predictor loads: quantised if `--quant_type` says
so, else a copy. Kernels and lengths are chosen when it is run. It appears whole or not at all.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paceline.compat import paddlenlp
from paceline.compat.describe import asks_for_help, help_text
from paceline.compat.flags import Flag, say
from paceline.errors import UserError, as_exit_code

USAGE = "python -m paceline.compat.export_model --model_name_or_path DIR --output_path DIR [FLAGS]: PaddleNLP's export."
TAKEN = ("model_name_or_path", "quant_type")


def _at_export(flag: Flag) -> Flag:
    """The predictor's flag, as it is for an export."""
    if flag.name in TAKEN or flag.note or flag.refuse:
        return flag
    return replace(flag, to="", default=None, help="", note="it is chosen when the exported directory is run")


FLAGS = (
    Flag("output_path", help="the directory to write, new or empty"),
    Flag("overwrite", bool, help="replaces the checkpoint that is there, in one step (a flag of Paceline's own)"),
    *map(_at_export, paddlenlp.FLAGS),
)


def run(words: Sequence[str]) -> None:
    """Writes the directory. What the user should know goes to stderr."""
    if asks_for_help(words):
        print(help_text(USAGE, FLAGS))
        return
    line = paddlenlp.read(words, FLAGS)
    if not line.given.get("output_path"):
        raise UserError("--output_path is missing; name the directory to write.")
    say(line.notes)
    from paceline.checkpoint.resolve import resolve_model

    options = line.options()
    source, target = resolve_model(options["model"]), Path(str(line.given["output_path"]))
    _write(source, target, options.get("quantization"), bool(line.given.get("overwrite")))
    print(f"{target} is written.", file=sys.stderr)


def _write(source: Path, target: Path, quantization: str | None, overwrite: bool) -> None:
    """Raises `UserError` for a bad checkpoint, or a target that may not be replaced."""
    from paceline.checkpoint.quantization import format_named, stored_format
    from paceline.config import ModelConfig
    from paceline.convert.quantize import plan_quantize, quantize

    form = format_named(quantization or "none")
    if form is None or stored_format(ModelConfig.from_dir(source).raw) is form:
        _copy(source, target, overwrite)
    else:
        quantize(plan_quantize(source, form), target, overwrite=overwrite)


def _copy(source: Path, target: Path, overwrite: bool) -> None:
    """The checkpoint as it is, and what its tokenizer needs."""
    from paceline.checkpoint.appearing import appearing, check_apart
    from paceline.checkpoint.reader import INDEX, Checkpoint
    from paceline.convert.travelling import travelling

    check_apart(source, target)
    files = {info.file for info in Checkpoint(source).values()}
    files |= {file for file in (source / "config.json", source / INDEX) if file.is_file()}
    with appearing(target, overwrite) as draft:
        for file in sorted(files | set(travelling(source))):
            shutil.copyfile(file, draft / file.name)


if __name__ == "__main__":
    with as_exit_code():
        run(sys.argv[1:])
