"""Source code: top-level pieces and their lines."""

from __future__ import annotations

from luthier.knowledge.parse import parse_bytes

SOURCE = '''import os


class Bow:
    """琴弓"""

    def draw(self):
        return 1


def loosen():

    return 0
'''


def test_pieces_keep_their_lines() -> None:
    document = parse_bytes(SOURCE.encode(), "/src/bow.py")
    assert [(block.kind, block.place) for block in document.blocks] == [
        ("code", "line 1"),
        ("code", "lines 4-8"),
        ("code", "lines 11-13"),
    ]
    lines = SOURCE.split("\n")
    for block in document.blocks:
        first, _, last = block.place.removeprefix("lines ").removeprefix("line ").partition("-")
        assert block.text == "\n".join(lines[int(first) - 1 : int(last or first)])
    assert document.meta["suffix"] == "py"
