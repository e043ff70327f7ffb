"""Find near-duplicate texts: an index of held-out texts that returns the most similar one.

Similarity is the Jaccard index of two texts' sets of shingles: |A ∩ B| / |A ∪ B|. A shingle is three words
in a row (a shorter text is one shingle), ignoring case, character width, spacing, punctuation and links.
Numbers are kept: in finance, two sentences that differ only in their figures are two facts, and one changed
number changes three shingles. MinHash with locality-sensitive hashing (Broder, 1997; Indyk and Motwani, 1998;
the `datasketch` package) proposes candidates, and each is verified on the full sets. So there are no false
positives; a pair at the threshold is missed with a probability below `MISSED`.

Boilerplate that many texts share (an instruction, a greeting, a disclaimer) says nothing about a single text.
`frame` finds its shingles; an index with a frame also compares texts without them.

Knows texts and ids, but no records, tasks or files.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from fintune.errors import ConfigError

THRESHOLD = 0.8
"""The similarity from which two texts are near duplicates."""
WORDS_IN_SHINGLE = 3
PERMUTATIONS = 64
"""Hash values in a text's MinHash signature."""
MISSED = 1e-3
"""The highest probability of missing a pair of texts exactly at the threshold."""
FRAME_TEXTS = 5
FRAME_SHARE = 0.01
"""A shingle is in the frame if this many different texts, and this share of them, have it."""
FRAME_CHARACTERS = 20_000_000
"""At most this many texts are searched for a frame."""

_WORD = re.compile(r"\d+(?:[.,]\d+)*|[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_\u3040-\u30ff\u3400-\u9fff]+")
"""A number, a run of letters, or one character of a script without spaces between words."""
_LINK = re.compile(r"https?://\S*|\[link\]")
_WEIGHTS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
"""Odd factors, one per position in a shingle, so that word order counts."""


class Match(NamedTuple):
    """An indexed text that is similar to the query."""

    id: Any
    similarity: float
    """The Jaccard index of the shingles, from the threshold to 1."""


class Pair(NamedTuple):
    """A text and the earlier text that it nearly duplicates."""

    id: Any
    earlier: Any
    similarity: float


def without_links(text: str) -> str:
    """A text without web addresses and `[link]` placeholders: short links differ in every copy."""
    return _LINK.sub(" ", text) if "http" in text or "[link]" in text else text


def words(text: str) -> list[str]:
    """The words and numbers of a text without links: equal for «EUR13.1mn» and «eur 13.1 mn»."""
    text = without_links(text)
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _WORD.findall(plain.casefold())


def shingles(text: str) -> Any:
    """The set of a text's shingles, each hashed to 64 bits: (n,) uint64, sorted, unique.

    A text without words (such as only emoji) is one shingle, and an empty text has none. A shingle's hash is
    a weighted sum of its words' hashes, modulo 2^64.
    """
    import numpy as np
    from xxhash import xxh3_64_intdigest

    found = words(text)
    if len(found) < WORDS_IN_SHINGLE:
        found = [" ".join(found) or "".join(text.split())]
    known = {word: xxh3_64_intdigest(word.encode("utf-8", "surrogatepass")) for word in set(found)}
    if len(found) == 1:
        return np.array(list(known.values()) if found[0] else [], dtype=np.uint64)
    hashes = np.array([known[word] for word in found], dtype=np.uint64)
    last = len(hashes) - WORDS_IN_SHINGLE + 1
    return np.unique(sum(hashes[i : i + last] * np.uint64(weight) for i, weight in enumerate(_WEIGHTS)))


def similarity(a: Any, b: Any) -> float:
    """The Jaccard index of two results of `shingles`; 0 if one is empty."""
    if len(a) == 0 or len(b) == 0:
        return 0.0
    places = b.searchsorted(a)
    places[places == len(b)] = 0
    common = int((b[places] == a).sum())
    return common / (len(a) + len(b) - common)


def bands(threshold: float) -> tuple[int, int]:
    """(bands, rows per band): the most rows that miss a pair at the threshold with p < `MISSED`.

    A pair of similarity s shares at least one of b bands of r rows with p = 1 - (1 - s^r)^b. More rows let
    fewer dissimilar pairs through, and verifying those costs the time.
    """
    for rows in range(PERMUTATIONS, 1, -1):
        count = PERMUTATIONS // rows
        if count > 1 and (1 - threshold**rows) ** count < MISSED:
            return count, rows
    return PERMUTATIONS, 1


@functools.cache
def _plain(permutations: int) -> Any:
    from datasketch import MinHash

    return MinHash(permutations, seed=1, hashfunc=int)


_shingles = functools.lru_cache(maxsize=4096)(shingles)
"""Cached because a report queries several indexes."""


