"""Tokens as small integers, and the n-grams that two texts share: what BLEU and ROUGE both count."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count

__all__ = ["WordIds", "matching_ngrams"]


class WordIds(dict[str, tuple[int, ...]]):
    """Word → ids of its tokens, equal for equal tokens.  A word is split once, however often the texts repeat it.

    Parameters
    ----------
    split : the tokens of a word, which must not depend on the words around it.
    """

    def __init__(self, split: Callable[[str], Iterable[str]]):
        super().__init__()
        self._split = split
        self._ids: defaultdict[str, int] = defaultdict(count().__next__)

    def __missing__(self, word: str) -> tuple[int, ...]:
        found = self[word] = tuple(self._ids[token] for token in self._split(word))
        return found

    def of(self, text: str) -> list[int]:
        """Ids of the tokens of all words of a text, shape (tokens,); words are what white space separates."""
        return list(chain.from_iterable(map(self.__getitem__, text.split())))


def matching_ngrams(ids: Sequence[int], others: Sequence[int], order: int) -> int:
    """How many n-grams two texts share, each counted as often as in the text that has it less often."""
    left = Counter(_ngrams(others, order))
    matches = 0
    for ngram in _ngrams(ids, order):
        # Not left[ngram]: Counter answers a missing key by a call in Python.
        remaining = left.get(ngram)
        if remaining:
            left[ngram] = remaining - 1
            matches += 1
    return matches


def _ngrams(ids: Sequence[int], order: int) -> Iterable[object]:
    return ids if order == 1 else zip(*(ids[start:] for start in range(order)), strict=False)
