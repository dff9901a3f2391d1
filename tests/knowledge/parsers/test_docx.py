"""Word: headings, lists, tables, pages, content controls, text boxes, notes; hostile numbers."""

from __future__ import annotations

from types import SimpleNamespace

from luthier.knowledge.parse import parse_bytes

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def _body(make: SimpleNamespace, xml: str) -> bytes:
    """The small file with ``xml`` at the beginning of its body."""
    data: bytes = make.replaced(
        make.docx(), "word/document.xml", lambda text: text.replace("<w:body>", f"<w:body>{xml}")
    )
    return data


def test_structure_in_both_languages(make: SimpleNamespace) -> None:
    document = parse_bytes(make.docx(), "care.docx")
    kinds = [(block.kind, block.level, block.text) for block in document.blocks]
    assert document.title == "Violin care 小提琴保养"
    assert ("heading", 1, "Cleaning") in kinds and ("heading", 2, "琴弓") in kinds
    assert ("list", 0, "- soft cloth\n- no alcohol") in kinds
    assert ("paragraph", 0, "演奏后请放松弓毛,并把琴弓放回琴盒。") in kinds
    (table,) = [block.text for block in document.blocks if block.kind == "table"]
    assert table.splitlines() == [
        "| Part | Price |",
        "| --- | --- |",
        "| E string \\| steel | 12.50 |",
        "| 松香 | 8.00 |",
    ]
    assert [block.text for block in document.blocks if block.place == "header"] == ["Workshop handbook"]
    assert "header" not in {
        block.place for block in parse_bytes(make.docx(), "a.docx", options={"docx": {"headers": False}}).blocks
    }


def test_pages_are_those_that_word_saved(make: SimpleNamespace) -> None:
    assert {block.page for block in parse_bytes(make.docx(), "care.docx").blocks} == {None}
    turned = "<w:p><w:r><w:t>first page</w:t></w:r></w:p><w:p><w:r><w:lastRenderedPageBreak/><w:t>second page</w:t></w:r></w:p>"
    # a paragraph that a break stands in begins on the page before
    document = parse_bytes(_body(make, turned + "<w:p><w:r><w:t>still there</w:t></w:r></w:p>"), "care.docx")
    pages = {block.text: block.page for block in document.blocks}
    assert (pages["first page"], pages["still there"], document.pages) == (1, 2, 2)


def test_content_controls_and_inserted_text_are_read_and_deleted_text_is_not(make: SimpleNamespace) -> None:
    xml = (
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>in a control</w:t></w:r></w:p></w:sdtContent></w:sdt>"
        "<w:p><w:ins><w:r><w:t>kept</w:t></w:r></w:ins><w:del><w:r><w:delText>gone</w:delText><w:t>gone</w:t></w:r></w:del></w:p>"
    )
    text = parse_bytes(_body(make, xml), "care.docx").text
    assert "in a control" in text and "kept" in text and "gone" not in text


def test_a_text_box_is_read_once(make: SimpleNamespace) -> None:
    inside = "<w:txbxContent><w:p><w:r><w:t>boxed words</w:t></w:r></w:p></w:txbxContent>"
    compatible = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    xml = (
        f"<w:p><w:r><mc:AlternateContent {compatible}><mc:Choice Requires='wps'>{inside}</mc:Choice>"
        f"<mc:Fallback>{inside}</mc:Fallback></mc:AlternateContent></w:r></w:p>"
    )
    assert parse_bytes(_body(make, xml), "care.docx").text.count("boxed words") == 1


def test_merged_cells_stand_in_their_first_place(make: SimpleNamespace) -> None:
    cell = "<w:tc><w:tcPr>{}</w:tcPr><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc>"
    rows = (
        cell.format('<w:gridSpan w:val="2"/>', "wide") + cell.format('<w:vMerge w:val="restart"/>', "tall"),
        cell.format("", "one") + cell.format("", "two") + cell.format("<w:vMerge/>", "hidden"),
    )
    xml = "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in rows) + "</w:tbl>"
    table = next(block for block in parse_bytes(_body(make, xml), "care.docx").blocks if block.kind == "table")
    assert table.text.splitlines()[0] == "| wide |  | tall |"
    assert table.text.splitlines()[2] == "| one | two |  |"


def test_hostile_numbers_cost_nothing(make: SimpleNamespace) -> None:
    xml = (
        '<w:p><w:pPr><w:numPr><w:ilvl w:val="999999999"/><w:numId w:val="1"/></w:numPr></w:pPr><w:r><w:t>deep</w:t></w:r></w:p>'
        '<w:p><w:pPr><w:outlineLvl w:val="-7"/></w:pPr><w:r><w:t>below</w:t></w:r></w:p>'
        '<w:tbl><w:tr><w:tc><w:tcPr><w:gridSpan w:val="2000000000"/></w:tcPr><w:p><w:r><w:t>wide</w:t></w:r></w:p></w:tc></w:tr></w:tbl>'
    )
    document = parse_bytes(_body(make, xml), "care.docx")
    assert "deep" in document.text and "wide" in document.text and len(document.text) < 2000
    assert all(0 <= block.level <= 6 for block in document.blocks)


def test_a_style_based_on_a_heading_is_one(make: SimpleNamespace) -> None:
    style = '<w:style w:type="paragraph" w:styleId="Own"><w:name w:val="Own"/><w:basedOn w:val="Heading2"/></w:style></w:styles>'
    data = make.replaced(make.docx(), "word/styles.xml", lambda text: text.replace("</w:styles>", style))
    xml = '<w:p><w:pPr><w:pStyle w:val="Own"/></w:pPr><w:r><w:t>Varnish</w:t></w:r></w:p>'
    data = make.replaced(data, "word/document.xml", lambda text: text.replace("<w:body>", f"<w:body>{xml}"))
    first = parse_bytes(data, "a.docx").blocks[0]
    assert (first.level, first.text) == (2, "Varnish")
