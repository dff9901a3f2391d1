import pytest

from luthier.core import catalog
from luthier.scorers._score import Answer, Target


@pytest.mark.parametrize(("text", "value"), [("yes", 1.0), ("没有", 1.0), ("", 0.0), (" \n\t", 0.0)])
def test_any_answer_counts_and_white_space_is_none(text, value):
    entry = catalog.load("scorers", "answered")
    assert entry(Answer(text), Target(""), entry.configure()).value == value
