import difflib
import itertools
from pathlib import Path

from ddpm_jax import config as configs
from ddpm_jax.config.hints import NAMES, OTHER_SECTIONS
from ddpm_jax.config.variants import VARIANTS
from ddpm_jax.spelling import distance, nearest


def test_distance():
    for a, b, expected in (
        ("", "", 0), ("ab", "", 2), ("ddmi", "ddim", 1), ("ddmi", "ddpm", 2), ("kitten", "sitting", 3), ("ca", "abc", 3),
        ("abcd", "badc", 2), ("smok", "smoke", 1), ("a", "a", 0),
    ):  # fmt: skip
        assert distance(a, b) == distance(b, a) == expected, (a, b)


def mistyped(word):
    yield from (word[:i] + word[i + 1 :] for i in range(len(word)))
    yield from (word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1))
    yield from (word[:i] + "q" + word[i:] for i in range(len(word) + 1))


def test_one_slip_is_always_understood():
    """A variant or a sampler is suggested that is one slip away, and none that is farther than another."""
    for words in (list(VARIANTS), list(configs.KEYS["sampler.name"].accepts)):
        for word in (word for word in words if len(word) > 2):
            for slip in mistyped(word):
                (found,) = nearest(slip, words)
                assert distance(slip, found) <= 1
    assert nearest("zzz", VARIANTS) == nearest("", VARIANTS) == nearest("x", VARIANTS) == []


def test_what_other_codes_call_a_key():
    theirs = list(itertools.chain(*(names.split() for names in NAMES.values())))
    assert set(NAMES) <= set(configs.KEYS) and len(theirs) == len(set(theirs))
    assert not set(theirs) & {key.rpartition(".")[2] for key in configs.KEYS}
    sections = {key.partition(".")[0] for key in configs.KEYS}
    assert set(OTHER_SECTIONS.values()) <= sections and not set(OTHER_SECTIONS) & sections
    for ours, names in NAMES.items():
        for name in names.split():
            assert configs.like(name) == configs.like(f"train.{name}") == [ours]


def test_every_suggestion_is_by_this_distance():
    found = [path for path in (Path(__file__).parent.parent / "ddpm_jax").rglob("*.py") if difflib.__name__ in path.read_text()]
    assert found == []
