#!/usr/bin/env python3
"""`paceline export-mtp` under its xLLM name: tools/export_mtp.py --input-dir DIR --output-dir DIR."""

import sys

from paceline.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "export-mtp")
    main()
