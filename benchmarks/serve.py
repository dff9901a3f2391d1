"""Serving: the gateway alone, the llama.cpp engine beside llama.cpp's own server, the torch engine beside ``transformers``.

    python benchmarks/serve.py --quick            # everything, a few minutes on two cores
    python benchmarks/serve.py --part gateway     # one part, in full

Prints what it measured and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

PARTS = ("gateway", "llamacpp", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part (may be given again)")
    asked = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    ratios: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    quality: dict[str, Any] = {}
    for part in asked.part or PARTS:
        print(f"== {part}", flush=True)
        found = import_module(f"_serve_{part}").run(quick=asked.quick)
        ratios |= found.pop("ratios", {})
        quality |= found.pop("quality", {})
        figures[part] = found
        for name, value in found.items():
            print(f"{name:>20}  {value}", flush=True)
    print(json.dumps({"benchmark": "serve", "ratios": ratios, "figures": figures, "quality": quality}))


if __name__ == "__main__":
    main()
