"""Rows of the formats in use -> Pair; one small function a format."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, islice
from typing import Any

from dpo_lab.config.schema import STRATEGIES
from dpo_lab.data.columns import MAP_HINT, absent_columns, renamed, told, watched
from dpo_lab.data.detect import SHAPES, Detected, Prompt, detect, refuse_unread, scores_of
from dpo_lab.data.labels import Labelled, kto, matched
from dpo_lab.data.messages import (
    Fault,
    NoPair,
    Tags,
    chat,
    decoded,
    get,
    given,
    is_conversation,
    is_transcript,
    kind,
    messages,
    reply,
    text,
    tools,
    transcript,
    user,
)
from dpo_lab.data.prompts import Rules, asked, common_prompt, earlier, finished, in_full, open_end, pair, shared
from dpo_lab.data.ranking import margin_of, ranked, reaches, scored
from dpo_lab.data.types import Message, OnBad, Pair, Reading, Row
from dpo_lab.runtime.errors import DataError

DROP_HINT = "Correct the row, name another data.format, or leave such rows out and count them: data.on_error=drop."
FIRST = 20  # rows that are looked at to tell the format
NO_PARTNER = "no answer with the other label to this prompt"


class BadRow(DataError):
    """A row that is left out: its number, and a short reason to count by."""

    def __init__(self, message: str, row: int, reason: str) -> None:
        super().__init__(message)
        self.row, self.reason = row, reason


class Unpaired(BadRow):
    """A sound row that makes no pair: no answer of the other kind, a tie, too small a margin."""


def trl(row: Row, number: int, rules: Rules) -> list[Pair]:
    """TRL: `prompt`, `chosen`, `rejected`, each a text or a list of {role, content}; `system`, `tools` if there.

    `system` may be system_prompt or system_message here and in every format, and messages may be JSON as text.
    Without `prompt`, or with one that is text, chosen and rejected may be whole conversations that differ in their last
    message. Without `prompt` they may be texts that begin with it.
    """
    prompt = chat(row.get("prompt"), rules.tags)
    chosen, rejected = (reply(row.get(column), rules.tags) for column in ("chosen", "rejected"))
    if "prompt" not in row and isinstance(chosen, str) and isinstance(rejected, str):
        begin = common_prompt(text(chosen, "chosen"), text(rejected, "rejected"))
        rest = {"chosen": chosen[len(begin) :], "rejected": rejected[len(begin) :]}
        return [pair([user(begin)], {**row, **rest}, number, rules)]
    if isinstance(prompt, list | dict):
        return [pair(messages(prompt, "prompt", rules.tags), row, number, rules)]
    if is_conversation(chosen) and is_conversation(rejected):
        return [shared(row, number, rules)]
    if "prompt" not in row:
        raise Fault("prompt is missing, and chosen and rejected are not conversations that begin with it")
    return [pair([user(text(prompt, "prompt"))], row, number, rules)]


def alpaca(row: Row, number: int, rules: Rules) -> list[Pair]:
    """LLaMA-Factory's alpaca ranking: `instruction`, `input`, `chosen`, `rejected`; `system`, `history` if there.

    Its older form has `output`, a list of the chosen and the rejected answer.
    """
    turns = _history(row.get("history"), rules.tags)
    column = "instruction" if "instruction" in row or "prompt" not in row else "prompt"
    value = chat(get(row, column), rules.tags)
    if "chosen" not in row and isinstance(both := decoded(row.get("output")), list) and len(both) == 2:
        row = {**row, "chosen": both[0], "rejected": both[1]}
    if isinstance(value, dict | list):
        return [pair([*turns, *messages(value, column, rules.tags)], row, number, rules)]
    parts = [text(value, column), text(row.get("input"), "input")]
    return [pair([*turns, user("\n".join(part for part in parts if part))], row, number, rules)]


def sharegpt(row: Row, number: int, rules: Rules) -> list[Pair]:
    """LLaMA-Factory's sharegpt ranking: `conversations` of {from, value}, `chosen`, `rejected`."""
    value = decoded(get(row, "conversations", "prompt"))
    return [pair(messages(value, "conversations", rules.tags), row, number, rules)]


def openai(row: Row, number: int, rules: Rules) -> list[Pair]:
    """OpenAI's messages: `messages` of {role, content}, `chosen`, `rejected` a message, a list or a text; `tools`."""
    value = decoded(get(row, "messages", "prompt"))
    turns = [user(text(value, "messages"))] if isinstance(value, str) else messages(value, "messages", rules.tags)
    return [pair(turns, row, number, rules)]