@functools.lru_cache(maxsize=4096)
def _signature(hashes: bytes, permutations: int) -> Any:
    """The MinHash signature of a set of shingles, cached for the same reason."""
    import numpy as np

    signature = _plain(permutations).copy()
    signature.update_batch((np.frombuffer(hashes, np.uint64) & 0xFFFFFFFF).tolist())  # MinHash takes 32 bits
    return signature


def frame(texts: Iterable[str]) -> Any:
    """The shingles that many of these texts share, sorted; duplicate texts count once."""
    import numpy as np

    different: dict[bytes, Any] = {}
    characters = 0
    for text in texts:
        hashes = shingles(text)
        different[hashes.tobytes()] = hashes
        characters += len(text)
        if characters > FRAME_CHARACTERS:
            break
    found, counts = np.unique(
        np.concatenate([*different.values(), np.zeros(0, np.uint64)]), return_counts=True
    )
    return found[counts >= max(FRAME_TEXTS, FRAME_SHARE * len(different))]


class _Sketch(NamedTuple):
    """A text's shingles, as used for comparison."""

    whole: Any
    """All its shingles."""
    own: Any
    """Those outside the frame, if they are some but at most half of the text; else all."""
    signature: Any
    """Of `own`."""


class Index:
    """An index of held-out texts that finds which one a text duplicates. Only indexed texts take memory."""

    def __init__(self, threshold: float = THRESHOLD, frame: Any = ()) -> None:
        """
        Args:
            frame: boilerplate shingles, from `frame`. Texts are near duplicates only if they are so both
                with and without them.

        Raises:
            ConfigError: the threshold is outside 0.3 to 1.
        """
        from datasketch import MinHashLSH

        if not 0.3 <= threshold <= 1:
            raise ConfigError(f"The near-duplicate threshold must be from 0.3 to 1, got {threshold}.")
        self.threshold = threshold
        self._frame = frame
        self._bands, self._rows = bands(threshold)
        self._lsh = MinHashLSH(num_perm=self._bands * self._rows, params=(self._bands, self._rows))
        self._ids: list[list[Any]] = []
        """By position: the ids of the texts with the same shingles."""
        self._sketches: list[_Sketch] = []
        self._places: dict[bytes, int] = {}
        """The position of each whole set of shingles, so that repeated texts cost little."""

    def __len__(self) -> int:
        """The number of different texts in the index."""
        return len(self._ids)

    def add(self, id: Any, text: str) -> None:
        """Index a text; empty texts are skipped."""
        sketch = self._sketch(text)
        if len(sketch.whole) == 0:
            return
        place = self._places.setdefault(sketch.whole.tobytes(), len(self._ids))
        if place < len(self._ids):
            self._ids[place].append(id)
            return
        self._lsh.insert(place, sketch.signature, check_duplication=False)
        self._ids.append([id])
        self._sketches.append(sketch)

    def query(self, text: str) -> Match | None:
        """The most similar indexed text (the first added among equals), or None below the threshold."""
        return next(self.matches(text), None)

    def matches(self, text: str) -> Iterator[Match]:
        """Every indexed text above the threshold, most similar first; ties in order of addition."""
        sketch = self._sketch(text)
        if len(sketch.whole) == 0:
            return
        found = []
        for place in self._lsh.query(sketch.signature):
            other = self._sketches[place]
            likeness = similarity(sketch.own, other.own)
            if likeness >= self.threshold and len(self._frame):
                likeness = min(likeness, similarity(sketch.whole, other.whole))
            if likeness >= self.threshold:
                found.append((-likeness, place))
        for negative, place in sorted(found):
            for id in self._ids[place]:
                yield Match(id, -negative)

    def _sketch(self, text: str) -> _Sketch:
        import numpy as np

        whole = own = _shingles(text)
        if len(self._frame):
            own = np.setdiff1d(whole, self._frame, assume_unique=True)
            if not 0 < len(own) <= len(whole) / 2:  # a smaller frame cannot make two texts alike
                own = whole
        return _Sketch(whole, own, _signature(own.tobytes(), self._bands * self._rows))


def pairs(
    ids_and_texts: Iterable[tuple[Any, str]],
    also: Callable[[Any, Any], bool] = lambda id, earlier: True,
    frame: Any = (),
) -> Iterator[Pair]:
    """Each text that nearly duplicates an earlier text which is itself no duplicate: those to remove.

    Exact duplicates are included, with similarity 1. Memory grows with the texts that are no duplicates.

    Args:
        also: a further condition on the two ids.
        frame: as in `Index`.
    """
    index = Index(frame=frame)
    for id, text in ids_and_texts:
        if match := next((match for match in index.matches(text) if also(id, match.id)), None):
            yield Pair(id, match.id, match.similarity)
        else:
            index.add(id, text)
