"""Word counts as a source of vectors: TF-IDF of texts, cut to the directions that tell items apart best. No LLM.

Words and directions are those of items in training rows; they hold for all texts. Where such an item is new or another
text of one changes, all vectors are counted anew, which takes seconds.

Shape suffixes: N texts, V words, D kept directions.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from llm4msr import storage
from llm4msr.arrays import Array, Singles
from llm4msr.errors import ConfigError

MOST_WORDS, MOST_TEXTS = 1 << 17, 1 << 18
"""Words that count, the most frequent ones; texts that they and the directions are found in, evenly spaced."""
_WORD = r"(?u)\b\w+\b"


def revision() -> str:
    """Identity of how words are counted."""
    import sklearn

    return f"tf-idf scikit-learn {sklearn.__version__}"


def identity(texts: Sequence[str], dim: int) -> str:
    """Identity of vectors with directions found in these texts."""
    return storage.digest(revision(), str(dim), *_sample(texts))


class Words(NamedTuple):
    """Which words count, how much each does, and the directions."""

    vectorizer: Any
    """A fitted `TfidfVectorizer`."""
    directions_VD: Singles

    @classmethod
    def fit(cls, texts: Sequence[str], dim: int) -> "Words":
        """Find words and directions, at most `dim`, in the texts of items in training rows.

        Raises:
            ConfigError: there is no word in them.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(token_pattern=_WORD, sublinear_tf=True, max_features=MOST_WORDS, dtype=np.float32)
        try:
            weights_NV = vectorizer.fit_transform(_sample(texts))
        except ValueError:
            raise ConfigError(
                "extract.item_vectors: 'words' finds none in titles and features of the items; leave it out"
            ) from None
        if min(weights_NV.shape) > dim:
            directions_DV = TruncatedSVD(dim, random_state=0).fit(weights_NV).components_
        else:
            directions_DV = np.linalg.svd(weights_NV.toarray(), full_matrices=False)[2]
        return cls(vectorizer, np.ascontiguousarray(directions_DV.T, np.float32))

    def vectors(self, texts: Sequence[str]) -> Array:
        """float32 [N, D]; zeros for a text without a word that counts."""
        return np.asarray(self.vectorizer.transform(texts) @ self.directions_VD)


def _sample(texts: Sequence[str]) -> Sequence[str]:
    if len(texts) <= MOST_TEXTS:
        return texts
    return [texts[int(at)] for at in np.linspace(0, len(texts) - 1, MOST_TEXTS)]
