"""BERTScore: each token is matched with the nearest one of the other text, by contextual vectors (Zhang et al., 2020).

R = sum_i w(x_i) max_j cos(x_i, y_j) / sum_i w(x_i) over the target's tokens x and the answer's tokens y, P the same with the two exchanged,
F1 = 2 P R / (P + R). As in the authors' code, the tokens that begin and end a text weigh nothing but can be matched.

Figures depend on the encoder, the layer and the weights: state them beside the figure, and compare nothing else with it. The default
encoder is small; without rescaling, figures lie close together near the top of the scale.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from pydantic import Field

from luthier.core.catalog import EntryConfig
from luthier.core.errors import DataError, InputError, UnsupportedError
from luthier.scorers._score import Answer, Floats, Resources, Score, Target

if TYPE_CHECKING:
    from luthier.models.load import LoadedModel

_PAIRS = 256
_BATCH_TOKENS = 4096


class Config(EntryConfig):
    """``model`` is a stored encoder; ``layer`` is whose output is compared (-1 the last, 0 the embeddings). ``figure`` is the value.

    ``idf`` is a text file, one document a line: tokens that occur in many of its documents weigh less. ``baseline`` is a CSV file with
    the columns LAYER, P, R, F, as the authors publish them: figures become (x - b) / (1 - b). ``dtype`` fp32 gives the same figures
    everywhere; auto is faster where the hardware has bf16.
    """

    model: str = Field(default="minilm-l6", min_length=1)
    layer: int = -1
    figure: Literal["f1", "precision", "recall"] = "f1"
    idf: str = ""
    baseline: str = ""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "fp32"


@dataclass(frozen=True)
class TokenVectors:
    """A text's tokens: ``vectors`` (tokens, width) of unit length, and ``weights`` (tokens,)."""

    vectors: npt.NDArray[np.float32]
    weights: Floats


def score(answer: Answer, target: Target, config: Config) -> Score:
    """The figure against the accepted answer that gives the best one; the detail holds precision, recall and f1."""
    return score_many([answer], [target], config, Resources())[0]


def score_many(
    answers: Sequence[Answer], targets: Sequence[Target], config: Config, resources: Resources
) -> list[Score]:
    """``score`` of each; every text is read once.

    Raises NotFoundError for an unknown model, UnsupportedError for one that is no encoder, InputError for a layer that it does not
    have, DataError for files of ``idf`` and ``baseline`` that cannot be used.
    """
    encoder = _encoder(config, resources)
    out: list[Score] = []
    for start in range(0, len(answers), _PAIRS):
        rows = list(zip(answers[start : start + _PAIRS], targets[start : start + _PAIRS], strict=True))
        texts = dict.fromkeys(text for answer, target in rows for text in (answer.text, *target.accepted))
        tokens = encoder.read(list(texts))
        for answer, target in rows:
            found = [encoder.rescaled(match(tokens[answer.text], tokens[text])) for text in target.accepted]
            best = max(found, key=lambda figures: figures["f1"])
            out.append(Score(best[config.figure], best))
    return out


def match(answer: TokenVectors, target: TokenVectors) -> dict[str, float]:
    """precision, recall and f1 of two texts; all 0 where one has no tokens that weigh anything."""
    if not answer.weights.sum() or not target.weights.sum():
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    similar = (answer.vectors @ target.vectors.T).astype(np.float64)
    precision = float(answer.weights @ similar.max(axis=1) / answer.weights.sum())
    recall = float(target.weights @ similar.max(axis=0) / target.weights.sum())
    total = precision + recall
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / total if total else 0.0}


