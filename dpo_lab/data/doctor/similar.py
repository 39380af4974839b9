"""Near-duplicates among many token sequences: one-permutation MinHash, bands, and a check of what they propose.

D documents, H hashes of a signature.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dpo_lab.data.doctor.hashing import Hashes, mix
from dpo_lab.data.doctor.sample import Ints, Ragged

SHINGLE = 5  # tokens that stand together
HASHES, BANDS = 64, 16  # bands of 4: a pair at Jaccard 0.8 is proposed with 99.98 %, one at 0.3 with 12 %
SIMILAR = 0.8  # Jaccard similarity from which two documents are near-duplicates
LEAST = 8  # tokens: in shorter documents one changed token is a different text
AT_ONCE = 1_000_000  # tokens whose shingles are held at a time
VERIFIED = 50_000  # proposals looked at, at most

_EMPTY = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Shingles:
    """Hashes of every run of SHINGLE tokens, document by document."""

    hashes: Hashes
    offsets: Ints  # (D + 1,)

    @classmethod
    def of(cls, documents: Ragged) -> "Shingles":
        """A document with fewer than LEAST tokens has none."""
        lengths = documents.lengths
        counts = np.where(lengths >= LEAST, lengths - SHINGLE + 1, 0)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        starts = np.repeat(documents.offsets[:-1] - offsets[:-1], counts) + np.arange(offsets[-1])
        values = mix(documents.values.astype(np.uint64))
        hashes = np.zeros(len(starts), np.uint64)
        for step in range(SHINGLE):
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + values[starts + step]
        return cls(mix(hashes), offsets)

    def of_document(self, i: int) -> Hashes:
        """The set of one document, sorted."""
        return np.unique(self.hashes[self.offsets[i] : self.offsets[i + 1]])


def near_duplicates(documents: Ragged, *, split_at: int | None = None) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of documents whose Jaccard similarity is at least SIMILAR.

    In a group of many alike not every pair is listed, but each member is in one. With `split_at` only pairs of a
    document before that index and one from it on are.
    """
    known: dict[int, Hashes] = {}

    def shingles_of(i: int) -> Hashes:
        if i not in known:
            known[i] = Shingles.of(Ragged.of([documents[i]])).of_document(0)
        return known[i]

    seen: set[tuple[int, int]] = set()
    found = []
    for i, j in _proposed(_all_signatures(documents), split_at):
        if (i, j) in seen:
            continue
        if len(seen) >= VERIFIED:
            break
        seen.add((i, j))
        if jaccard(shingles_of(i), shingles_of(j)) >= SIMILAR:
            found.append((i, j))
    return sorted(found)


def signatures(shingles: Shingles) -> Hashes:
    """MinHash signatures (D, H) by one permutation; a bin without a shingle borrows from the next that has one.

    Li, Owen and Zhang 2012 (arXiv:1208.1259), with the rotation of Shrivastava and Li 2014 (arXiv:1406.4784).
    A document without shingles has only _EMPTY.
    """
    documents = len(shingles.offsets) - 1
    owners = np.repeat(np.arange(documents), np.diff(shingles.offsets))
    bins = (shingles.hashes % np.uint64(HASHES)).astype(np.int64)
    least = np.full(documents * HASHES, _EMPTY)
    np.minimum.at(least, owners * HASHES + bins, shingles.hashes)
    signature = least.reshape(documents, HASHES)
    borrowed = signature.copy()
    for distance in range(1, HASHES):
        empty = borrowed == _EMPTY
        if not empty.any():
            break
        lender = np.roll(signature, -distance, axis=1)
        takes = empty & (lender != _EMPTY)
        borrowed[takes] = lender[takes] + np.uint64(distance)
    return borrowed


def jaccard(a: Hashes, b: Hashes) -> float:
    """Common elements of two sorted sets by all of them."""
    if not len(a) or not len(b):
        return 0.0
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def _all_signatures(documents: Ragged) -> Hashes:
    """Of every document, a part of them at a time: the hashes of all shingles need not exist at once."""
    found, start = [np.zeros((0, HASHES), np.uint64)], 0
    while start < len(documents):
        stop = int(np.searchsorted(documents.offsets, documents.offsets[start] + AT_ONCE, "right"))
        stop = min(len(documents), max(start + 1, stop - 1))
        first, last = documents.offsets[start], documents.offsets[stop]
        part = Ragged(documents.values[first:last], documents.offsets[start : stop + 1] - first)
        found.append(signatures(Shingles.of(part)))
        start = stop
    return np.concatenate(found)


def _proposed(signature: Hashes, split_at: int | None) -> Iterator[tuple[int, int]]:
    """Documents that agree in a band: each with the first of its bucket, and with the one before it."""
    rows = HASHES // BANDS
    full = np.flatnonzero((signature != _EMPTY).any(axis=1))
    if not len(full):
        return
    for band in range(BANDS):
        keys = np.zeros(len(full), np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            keys = mix(keys * np.uint64(31) + signature[full, column])
        order = np.argsort(keys, kind="stable")
        sorted_keys, members = keys[order], full[order]
        starts = np.flatnonzero(np.concatenate([[True], sorted_keys[1:] != sorted_keys[:-1]]))
        for start, end in zip(starts, [*starts[1:], len(members)], strict=True):
            if end - start > 1:
                yield from _in_bucket(members[start:end].tolist(), split_at)


def _in_bucket(bucket: list[int], split_at: int | None) -> Iterator[tuple[int, int]]:
    if split_at is None:
        for before, document in zip(bucket, bucket[1:], strict=False):
            yield bucket[0], document
            yield before, document
        return
    left = [i for i in bucket if i < split_at]
    right = [i for i in bucket if i >= split_at]
    for document in right if left else ():
        for candidate in left[:4]:
            yield candidate, document
