import pytest

from luthier.core.engine import EngineInfo, Sampling, require
from luthier.core.errors import InputError, UnsupportedError


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("max_new_tokens", [0, -1], [1, 9999]),
        ("temperature", [-0.1, 2.1, float("nan")], [0.0, 2.0]),
        ("top_p", [0.0, 1.01, -1.0], [0.001, 1.0]),
        ("top_k", [-1], [0, 40]),
        ("repetition_penalty", [0.0, -1.0], [0.5, 1.1]),
    ],
)
def test_sampling_names_the_parameter_and_what_is_allowed(name, bad, good):
    for value in bad:
        with pytest.raises(InputError, match=f"{name} must be .*got"):
            Sampling(**{name: value})
    for value in good:
        assert getattr(Sampling(**{name: value}), name) == value


def test_require_lists_what_an_engine_can():
    class Only:
        info = EngineInfo("m", "fake", frozenset({"score", "generate"}))

    require(Only(), "score")
    with pytest.raises(UnsupportedError, match="m on engine fake cannot embed; it can: generate, score"):
        require(Only(), "embed")


def test_info_is_copied_with_changes():
    info = EngineInfo("m", "fake", frozenset())
    assert info.with_(model="n").model == "n" and info.model == "m"
