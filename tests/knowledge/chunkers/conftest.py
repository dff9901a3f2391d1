"""A tokenizer of each kind, and tools for chunkers with it."""

from __future__ import annotations

import pytest
from tests.knowledge.chunkers.documents import TOKENIZERS, tools_of
from tokenizers import Tokenizer

from luthier.knowledge.chunkers._spans import ChunkTools


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


@pytest.fixture
def tools(tokenizer: Tokenizer) -> ChunkTools:
    return tools_of(tokenizer)