class Encoder:
    """A loaded encoder with the weights of its tokens."""

    def __init__(self, loaded: LoadedModel, config: Config) -> None:
        layers = int(loaded.module.body.config.num_hidden_layers)
        if not -layers - 1 <= config.layer <= layers:
            raise InputError(f"bert_score: layer must be from {-layers - 1} to {layers}; got {config.layer}")
        self._loaded = loaded
        self._layer = config.layer if config.layer >= 0 else layers + 1 + config.layer
        self._special = {loaded.tokenizer.cls_token_id, loaded.tokenizer.sep_token_id}
        self._weights, self._unseen = ({}, 1.0) if not config.idf else self._count(Path(config.idf))
        self._baseline = _read_baseline(Path(config.baseline), self._layer) if config.baseline else {}

    def read(self, texts: Sequence[str]) -> dict[str, TokenVectors]:
        """The tokens of each text, batched by length."""
        from luthier.data.batch import order_by_length

        ids = self._ids(texts)
        out: dict[str, TokenVectors] = {}
        for batch in order_by_length([len(row) for row in ids], _BATCH_TOKENS):
            for place, vectors in zip(batch, self._forward([ids[i] for i in batch]), strict=True):
                out[texts[place]] = TokenVectors(vectors, np.array([self._weight(token) for token in ids[place]]))
        return out

    def rescaled(self, figures: Mapping[str, float]) -> dict[str, float]:
        """``figures`` over the baseline, where there is one."""
        return {key: (x - b) / (1 - b) for key, x in figures.items() for b in (self._baseline.get(key, 0.0),)}

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        from luthier.models.encoder import encode_texts

        return encode_texts(self._loaded.tokenizer, texts, self._loaded.context_length)

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[npt.NDArray[np.float32]]:
        import torch

        from luthier.data.batch import pad

        batch = pad(rows, self._loaded.tokenizer.pad_token_id or 0)
        device = self._loaded.device
        with torch.inference_mode():
            read = self._loaded.module.body(
                input_ids=batch.ids.to(device),
                attention_mask=batch.attention_mask.to(device),
                output_hidden_states=True,
            )
            hidden = torch.nn.functional.normalize(read.hidden_states[self._layer].float(), dim=-1).cpu().numpy()
        return [hidden[i, : len(row)] for i, row in enumerate(rows)]

    def _weight(self, token: int) -> float:
        return 0.0 if token in self._special else self._weights.get(token, self._unseen)

    def _count(self, path: Path) -> tuple[dict[int, float], float]:
        """log((M + 1) / (m + 1)) for a token that occurs in m of M documents, and what one that occurs in none weighs."""
        try:
            documents = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"bert_score: idf: {path} cannot be read: {error}") from error
        if not documents:
            raise DataError(f"bert_score: idf: {path} holds no documents")
        found = Counter(token for row in self._ids(documents) for token in set(row))
        most = math.log(len(documents) + 1)
        return {token: most - math.log(count + 1) for token, count in found.items()}, most


def _read_baseline(path: Path, layer: int) -> dict[str, float]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = {int(row["LAYER"]): row for row in csv.DictReader(file)}
        row = rows[layer]
        return {name: float(row[key]) for name, key in (("precision", "P"), ("recall", "R"), ("f1", "F"))}
    except KeyError as error:
        raise DataError(
            f"bert_score: baseline: {path} has no {error} (needed: columns LAYER, P, R, F, layer {layer})"
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"bert_score: baseline: {path} cannot be read: {error}") from error


_ENCODERS: WeakKeyDictionary[Resources, dict[Config, Encoder]] = WeakKeyDictionary()


def _encoder(config: Config, resources: Resources) -> Encoder:
    """The encoder of this run, loaded once."""
    from luthier.models.load import load_model
    from luthier.store.database import open_store
    from luthier.store.models import find

    known = _ENCODERS.setdefault(resources, {})
    if config not in known:
        store: Any = resources.store or open_store()
        record = find(store, config.model)
        if record.architecture != "encoder":
            raise UnsupportedError(f"bert_score: model must be an encoder; {config.model} is a {record.architecture}")
        known[config] = Encoder(load_model(store, record, dtype=config.dtype), config)
    return known[config]
