"""Documents: how much of the known text of each format is found, which broken files are refused and why, and the processor time of a file.

    python benchmarks/documents.py --data FOLDER [--quick] [--peer PYTHON]

FOLDER holds ``manifest.jsonl``: ``file`` and ``type``; ``expect_text`` are phrases that are in it, ``expect_ocr_text`` those that only OCR finds
(``luthier[ocr]``), and for odd files ``expect``: ``text``, ``empty``, ``error``, ``either`` (text or an error), ``bounded`` (nothing is unpacked
without end). White space is not compared. ``--peer`` is the Python of an environment that has markitdown, which reads the same files; ``--quick``
leaves OCR out. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from luthier.core.errors import InputError
from luthier.knowledge.parse import parse_file
from luthier.knowledge.parsers import _ocr, image, pdf

OCR = "scans (OCR)"
REPEATS = 3
LONG_S = 3.0
"""Of processor time: a file that takes so long (OCR) is read once."""


@dataclass
class Tally:
    """What was found of a format: phrases, and the seconds of each file."""

    found: int = 0
    phrases: int = 0
    files: int = 0
    refused: int = 0
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Said:
    """What a reader made of a file: its text, or why there is none."""

    text: str = ""
    error: str = ""
    seconds: float = 0.0


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with manifest.jsonl and the files it names")
    parser.add_argument("--peer", type=Path, help="Python of an environment with markitdown")
    parser.add_argument("--quick", action="store_true", help="without OCR")
    asked = parser.parse_args()
    rows = [json.loads(line) for line in (asked.data / "manifest.jsonl").open(encoding="utf-8")]
    paths = [asked.data / row["file"] for row in rows]
    pdf.APART = image.APART = False
    with_ocr = not asked.quick and _ocr.reader() is not None
    said = [ours(path, with_ocr=with_ocr) for path in paths]
    own = tallies(rows, said, with_ocr=with_ocr)
    peer = tallies(rows, theirs(asked.peer, paths), with_ocr=with_ocr) if asked.peer else {}
    odd = [(row, one) for row, one in zip(rows, said, strict=True) if row["group"] == "odd"]
    wrong = [f"{row['file']}: {one.error or 'text'}" for row, one in odd if not as_expected(row["expect"], one)]
    report(own, peer, odd, wrong)
    quality = {
        "recall": {kind: tally.found / tally.phrases for kind, tally in own.items()},
        "odd_files": {"files": len(odd), "as_expected": len(odd) - len(wrong)},
        "refused": sum(tally.refused for tally in own.values()),
    }
    if peer:
        quality["markitdown_recall"] = {kind: tally.found / tally.phrases for kind, tally in peer.items()}
    figures = {"median_cpu_s": {kind: median(tally.seconds) for kind, tally in own.items()}}
    shared = [kind for kind in own if kind != OCR and kind in peer]
    ratios = {f"speed_{kind}": median(peer[kind].seconds) / median(own[kind].seconds) for kind in shared}
    print(json.dumps({"benchmark": "documents", "ratios": ratios, "figures": figures, "quality": quality}))


def ours(path: Path, *, with_ocr: bool) -> Said:
    """A file by Luthier: the least processor time of several readings. PDF is read in this process, so that its time is counted, too."""
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        try:
            said = Said(parse_file(path, {} if with_ocr else {"pdf": {"ocr": False}}).text)
        except InputError as error:
            said = Said(error=error.message)
        seconds.append(time.process_time() - start)
        if seconds[-1] > LONG_S:
            break
    return Said(said.text, said.error, min(seconds))


def theirs(python: Path, paths: Sequence[Path]) -> list[Said]:
    """The files by markitdown, each several times in one process."""
    listed = [path for path in paths for _ in range(REPEATS)]
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("_documents_peer.py"))],
        input="\n".join(map(str, listed)), capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    out = []
    for start in range(0, len(lines), REPEATS):
        part = lines[start : start + REPEATS]
        seconds = min(float(each["seconds"]) for each in part)
        out.append(Said(part[0].get("text") or "", part[0].get("error", ""), seconds))
    return out


def tallies(rows: Sequence[dict[str, Any]], said: Sequence[Said], *, with_ocr: bool) -> dict[str, Tally]:
    """Phrases found by format; those that need OCR are a format of their own."""
    out: dict[str, Tally] = defaultdict(Tally)
    for row, one in zip(rows, said, strict=True):
        for key, kind in (("expect_text", row["type"]), ("expect_ocr_text", OCR)):
            phrases = row.get(key) or ()
            if row["group"] == "odd" or not phrases or (kind == OCR and not with_ocr):
                continue
            tally, text = out[kind], plain(one.text)
            hits = [plain(phrase) in text for phrase in phrases]
            for phrase, hit in zip(phrases, hits, strict=True):
                if not hit and kind != OCR:
                    print(f"missed in {row['file']}: {phrase}", file=sys.stderr)
            tally.found += sum(hits)
            tally.phrases += len(phrases)
            tally.files += 1
            tally.refused += bool(one.error)
            tally.seconds.append(one.seconds)
    return dict(out)


def plain(text: str) -> str:
    """Without white space and the marks of Markdown tables, which readers set differently."""
    return "".join(text.split()).replace("|", "").replace("\\", "")


def as_expected(expect: str, said: Said) -> bool:
    """Whether an odd file was treated as its line of the manifest says."""
    if expect == "error":
        return bool(said.error)
    if expect == "text":
        return bool(said.text)
    if expect == "empty":
        return not said.text and not said.error
    return said.seconds < 60


def report(
    own: dict[str, Tally], peer: dict[str, Tally], odd: Sequence[tuple[dict[str, Any], Said]], wrong: list[str]
) -> None:
    """Tables for people."""
    print(
        f"{'format':<14}{'files':>6}{'phrases':>9}{'found':>7}{'ms':>9}"
        + (f"{'markitdown':>12}{'ms':>9}" if peer else "")
    )
    for kind, tally in sorted(own.items()):
        line = f"{kind:<14}{tally.files:>6}{tally.phrases:>9}{tally.found:>7}{1000 * median(tally.seconds):>9.1f}"
        if kind in peer:
            line += f"{peer[kind].found:>12}{1000 * median(peer[kind].seconds):>9.1f}"
        print(line)
    print()
    for row, one in odd:
        name = Path(row["file"]).name
        print(
            f"{name:<32}{row['expect']:<9}{one.error.replace(row['file'], name)[:110] or f'{len(one.text):,} characters'}"
        )
    print(
        f"\n{len(odd) - len(wrong)} of {len(odd)} odd files as expected" + "".join(f"\n  not: {each}" for each in wrong)
    )


if __name__ == "__main__":
    main()
