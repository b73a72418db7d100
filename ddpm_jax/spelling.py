"""What a mistyped word may mean."""

from collections.abc import Iterable


def distance(a: str, b: str) -> int:
    """How many letters are to be changed, added, left out or swapped with their neighbours to turn a into b.

    Damerau 1964; Levenshtein 1966 without the swaps. A swapped pair is not changed again.
    """
    before, above = [], list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
            if i > 1 and j > 1 and (x, a[i - 2]) == (b[j - 2], y):
                row[j] = min(row[j], before[j - 2] + 1)
        before, above = above, row
    return above[-1]


def nearest(word: str, words: Iterable[str], count: int = 1) -> list[str]:
    """Those of the words that are most like this one, nearest first: at most one letter of four is wrong, whatever its case."""
    far = {other: distance(word.lower(), other.lower()) for other in words}
    near = [other for other in far if far[other] <= max(1, len(word) // 4) and far[other] < len(word)]
    return sorted(near, key=far.get)[:count]
