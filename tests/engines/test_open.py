from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.errors import InputError, LuthierError, NotFoundError, UnsupportedError
from luthier.core.model import ModelRecord
from luthier.engines import _open
from luthier.engines._open import open_engine, open_many
from luthier.store.database import open_store
from luthier.store.models import register


def test_names_choose_their_engine(tiny_decoder: str) -> None:
    store = open_store()
    assert open_engine(store, tiny_decoder).info.engine == "torch"
    assert open_engine(store, "fake").info.engine == "fake"
    assert open_engine(store, "fake:yes,no").info.labels == ("yes", "no")
    register(store, ModelRecord("g", "export", "decoder", "0" * 64, base=tiny_decoder))
    assert _open._engine_for("g", _open._resolve(store, "g")[0]) == "llamacpp"
    assert _open._engine_for("openai:m@http://127.0.0.1:1/v1", None) == "openai"


def test_the_name_shown_may_be_another(tiny_decoder: str) -> None:
    assert open_engine(open_store(), tiny_decoder, shown_as="winner").info.model == "winner"


def test_names_that_are_not_known(tiny_decoder: str) -> None:
    store = open_store()
    with pytest.raises(NotFoundError, match="Did you mean 'tiny-decoder'"):
        open_engine(store, "tiny-decodr")
    with pytest.raises(NotFoundError, match="luthier pull"):
        open_engine(store, "minilm-l6")
    with pytest.raises(NotFoundError, match="engine 'vllmm' is not known"):
        open_engine(store, tiny_decoder, "vllmm")
    with pytest.raises(UnsupportedError, match="opens with engine fake; got engine=torch"):
        open_engine(store, "fake", "torch")
    with pytest.raises(InputError, match="dtype"):
        open_engine(store, tiny_decoder, "torch", {"dtype": "int3"})


def test_an_endpoint_is_not_an_engine(home: Path) -> None:
    store = open_store()
    register(store, ModelRecord("winner", "endpoint", "decoder", "", meta={"target": "x"}))
    with pytest.raises(UnsupportedError, match="endpoint"):
        open_engine(store, "winner")


def test_when_one_fails_the_others_are_closed(tiny_decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, opened = open_store(), []
    real = _open.open_engine

    def spy(*args: object, **kwargs: object) -> object:
        engine = real(*args, **kwargs)  # type: ignore[arg-type]
        opened.append(engine)
        return engine

    monkeypatch.setattr(_open, "open_engine", spy)
    with pytest.raises(NotFoundError):
        open_many(store, [tiny_decoder, "fake", "no-such-model"])
    assert len(opened) == 2
    with pytest.raises(LuthierError, match="closed"):
        opened[0].embed(["a"])


def test_a_name_given_twice_is_opened_once(tiny_decoder: str) -> None:
    assert list(open_many(open_store(), ["fake", tiny_decoder, "fake"])) == ["fake", tiny_decoder]
