#!/usr/bin/env python3
"""Writes the tables of docs/compat.md anew from the flags that `paceline.compat` understands."""

from pathlib import Path

from paceline.compat import export_model, paddlenlp, xllm
from paceline.compat.describe import markdown

PAGE = Path(__file__).parents[1] / "docs" / "compat.md"
TABLES = {"xllm": xllm.FLAGS, "predictor": paddlenlp.FLAGS, "export_model": export_model.FLAGS}

if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    for name, flags in TABLES.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        head, tail = page.split(begin)[0], page.split(end)[1]
        page = head + begin + markdown(flags) + end + tail
    PAGE.write_text(page, encoding="utf-8")
