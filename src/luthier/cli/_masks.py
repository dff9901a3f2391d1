"""``luthier data render --mask``: what an objective asks of each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.core.dataset import Dataset
    from luthier.core.task import PromptTemplate
    from luthier.objectives._shown import Line


def show_masks(
    name: str, dataset: Dataset, prompt: PromptTemplate, objective: str | None, options: Sequence[str], rows: int
) -> None:
    """The first ``rows`` rows that the objective (left out: the one that tuning would take) makes of ``dataset`` for the model ``name``.

    What is trained on stands between ``[[`` and ``]]``; where the loss asks for another token than the one that is read there, as ``[[read -> asked]]``.
    """
    from itertools import islice

    from rich.markup import escape

    from luthier.cli import _print
    from luthier.models.shapes import load_shapes
    from luthier.objectives._shown import lines
    from luthier.store.database import open_store
    from luthier.store.models import find
    from luthier.training.part import objective_for

    store = open_store()
    record = find(store, name)
    chosen = objective_for(record, dataset, objective, _values(options))
    model = load_shapes(store, record, labels=prompt.labels)
    model.labels = prompt.labels
    model.module.requires_grad_(True)  # what is frozen would be computed beforehand, and a sketch computes nothing
    for number, (source, found) in enumerate(
        islice(lines(chosen.entry, dataset, model, prompt, chosen.config), rows), 1
    ):
        _print.say(f"[dim]row {number}, {escape(source)}, objective {chosen.entry.name}[/]")
        for line in found:
            _print.out().print(_drawn(line, model.tokenizer, colour=_print.out().is_terminal))
        read, asked = sum(map(len, found)), sum(each.wanted is not None for line in found for each in line)
        _print.say(f"[dim]{read:,} tokens, {asked:,} trained on[/]")


def _values(options: Sequence[str]) -> dict[str, Any]:
    import yaml

    from luthier.core.errors import InputError

    found = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not (key and equals):
            raise InputError(f"--option must be KEY=VALUE, for example share=0.3; got {option!r}")
        found[key] = yaml.safe_load(value)
    return found


def _drawn(line: Line, tokenizer: Any, *, colour: bool) -> Any:
    """One sequence: in colour every token for itself, else the trained stretches in brackets."""
    from rich.text import Text

    pieces, text = list(_pieces(line, tokenizer)), Text()
    if colour:
        for at, (read, asked) in enumerate(pieces):
            shade = ("black on green3", "black on green1") if asked is not None else ("dim", "dim")
            text.append(read if asked in (None, read) else f"{read}→{asked}", style=shade[at % 2])
        return text
    for trained, stretch in groupby(pieces, key=lambda piece: piece[1] is not None):
        shown = list(stretch)
        if not trained:
            text.append("".join(read for read, _ in shown))
            continue
        for same, part in groupby(shown, key=lambda piece: piece[0] == piece[1]):
            together = list(part)
            if same:
                text.append(f"[[{''.join(read for read, _ in together)}]]")
            else:
                text.append("".join(f"[[{read} -> {str(asked).strip()}]]" for read, asked in together))
    return text


def _pieces(line: Line, tokenizer: Any) -> Iterator[tuple[str, str | None]]:
    """(text of what is read, text of what is asked or None); tokens that only together make a character come as one."""
    spaced = not _keeps_spaces(tokenizer)
    read: list[int] = []
    asked: list[int] = []
    for at, each in enumerate(line):
        read.append(each.read)
        if each.wanted is not None:
            asked.append(each.wanted)
        text = tokenizer.decode(read)
        following = line[at + 1] if at + 1 < len(line) else None
        ends = following is None or (following.wanted is None) != (each.wanted is None)
        if ends or not text.endswith("\ufffd"):
            if spaced:
                text = text.removeprefix("##") if text.startswith("##") else f" {text}"
            said = tokenizer.decode(asked) if asked else None
            if said is not None and read == asked:
                said = text
            yield text, said
            read, asked = [], []


def _keeps_spaces(tokenizer: Any) -> bool:
    """Whether the text of single tokens, put together, is the text of all: WordPiece leaves spaces out."""
    pair = tokenizer("a b", add_special_tokens=False)["input_ids"]
    return "".join(tokenizer.decode([token]) for token in pair).count(" ") == 1
