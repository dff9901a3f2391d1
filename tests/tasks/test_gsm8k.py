from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.tasks import rows

from luthier.core.dataset import Example
from luthier.tasks._load import load_task


def asked(folder: Path, *told: str, split: str = "test") -> tuple[Example, ...]:
    return load_task(NAME, [*rows.options(rows.write(folder, NAME), NAME), *told]).examples(split)


NAME = "gsm8k"


def test_the_prompt_to_the_letter(tmp_path: Path) -> None:
    first = asked(tmp_path, "shots=0")[0]
    assert first.raw == ("Question: Tom has 0 pens and gets 2 more. How many?\nAnswer:",)
    assert first.target == "2"
    shown = asked(tmp_path, "shots=1")[0].raw[0]
    number = 10 + random.Random(1234).sample(range(6), 1)[0]
    assert shown == (
        f"Question: Tom has {number} pens and gets 2 more. How many?\n"
        f"Answer: {number} + 2 = <<{number}+2={number + 2}>>{number + 2}\n#### {number + 2}\n\n"
        "Question: Tom has 0 pens and gets 2 more. How many?\nAnswer:"
    )


def test_three_ways_of_asking(tmp_path: Path) -> None:
    folder = rows.write(tmp_path, NAME)
    direct = load_task(NAME, [f"data={folder}"])
    assert direct.examples("test")[0].raw[0].count("Question:") == 6 and direct.stop == (
        "Question:",
        "</s>",
        "<|im_end|>",
    )
    thinking = load_task(NAME, [f"data={folder}", "style=cot_zero_shot"])
    assert thinking.examples("test")[0].raw == (
        "Q: Tom has 0 pens and gets 2 more. How many?\nA: Let's think step by step.",
    )
    assert thinking.stop[0] == "Q:" and thinking.name == "gsm8k_cot_zero_shot"
    (folder / "worked.jsonl").write_text(
        "".join(f'{{"question": "Q{i}?", "target": "So. The answer is {i}."}}\n' for i in range(9))
    )
    shown = (
        load_task(NAME, [f"data={folder}", "style=cot", f"examples={folder}/worked.jsonl"]).examples("test")[0].raw[0]
    )
    assert shown.startswith("Q: Q0?\nA: So. The answer is 0.\n\nQ: Q1?\nA: ") and shown.count("Q: ") == 9


@pytest.mark.parametrize(
    ("said", "strict", "flexible"),
    [
        ("so 2 + 2\n#### 4", 1.0, 1.0),
        ("#### 4.", 1.0, 1.0),
        ("#### $4", 0.0, 1.0),
        ("it is 4", 0.0, 1.0),
        ("5", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("#### 4 and 9", 1.0, 0.0),
    ],
)
def test_the_result_is_read_as_the_harness_reads_it(
    tmp_path: Path, home: Path, said: str, strict: float, flexible: float
) -> None:
    from luthier.evaluation.loop import scorers_of, target_of
    from luthier.scorers._score import Answer

    task = load_task(NAME, [f"data={rows.write(tmp_path, NAME)}", "shots=0"])
    target = target_of(task.examples("test")[2])
    assert target.text == "4"
    got = {s.label: s.entry(Answer(said), target, s.config).value for s in scorers_of(task)}
    assert got == {"strict_match": strict, "flexible_extract": flexible}
