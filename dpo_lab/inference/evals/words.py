"""Texts as words: Chinese and Japanese characters stand alone, all other words are between spaces and signs."""

import logging
import re
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache

HAN = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # ideographs and kana
WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")
UNIT = re.compile(rf"[{HAN}]|[^\W_{HAN}]+|[^\s]")  # signs too, one at a time
CHINESE = 0.5  # of a text's words, from which on it is read as Chinese


def words(text: str) -> list[str]:
    """Lower-case words without signs; of a text in plain English the tokens of rouge-score."""
    return WORD.findall(text.lower())


def units(text: str) -> list[str]:
    """Lower-case words and signs, so that a text of signs alone is something as well."""
    return UNIT.findall(text.lower())


def han_share(text: str) -> float:
    """The share of Chinese and Japanese characters among the words of a text; each of them is a word."""
    found = words(text)
    return sum(len(word) == 1 and word >= "\u3040" for word in found) / len(found) if found else 0.0


def is_chinese(text: str) -> bool:
    """Whether a text is cut into words as Chinese is; Japanese, which has no spaces either, goes with it."""
    return han_share(text) >= CHINESE


def chinese_words(text: str) -> list[str]:
    """Words as jieba cuts them, lower-case, without signs."""
    return [word for word in _jieba()(text.lower()) if any(c.isalnum() for c in word)]


@cache
def _jieba() -> Callable[[str], Iterator[str]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its age: invalid escapes, pkg_resources
        import jieba
    jieba.setLogLevel(logging.WARNING)
    return jieba.cut


def ngrams(parts: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """Every n neighbours, in order."""
    return [tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)]
