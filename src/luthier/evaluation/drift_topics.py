"""What prompts are about: vectors without a model, a plane to show them in, topics with their words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from luthier.evaluation.two_samples import Flags

Embed = Callable[[Sequence[str]], Any]

_TOPICS = 8


def hashed(texts: Sequence[str]) -> Any:
    """Sparse unit vectors of words and character runs, which need nothing to be learned: the same in every report."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.preprocessing import normalize

    from luthier.data.dedupe import normalise

    shown = [normalise(text)[:4000] or "-" for text in texts]
    words = HashingVectorizer(token_pattern=r"\S+", n_features=2**15, alternate_sign=False).transform(shown)
    runs = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 3), n_features=2**15, alternate_sign=False).transform(
        shown
    )
    joined = hstack([words.sqrt(), runs.sqrt()]).tocsr()  # the root dampens what every text has much of
    return normalize(joined)


def flattened(vectors: Any, seed: int) -> Any:
    """(texts, at most 32): the directions in which vectors differ most, the first two of which make a picture."""
    from sklearn.decomposition import PCA, TruncatedSVD

    width = min(32, vectors.shape[0] - 1, vectors.shape[1] - 1)
    reducer = TruncatedSVD(width, random_state=seed) if hasattr(vectors, "todense") else PCA(width, random_state=seed)
    return reducer.fit_transform(vectors)


def topics_of(texts: Sequence[str], flat: Any, second: Flags, seed: int) -> tuple[Any, list[dict[str, Any]]]:
    """(topic of each text, topics with their shares and words): k-means over both windows together."""
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import CountVectorizer

    count = max(2, min(_TOPICS, len(texts) // 50))
    codes = KMeans(count, random_state=seed, n_init=4).fit_predict(flat)
    used, codes = np.unique(codes, return_inverse=True)
    words = CountVectorizer(token_pattern=r"[\u3400-\u9fff]{2,4}|[^\W\d_]{4,}", max_features=5000, lowercase=True)
    try:
        counts, vocabulary = words.fit_transform(texts), words.get_feature_names_out()
    except ValueError:  # no word at all
        counts = vocabulary = None
    topics = []
    for topic in range(len(used)):
        mine = codes == topic
        name = f"topic {topic + 1}"
        if counts is not None:
            inside = np.asarray(counts[mine].sum(0)).ravel() + 0.1
            outside = np.asarray(counts[~mine].sum(0)).ravel() + 1.0
            weight = inside * np.log((inside / inside.sum()) / (outside / outside.sum()))
            name = ", ".join(vocabulary[at] for at in np.argsort(-weight)[:3])
        topics.append({"name": name, "baseline": float(mine[~second].mean()), "now": float(mine[second].mean())})
    return codes.astype(np.int64), topics
