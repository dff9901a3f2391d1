from __future__ import annotations

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from luthier.scorers._score import Answer, Target
from luthier.scorers.rouge import Config, score

ANSWER = "The runners were running home quickly.\nRain had fallen on the 3 old towns; nobody cared."
REFERENCES = (
    "Runners ran home quick.\nNobody cared that it rained on old towns.",
    "Rain fell on three old towns while runners were running home.",
)


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
@pytest.mark.parametrize("measure", ["fmeasure", "precision", "recall"])
@pytest.mark.parametrize("stemmer", [False, True])
def test_english_is_the_packages(variant: str, measure: str, stemmer: bool) -> None:
    config = Config.model_validate({"variant": variant, "measure": measure, "stemmer": stemmer})
    own = RougeScorer([variant], use_stemmer=stemmer)
    expected = getattr(own.score_multi(REFERENCES, ANSWER)[variant], measure)
    assert score(Answer(ANSWER), Target(REFERENCES[0], REFERENCES), config).value == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_longest_common_order_of_long_texts(seed: int) -> None:
    draw = np.random.default_rng(seed)
    answer, *references = (" ".join(draw.choice(["tea", "rain", "cat", "old", "town", "sat"], n)) for n in (90, 60, 70))
    expected = RougeScorer(["rougeL"]).score_multi(references, answer)["rougeL"]
    found = score(Answer(answer), Target(references[0], tuple(references)), Config())
    assert found.value == pytest.approx(expected.fmeasure)
    assert found.detail == {"precision": pytest.approx(expected.precision), "recall": pytest.approx(expected.recall)}


def test_chinese_counts_by_character() -> None:
    # 我 爱 北 京 天 安 门 against 我 爱 天 安 门: 5 of 7 and 5 of 5 characters; pairs: 我爱 天安 安门, 3 of 6 and 3 of 4
    answer, target = Answer("我爱北京天安门。"), Target("我爱天安门")
    assert score(answer, target, Config(variant="rouge1")).value == pytest.approx(2 * (5 / 7) / (5 / 7 + 1))
    assert score(answer, target, Config(variant="rouge2")).value == pytest.approx(
        2 * (3 / 6) * (3 / 4) / (3 / 6 + 3 / 4)
    )
    assert score(answer, target, Config(variant="rougeL")).value == pytest.approx(2 * (5 / 7) / (5 / 7 + 1))
    assert score(answer, target, Config(variant="rouge1", measure="recall")).value == 1.0


def test_sentences_in_running_text() -> None:
    answer, reference = Answer("The cat slept. The dog barked."), Target("The dog barked. The cat slept.")
    split = Config(variant="rougeLsum", split_sentences=True)
    assert score(answer, reference, split).value == pytest.approx(1.0)
    assert score(answer, reference, Config(variant="rougeLsum")).value == pytest.approx(3 / 6)
    lines = Answer("The cat slept.\nThe dog barked."), Target("The dog barked.\nThe cat slept.")
    assert score(*lines, Config(variant="rougeLsum")).value == pytest.approx(1.0)


def test_nothing_to_compare() -> None:
    assert score(Answer("x"), Target(" "), Config()).value is None
    assert score(Answer(""), Target("x"), Config()).value == 0.0
