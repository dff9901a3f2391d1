"""PowerPoint: slides as pages, reading order by place, tables, charts, notes."""

from __future__ import annotations

import io
from types import SimpleNamespace

from luthier.knowledge.parse import parse_bytes


def test_slides_in_reading_order(make: SimpleNamespace) -> None:
    document = parse_bytes(make.pptx(), "report.pptx")
    assert (document.title, document.pages) == ("Quarterly report", 2)
    assert [(block.page, block.kind, block.text) for block in document.blocks[:3]] == [
        (1, "heading", "Repairs in spring"),
        (1, "paragraph", "first paragraph"),
        (1, "paragraph", "second paragraph"),
    ]
    assert document.blocks[1].box == (50.0, 200.0, 350.0, 250.0)
    assert [block.text for block in document.blocks if block.place == "notes"] == ["Mention the new lathe."]
    (table,) = [block for block in document.blocks if block.kind == "table"]
    assert (table.page, table.text.splitlines()[-1]) == (2, "| 琴弦 | 十二元 |")


def test_notes_can_be_left_out(make: SimpleNamespace) -> None:
    assert "lathe" not in parse_bytes(make.pptx(), "report.pptx", options={"pptx": {"notes": False}}).text


def test_a_chart_gives_its_numbers() -> None:
    from pptx import Presentation
    from pptx.chart.data import CategoryChartData
    from pptx.enum.chart import XL_CHART_TYPE
    from pptx.util import Pt

    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    data = CategoryChartData()
    data.categories = ["春", "summer"]
    data.add_series("repairs", (4, 7))
    data.add_series("sales", (1, 3))
    slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, Pt(10), Pt(10), Pt(300), Pt(200), data)
    out = io.BytesIO()
    deck.save(out)
    (chart,) = parse_bytes(out.getvalue(), "chart.pptx").blocks
    assert (chart.kind, chart.place) == ("table", "chart")
    assert "| summer | 7 | 3 |" in chart.text and "repairs | sales" in chart.text