def v1(row: Row, number: int, rules: Rules) -> list[Pair]:
    """LLaMA-Factory v1: `chosen_messages`, `rejected_messages`, conversations of {role, content: parts}."""
    return [shared(row, number, rules, ("chosen_messages", "rejected_messages"))]


def orca(row: Row, number: int, rules: Rules) -> list[Pair]:
    """Orca DPO pairs: `system`, `question`, `chosen`, `rejected`; `history`, `input` if there."""
    return [pair(_asked(row, rules, "question", "prompt"), row, number, rules)]


def argilla(row: Row, number: int, rules: Rules) -> list[Pair]:
    """Argilla: `instruction` (or prompt, question), `input`, `chosen_response`, `rejected_response`; `system`."""
    both = {"chosen": get(row, "chosen_response", "chosen"), "rejected": get(row, "rejected_response", "rejected")}
    prompt = _asked(row, rules, "prompt", "instruction", "question", "input")
    return [pair(prompt, {**row, **both}, number, rules)]


def icr(row: Row, number: int, rules: Rules) -> list[Pair]:
    """Distilabel's Orca pairs: `system`, `input`, `chosen`, `rejected`; `history` if there."""
    return [pair(_asked(row, rules, "prompt", "input"), row, number, rules)]


def hh(row: Row, number: int, rules: Rules) -> list[Pair]:
    r"""Anthropic HH: `chosen`, `rejected`, texts of `\n\nHuman: ...\n\nAssistant: ...` that differ in the last turn.

    Or `prompt`, such a text that is to go on, and chosen and rejected alone, texts or messages.
    """
    answers = {column: get(row, column) for column in ("chosen", "rejected")}
    if "prompt" in row and not all(is_transcript(said) for said in answers.values()):
        prompt = open_end(transcript(text(row["prompt"], "prompt"), "prompt"))
        alone = {column: said.strip() if isinstance(said, str) else said for column, said in answers.items()}
        return [pair(prompt, {**row, **alone}, number, rules)]
    good, bad = (transcript(text(said, column), column) for column, said in answers.items())
    for column, turns in (("chosen", good), ("rejected", bad)):
        if turns[-1]["role"] != "assistant":
            raise Fault(f"{column} must end with a turn of the Assistant")
    if len(good) < 2 or good[:-1] != bad[:-1]:
        raise Fault("chosen and rejected differ before the last turn of the Assistant")
    prompt = finished(good[:-1], row)
    return [Pair(tuple(prompt), good[-1]["content"], bad[-1]["content"], number, tools=tools(row.get("tools")))]


def ultrafeedback(row: Row, number: int, rules: Rules) -> list[Pair]:
    """UltraFeedback binarised: `prompt`, `chosen`, `rejected` as in TRL, `score_chosen`, `score_rejected`.

    Other names of the scores are chosen_score, chosen_rating, chosen-rating, rating_chosen; they count where
    data.min_margin asks for a margin.
    """
    if rules.min_margin > 0:
        scores = scores_of(row)
        if scores is None:
            raise Fault("score_chosen or score_rejected is missing")
        margin = margin_of(row, scores)
        if margin is None:
            raise NoPair("an answer has no score")
        if not reaches(margin, rules.min_margin):
            raise NoPair("scores differ by less than data.min_margin")
    return trl(row, number, rules)


FORMATS: dict[str, Callable[[Row, int, Rules], list[Pair] | Labelled]] = {
    "trl": trl,
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "openai": openai,
    "v1": v1,
    "orca": orca,
    "argilla": argilla,
    "icr": icr,
    "hh": hh,
    "ultrafeedback": ultrafeedback,
    "ranked": ranked,
    "scored": scored,
    "kto": kto,
}


def to_pairs(
    rows: Iterable[tuple[int, Row]], reading: Reading, *, where: str, on_bad: OnBad | None = None
) -> tuple[Iterator[Pair], str]:
    """Every row as a Pair, lazily, and the name of the format they are read in.

    Args:
        rows: the source's rows with their numbers; the first ones are read at once.
        reading: the format or auto, which tells it by the first rows; our names of columns; tags; which pairs several
            answers make.
        where: the source, for messages.
        on_bad: takes a BadRow for each row that is left out, an Unpaired for a sound one that makes no pair. Without
            it a faulty row raises, and a sound one is passed over.

    Raises:
        DataError: no row is in a known format, a mapped column is in no row, an option has no effect; in a format that
            was told by the rows, a column that seems to belong to the prompt is not read; and, without `on_bad`, a row
            lacks a column or holds something else than the format says.
    """
    rows = iter(rows)
    begin = list(islice(rows, FIRST))
    sound = [row for _, row in begin if isinstance(row, dict)]
    absent = absent_columns(sound, reading.columns, len(begin) < FIRST, where)
    name = STRATEGIES.get(reading.format, reading.format)
    if name == "auto":
        name = _detected(begin, sound, reading.columns, where)
    if not reading.mixed:
        _has_effect(reading, name, where)
    rules = Rules(Tags.of(reading.tags), reading.ranking, reading.min_margin)
    if reading.format == "auto":
        prompt_of = partial(_prompt, read=FORMATS[name], rules=rules)
        refuse_unread(begin, Detected(name, reading.columns, where, prompt_of))
    everything = watched(chain(begin, rows), absent, where) if absent else chain(begin, rows)
    if name == "kto":
        lone = partial(_alone, where=where, on_bad=on_bad)
        return matched(_each(everything, kto, rules, reading.columns, name, where, on_bad), lone), name
    lists = _each(everything, FORMATS[name], rules, reading.columns, name, where, on_bad)
    return chain.from_iterable(lists), name


