"""Markdown: blocks with their lines, tables, code, front matter."""

from __future__ import annotations

import time

from luthier.knowledge.parse import parse_bytes

TEXT = """---
title: hidden
---
# Bow *care*

Loosen the hair.
Then wipe it.

- cloth
- rosin

| part | price |
| --- | --- |
| 琴弓 | 100 |

```python
# no heading
x = 1
```

## 琴弓

> 放回琴盒。
"""


def test_blocks_and_lines() -> None:
    document = parse_bytes(TEXT.encode(), "care.md")
    assert document.title == "Bow care"
    assert [(block.kind, block.place) for block in document.blocks] == [
        ("heading", "line 4"),
        ("paragraph", "lines 6-7"),
        ("list", "lines 9-10"),
        ("table", "lines 12-14"),
        ("code", "lines 16-19"),
        ("heading", "line 21"),
        ("quote", "line 23"),
    ]
    assert document.blocks[4].text == "# no heading\nx = 1"
    assert document.blocks[5].text == "琴弓" and "hidden" not in document.text


def test_hostile_nesting_is_quick() -> None:
    started = time.perf_counter()
    for piece in ("> ", "- ", "[", "*a ", "`", "<", "![]("):
        parse_bytes((piece * 5000 + "end").encode(), "deep.md")
    assert time.perf_counter() - started < 20
