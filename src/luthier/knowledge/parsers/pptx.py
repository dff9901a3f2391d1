"""PowerPoint presentations (Office Open XML): slide by slide, with tables, charts and notes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from luthier.core.catalog import EntryConfig
from luthier.core.document import Block
from luthier.knowledge.parsers._parsed import Parsed, markdown_table

MEDIA_TYPES = ("application/vnd.openxmlformats-officedocument.presentationml.presentation",)
SUFFIXES = (".pptx", ".pptm", ".ppsx", ".potx")

_C = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
_EMU = 12_700  # English metric units in a point


class Config(EntryConfig):
    """``notes``: the speaker's notes are read."""

    notes: bool = True


def parse(data: bytes, name: str, config: Config) -> Parsed:
    """Blocks slide by slide (a slide is a page), each slide's in reading order. Raises DataError for a damaged file."""
    from pptx import Presentation

    presentation = Presentation(io.BytesIO(data))
    blocks: list[Block] = []
    for number, slide in enumerate(presentation.slides, 1):
        blocks += _slide(slide, number, config)
    title = (presentation.core_properties.title or "").strip()
    return Parsed(blocks, title=title, pages=len(presentation.slides))


def _slide(slide: Any, number: int, config: Config) -> Iterator[Block]:
    heading = slide.shapes.title
    shapes = sorted(slide.shapes, key=lambda shape: (shape.top or 0, shape.left or 0))
    for shape in ([heading] if heading is not None else []) + [s for s in shapes if s != heading]:
        yield from _shape(shape, number, heading=shape == heading)
    if config.notes and slide.has_notes_slide:
        frame = slide.notes_slide.notes_text_frame
        if frame is not None and frame.text.strip():
            yield Block(frame.text.strip(), page=number, place="notes")


def _shape(shape: Any, number: int, *, heading: bool) -> Iterator[Block]:
    if hasattr(shape, "shapes"):  # a group
        for inner in sorted(shape.shapes, key=lambda each: (each.top or 0, each.left or 0)):
            yield from _shape(inner, number, heading=False)
        return
    box = None
    if None not in (shape.left, shape.top, shape.width, shape.height):
        left, top = shape.left / _EMU, shape.top / _EMU
        box = (left, top, left + shape.width / _EMU, top + shape.height / _EMU)
    if getattr(shape, "has_table", False):
        table = markdown_table([[cell.text for cell in row.cells] for row in shape.table.rows])
        if table:
            yield Block(table, "table", page=number, box=box)
    elif getattr(shape, "has_chart", False):
        table = _chart(shape.chart)
        if table:
            yield Block(table, "table", page=number, place="chart", box=box)
    elif shape.has_text_frame and shape.text_frame.text.strip():
        if heading:
            yield Block(" ".join(shape.text_frame.text.split()), "heading", 1, page=number, box=box)
            return
        lines = [f"{'  ' * line.level}{line.text.strip()}" for line in shape.text_frame.paragraphs if line.text.strip()]
        yield Block("\n".join(lines), "list" if len(lines) > 1 else "paragraph", page=number, box=box)


def _chart(chart: Any) -> str:
    """The numbers that a chart of any kind keeps beside its picture: a row for each category, a column for each series."""
    title = chart.chart_title.text_frame.text.strip() if chart.has_title and chart.chart_title.has_text_frame else ""
    names: dict[int, str] = {}
    columns: list[tuple[str, dict[int, str]]] = []
    for series in chart._chartSpace.iter(f"{_C}ser"):
        names |= _points(series.find(f"{_C}cat")) or _points(series.find(f"{_C}xVal"))
        name = " ".join(_points(series.find(f"{_C}tx")).values())
        columns.append((name, _points(series.find(f"{_C}val")) or _points(series.find(f"{_C}yVal"))))
    rows = [[title, *(name for name, _ in columns)]]
    for at in sorted({*names, *(at for _, values in columns for at in values)}):
        rows.append([names.get(at, ""), *(values.get(at, "") for _, values in columns)])
    return markdown_table(rows) or title


def _points(holder: Any) -> dict[int, str]:
    """Cached values by their place."""
    if holder is None:
        return {}
    found = {int(point.get("idx")): (point.findtext(f"{_C}v") or "").strip() for point in holder.iter(f"{_C}pt")}
    return found or {0: (holder.findtext(f"{_C}v") or "").strip()}
