"""Draws what each method trains: one small picture a method, in the colours of the page, light or dark.

Frozen parts are grey, trained ones orange, frozen random ones hatched. The pictures are inline SVG with the site's own CSS variables
(``assets/site.css``), so nothing is fetched and nothing has to be drawn twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

WIDTH, HEIGHT = 150, 120
FROZEN, TRAINED, RANDOM, COMPUTED = "frozen", "trained", "random", "computed"


def rect(x: float, y: float, w: float, h: float, kind: str = FROZEN, text: str = "", round_: float = 2) -> str:
    """A box, with a word in its middle."""
    label = words(x + w / 2, y + h / 2 + 3, text, kind) if text else ""
    size = f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{round_:g}"'
    under = f'<rect class="under" {size}/>' if kind == FROZEN else ""  # grey lets lines through
    return f'{under}<rect class="{kind}" {size}/>{label}'


def words(x: float, y: float, text: str, kind: str = "") -> str:
    """A word around a point."""
    return f'<text class="on-{kind or "page"}" x="{x:g}" y="{y:g}">{text}</text>'


def line(*points: tuple[float, float], kind: str = "flow") -> str:
    """A line through points."""
    return f'<polyline class="{kind}" points="{" ".join(f"{x:g},{y:g}" for x, y in points)}"/>'


def plus(x: float, y: float, sign: str = "+", kind: str = "sum") -> str:
    """A small circle with a sign: what comes together there."""
    return f'<circle class="{kind}" cx="{x:g}" cy="{y:g}" r="6"/>{words(x, y + 3.4, sign, "sum" if kind == "sum" else kind)}'


def bottleneck(x: float, y: float, w: float = 34, h: float = 18, kind: str = TRAINED) -> str:
    """An adapter: wide, narrow, wide. (x, y) is its middle."""
    half, inner, waist = w / 2, w / 6, h / 2
    upper = f"{x - half:g},{y - waist:g} {x + half:g},{y - waist:g} {x + inner:g},{y - 1:g} {x - inner:g},{y - 1:g}"
    lower = f"{x - half:g},{y + waist:g} {x + half:g},{y + waist:g} {x + inner:g},{y + 1:g} {x - inner:g},{y + 1:g}"
    return f'<polygon class="{kind}" points="{upper}"/><polygon class="{kind}" points="{lower}"/>'


def speckle(x: float, y: float, w: float, h: float, share: float, seed: int) -> str:
    """Single trained entries of a weight."""
    drawn = random.Random(seed)
    cells = [(i, j) for i in range(int(w // 4)) for j in range(int(h // 4)) if drawn.random() < share]
    return "".join(
        f'<rect class="trained" x="{x + 4 * i:g}" y="{y + 4 * j:g}" width="3" height="3"/>' for i, j in cells
    )


def model(
    trained: Iterable[str] = (),
    *,
    blocks: Iterable[int] = (0, 1, 2),
    entries: float = 0,
    embeddings: str = FROZEN,
    head: str = "",
) -> str:
    """A model from its embeddings at the bottom to its head, three blocks of norm, attention, norm, feed-forward; ``entries``: the share of
    single weights that is trained."""
    of, chosen = set(trained), set(blocks)
    out = rect(20, 104, 110, 10, TRAINED if "embeddings" in of else embeddings, "embeddings")
    for number in range(3):
        y = 78 - 26 * number
        kind = {
            part: TRAINED if part in of and number in chosen else FROZEN
            for part in ("norm", "attention", "feed", "bias")
        }
        out += rect(16, y, 118, 22, "block")
        for x, part, text in ((26, "attention", "attn"), (84, "feed", "ffn")):
            out += rect(x - 7, y + 4, 4, 14, kind["norm"])
            out += rect(x, y + 4, 44, 14, kind[part], "" if entries else text)
            if entries:
                out += speckle(x + 1, y + 5, 44, 14, entries, 7 * number + x)
            if "bias" in of:
                out += rect(x, y + 15, 44, 3, kind["bias"], round_=0)
    return out + rect(50, 6, 50, 12, TRAINED if "head" in of else head or FROZEN, "head")


def block(*extra: str, room: bool = False) -> str:
    """One block from bottom to top with its two residual sums, and what is put into it; ``room`` for an adapter under each sum."""
    x, out = 62, line((62, 118), (62, 2))
    for box, total, text in (
        ((100, 66, "attention"), (45, 11, "feed-fwd")) if room else ((88, 66, "attention"), (36, 14, "feed-fwd"))
    ):
        out += (
            line((x, box + 18), (18, box + 18), (18, total), (x, total))
            + rect(x - 28, box, 56, 13, FROZEN, text)
            + plus(x, total)
        )
    return out + "".join(extra)


def sequence(virtual: str, upper: str, *extra: str) -> str:
    """Two virtual and four real tokens through three layers, from the bottom: ``virtual``, what the lowest row of virtual ones is, and ``upper``
    those of the layers."""
    out = ""
    for row in range(4):
        y = 84 - 22 * row
        for column in range(6):
            kind = (virtual if row == 0 else upper) if column < 2 else FROZEN
            out += rect(14 + 21 * column, y, 16, 15, kind, round_=3)
    return out + words(24 + 8, 112, "virtual") + words(98, 112, "the text") + "".join(extra)


def low_rank(x: float, y: float, kind: str = TRAINED, size: float = 46) -> str:
    """B A: a tall and a wide matrix."""
    return rect(x, y, 11, size, kind, "B") + rect(x + 15, y, size - 8, 11, kind, "A")


def weight(kind: str = FROZEN, text: str = "W", x: float = 12, y: float = 36) -> str:
    """The weight matrix."""
    return rect(x, y, 46, 46, kind, text)


def _rotation() -> str:
    cells = "".join(rect(84 + 12 * n, 36 + 12 * n, 11, 11, TRAINED, round_=1) for n in range(4))
    return (
        weight(x=14) + plus(72, 59, "·") + rect(84, 36, 47, 47, "block") + cells + words(108, 98, "rotation in blocks")
    )


def _ladder() -> str:
    out = line((44, 108), (44, 4)) + line((112, 108), (112, 4))
    for number in range(3):
        y = 82 - 32 * number
        out += (
            rect(18, y, 52, 18, FROZEN, "block")
            + line((44, y - 6), (112, y - 6))
            + rect(96, y, 32, 18, TRAINED, "small")
        )
    return out + words(44, 118, "model") + words(112, 118, "ladder")


def _fusion() -> str:
    adapters = "".join(
        line((75, 100), (x, 74)) + line((x, 58), (75, 40)) + bottleneck(x, 66, 26, 16, RANDOM) for x in (36, 75, 114)
    )
    return (
        line((75, 106), (75, 100))
        + adapters
        + line((75, 26), (75, 6))
        + rect(46, 26, 58, 15, TRAINED, "attention")
        + words(75, 116, "adapters of other tasks")
    )


def _language() -> str:
    out = (
        line((75, 118), (75, 2))
        + rect(41, 104, 68, 12, FROZEN, "embeddings")
        + rect(41, 84, 68, 12, TRAINED, "invertible")
    )
    out += rect(47, 58, 56, 13, FROZEN, "feed-fwd") + bottleneck(75, 42, h=16) + bottleneck(75, 18, kind="open")
    return out + words(124, 45, "language") + words(122, 21, "task, later")


def _kronecker(x: float = 78, y: float = 44) -> str:
    small = "".join(rect(x + 9 * (n % 2), y + 9 * (n // 2), 8, 8, TRAINED, round_=1) for n in range(4))
    return small + words(x + 26, y + 13, "⊗") + rect(x + 34, y - 6, 26, 26, TRAINED, round_=2)


PICTURES: Mapping[str, Callable[[], str]] = {
    "full": lambda: model(("embeddings", "norm", "attention", "feed", "head")),
    "freeze": lambda: model(("norm", "attention", "feed"), blocks=(2,)),
    "attention_only": lambda: model(("attention",)),
    "layer_norm": lambda: model(("norm",)),
    "bitfit": lambda: model(("bias",)),
    "linear_probe": lambda: model(("head",)),
    "fish_mask": lambda: model(entries=0.12),
    "diff_pruning": lambda: model(entries=0.3),
    "adapter": lambda: block(bottleneck(62, 31, h=16), bottleneck(62, 86, h=16), room=True),
    "pfeiffer_adapter": lambda: block(bottleneck(62, 31, h=16), room=True),
    "parallel_adapter": lambda: block(line((62, 54), (116, 54), (116, 14), (68, 14)), bottleneck(116, 40, 30, 18), words(128, 26, "× s")),
    "compacter": lambda: line((75, 118), (75, 72)) + bottleneck(75, 94, 44, 20) + words(75, 68, "each matrix is") + _kronecker(46, 36) + words(75, 16, "left: shared by all layers"),
    "ia3": lambda: line((75, 118), (75, 4)) + rect(47, 90, 56, 14, FROZEN, "k and v") + plus(75, 78, "×", TRAINED) + rect(47, 48, 56, 14, FROZEN, "up") + plus(75, 36, "×", TRAINED) + rect(47, 10, 56, 14, FROZEN, "down") + rect(90, 72, 4, 12, TRAINED) + rect(90, 30, 4, 12, TRAINED),
    "ladder_side": _ladder,
    "adapter_fusion": _fusion,
    "language_adapter": _language,
    "prompt": lambda: sequence(TRAINED, COMPUTED),
    "p_tuning": lambda: sequence(COMPUTED, COMPUTED).replace(words(32, 112, "virtual"), "") + line((32, 106), (32, 99)) + rect(11, 105, 42, 13, TRAINED, "network"),
    "prefix": lambda: sequence("none", TRAINED, words(32, 96, "k, v")),
    "p_tuning_v2": lambda: sequence("none", TRAINED, words(32, 96, "k, v"), rect(77, 2, 42, 12, TRAINED, "head")),
    "lora": lambda: weight() + plus(70, 59) + low_rank(84, 36),
    "dora": lambda: rect(8, 36, 8, 46, TRAINED, "m") + words(22, 62, "·") + weight(x=28) + plus(86, 59) + low_rank(98, 36, size=44) + words(80, 98, "direction, of norm one"),
    "adalora": lambda: weight() + plus(70, 59) + rect(82, 36, 12, 46, TRAINED, "P") + "".join(rect(99 + 7 * n, 36 + 7 * n, 6, 6, TRAINED if n < 2 else COMPUTED, round_=1) for n in range(3)) + rect(122, 36, 24, 12, TRAINED, "Q") + words(108, 98, "ranks come and go"),
    "qlora": lambda: weight(RANDOM, "4 bits") + plus(70, 59) + low_rank(84, 36),
    "loha": lambda: weight(x=6) + plus(60, 59) + low_rank(70, 40, size=36) + words(117, 62, "∘") + rect(123, 40, 9, 36, TRAINED, "B") + rect(134, 40, 15, 10, TRAINED, "A"),
    "lokr": lambda: weight() + plus(70, 62) + _kronecker(80, 48),
    "vera": lambda: weight() + plus(68, 59) + rect(78, 36, 4, 46, TRAINED) + low_rank(86, 36, RANDOM, 44) + rect(102, 52, 4, 30, TRAINED) + words(106, 98, "B, A shared, random"),
    "oft": _rotation,
    "lora_and_embeddings": lambda: weight(y=22) + plus(70, 45) + low_rank(84, 22) + rect(20, 88, 110, 12, TRAINED, "embeddings and head"),
    "mam": lambda: block(line((62, 54), (116, 54), (116, 14), (68, 14)), bottleneck(116, 36, 30, 18), line((104, 94), (90, 94)), rect(104, 88, 12, 12, TRAINED, "k"), rect(119, 88, 12, 12, TRAINED, "v")),
    "unipelt": lambda: block(line((124, 84), (100, 84), (90, 102)), line((124, 106), (90, 108)), bottleneck(62, 31, h=16), rect(116, 78, 12, 12, TRAINED, "k"), rect(131, 78, 12, 12, TRAINED, "v"), rect(116, 100, 27, 12, TRAINED, "LoRA"), *(plus(x, y, "g", TRAINED) for x, y in ((103, 84), (103, 107), (90, 31))), room=True),
    "peft": lambda: rect(30, 40, 90, 40, COMPUTED, "whatever PEFT has"),
}  # fmt: skip
"""By method."""

KEY = (
    '<p class="method-key"><svg viewBox="0 0 10 10"><rect class="frozen" width="10" height="10" rx="2"/></svg> frozen '
    '<svg viewBox="0 0 10 10"><rect class="trained" width="10" height="10" rx="2"/></svg> trained '
    '<svg viewBox="0 0 10 10"><rect class="random" width="10" height="10" rx="2"/></svg> frozen, made beforehand '
    '<svg viewBox="0 0 10 10"><rect class="computed" width="10" height="10" rx="2"/></svg> computed from what is trained</p>'
)


def family(methods: Iterable[str]) -> str:
    """The pictures of the methods that have one, side by side, each leading to its section."""
    drawn = [
        f'<a href="#{name}" title="{name}"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="what {name} trains">'
        f"{PICTURES[name]()}</svg><span>{name}</span></a>"
        for name in methods
        if name in PICTURES
    ]
    return f'<div class="methods">{"".join(drawn)}</div>\n{KEY}\n' if drawn else ""