def _each(
    rows: Iterable[tuple[int, Row]],
    read: Callable[[Row, int, Rules], Any],
    rules: Rules,
    columns: Mapping[str, str],
    name: str,
    where: str,
    on_bad: OnBad | None,
) -> Iterator[Any]:
    for number, row in rows:
        try:
            yield _read(row, number, read, rules, columns)
        except NoPair as e:
            if on_bad is not None:
                on_bad(Unpaired(f"{where}: row {number}: {e} (format {name}).", number, str(e)))
        except Fault as e:
            there = f" {told(row)} {MAP_HINT if 'missing' in str(e) else DROP_HINT}" if isinstance(row, dict) else ""
            bad = BadRow(f"{where}: row {number}: {e} (format {name}).{there}", number, str(e))
            if on_bad is None:
                raise bad from e
            on_bad(bad)


def _read(
    row: Any, number: int, read: Callable[[Row, int, Rules], Any], rules: Rules, columns: Mapping[str, str]
) -> Any:
    if not isinstance(row, dict):
        raise Fault(f"it is {kind(row)}, not an object with named columns")
    try:
        return read(renamed(row, columns), number, rules)
    except RecursionError as e:
        raise Fault("it is nested too deeply to be preference data") from e


def _alone(number: int, *, where: str, on_bad: OnBad | None) -> None:
    if on_bad is not None:
        on_bad(Unpaired(f"{where}: row {number}: {NO_PARTNER} (format kto).", number, NO_PARTNER))


def _prompt(row: Row, read: Callable[[Row, int, Rules], list[Pair] | Labelled], rules: Rules) -> Prompt | None:
    """The prompt that is read from a row of our names; None where it is faulty or makes no pair."""
    try:
        found = _read(row, 0, read, rules, {})
    except Fault:
        return None
    return found[0].prompt if isinstance(found, list) else found.prompt


def _asked(row: Row, rules: Rules, *names: str) -> list[Message]:
    """The prompt in the first of several columns that is filled, with the history before it and the input after."""
    column, value = given(row, *names)
    return in_full(asked(value, column, rules.tags), column, row, rules)


def _detected(begin: list[tuple[int, Row]], sound: list[Row], columns: Mapping[str, str], where: str) -> str:
    found = detect([renamed(row, columns) for row in sound], columns)
    if found is not None:
        return found
    if not begin:
        raise DataError(f"{where}: holds no rows, so that its format cannot be told.")
    known = "".join(f"\n  {name}: {shape}" for name, shape in SHAPES.items())
    others = f", nor is any of the {len(begin) - 1} after it" if len(begin) > 1 else ""
    there = told(sound[0]) if sound else f"It is {kind(begin[0][1])}, not an object with named columns."
    raise DataError(
        f"{where}: row {begin[0][0]} is in none of the formats{others}. {there} {MAP_HINT} Or name the format with "
        f"data.format. The formats and their columns are:{known}"
    )


def _has_effect(reading: Reading, name: str, where: str) -> None:
    if reading.ranking != "all" and name not in ("ranked", "scored"):
        raise DataError(
            f"{where}: data.ranking={reading.ranking} has no effect on the format {name}, which has two answers a row. "
            "Take it out, or name another data.format (ranked, scored)."
        )
    if reading.min_margin > 0 and name not in ("ultrafeedback", "scored"):
        raise DataError(
            f"{where}: data.min_margin={reading.min_margin:g} has no effect on the format {name}, which has no scores. "
            "Take it out, or name another data.format (ultrafeedback, scored)."
        )


def _history(value: Any, tags: Tags) -> list[Message]:
    turns = earlier(value, tags)
    if not turns and (value := decoded(value)):
        other = "" if isinstance(value, list) else f", not {kind(value)}"
        raise Fault(f"history must be a list of [question, answer] or of messages{other}")
    return turns
