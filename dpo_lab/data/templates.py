"""How messages become text and token ids: one template for training, samples and chat, saved with the result."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jinja2

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Template as TemplateConfig
from dpo_lab.data.clock import stopped_clock
from dpo_lab.data.thoughts import (
    CLOSE,
    NOTHING,
    OPEN,
    TAGS,
    ends_closed,
    ends_open,
    holds_thought,
    thought_apart,
    thought_of,
    thought_on,
    without_thought,
)
from dpo_lab.data.types import Message
from dpo_lab.runtime.errors import ConfigError, DataError, ModelError
from dpo_lab.runtime.files import digest

Tools = Sequence[dict[str, Any]]  # functions that the model may call, as JSON schemas
Talk = tuple[Sequence[Message], Tools]
Made = TypeVar("Made")

JINJA = Path(__file__).parent / "jinja"
# Tokens that a template by name writes as its own: a tokenizer that splits them has not been trained with them.
NEEDS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "qwen": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("bos", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("bos", "<start_of_turn>", "<end_of_turn>"),
    "mistral": ("bos", "eos"),
    "alpaca": ("eos",),
    "vicuna": ("eos",),
    "zephyr": ("eos",),
    "default": ("eos",),
}
ANY_TOKENIZER = ("alpaca", "vicuna", "zephyr", "default")
PROBE = "\u2042text\u2042"  # stands for a text when a template is asked what it puts around one
THOUGHT = "\u2042thought\u2042"
QUESTION = (Message(role="user", content=PROBE),)
SPACE = "\n\t\r "
# What a template's code may raise: jinja2's own, or Python's for a message of another shape than it expects.
FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, RecursionError)


def load_template(tokenizer: Any, config: TemplateConfig) -> "Template":
    """The chat template of conf/template on a tokenizer.

    Raises:
        ConfigError: a file that cannot be read, or a switch that the template does not have.
        ModelError: the tokenizer and the template do not go together.
    """
    path = None if config.path is None else expand(config.path)
    return Template(tokenizer, config.name, path=path, enable_thinking=config.enable_thinking)


class Refusal(DataError):
    """A chat template does not take a conversation, for `reason`."""

    def __init__(self, reason: str, roles: str) -> None:
        super().__init__(f"The chat template refuses a conversation of {roles}: {reason}. Try another template=.")
        self.reason = reason


@dataclass(frozen=True)
class Lead:
    """What stands between a prompt and an answer.

    Attributes:
        ids: tokens that no answer changes.
        text: what is tokenised with the answer, such as Mistral's space.
        tail: the end of the prompt that the answer goes on from.
    """

    ids: list[int]
    text: str
    tail: str


class Template:
    """A tokenizer with the chat template of the run.

    Names of special tokens within messages, tools and answers are text: data cannot end a turn or begin one. Only at
    the very end of an answer they are taken for the end of turn, which stands there once. The tags <think> and
    </think> are tokens wherever the tokenizer has them. A template that writes the day writes the same one every day.
    It can be pickled, for worker processes.

    Args:
        tokenizer: of the model; its chat template is replaced.
        name: auto for the tokenizer's own, file for `path`, or one of data/jinja.
        path: a Jinja file.
        enable_thinking: what the template sees under this name; None leaves it to the template.

    Attributes:
        tokenizer: its `chat_template` is the one in use, so that saving it saves the template.
        end_of_turn: token ids that close an answer.
        own: the chat template that the tokenizer came with.
    """

    def __init__(
        self, tokenizer: Any, name: str, *, path: Path | None = None, enable_thinking: bool | None = None
    ) -> None:
        self.tokenizer, self.name = tokenizer, name
        self.own: str | None = None
        with suppress(ValueError):  # several by name, none of them the default
            self.own = tokenizer.get_chat_template() if tokenizer.chat_template else None
        self._fast, self._identity = _plain_fast(tokenizer), ""
        self._takes_apart = False  # thoughts, in a field of their own
        if name in NEEDS:
            self._check_known(name)
        tokenizer.chat_template = self._text(name, path)
        if enable_thinking is not None:
            self._think(enable_thinking)
        added = tokenizer.added_tokens_decoder
        special = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        self._special = _any_of(special.difference(TAGS))
        self._tags = _any_of(special.intersection(TAGS))  # most tokenizers have them as tokens that are not special
        self._ends = {i for i, token in added.items() if token.content.strip()} | set(tokenizer.all_special_ids)
        first, *later = self.encode(["x", "\n", "\nx"])
        self._spaced = later[1] != later[0] + first
        self._learn()

    def render(self, messages: Sequence[Message], *, answer: str | None = None, tools: Tools = ()) -> str:
        """The prompt as text, up to where the answer begins; with `answer`, the whole conversation.

        Raises:
            Refusal: the template does not take these messages, or leaves out tools, their calls or their results.
        """
        turns = [*messages] if answer is None else [*messages, Message(role="assistant", content=answer)]
        text = self._render(turns, tools, ask=answer is None)
        for what, fewer in _without_tools(turns, tools):
            try:
                left_out = self._render(*fewer, ask=answer is None) == text
            except Refusal:
                continue
            if left_out:
                raise Refusal(f"it does not write {what}", _roles(turns))
        return text

    def encode(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Token ids of texts in which the names of special tokens are these tokens (`special`) or mere text."""
        if not texts:
            return []
        if not self._fast:
            ids = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=not special, verbose=False)
            return ids["input_ids"]
        backend = self._backend()
        backend.encode_special_tokens = not special
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def prompt_ids(self, prompts: Sequence[Sequence[Message]], tools: Sequence[Tools] | None = None) -> list[list[int]]:
        """Token ids of prompts, up to where the answer begins: what inference starts from.

        Args:
            prompts: conversations that end before the answer.
            tools: for each prompt the functions that the model may call; None if no prompt has any.

        Raises:
            Refusal: the template does not take one of them.
        """
        found = self.try_prompt_ids(prompts, tools)
        for ids in found:
            if isinstance(ids, Refusal):
                raise ids
        return [ids for ids in found if not isinstance(ids, Refusal)]

    def try_prompt_ids(
        self, prompts: Sequence[Sequence[Message]], tools: Sequence[Tools] | None = None
    ) -> list[list[int] | Refusal]:
        """As `prompt_ids`, with the refusal in the place of a prompt that the template does not take."""
        talks: list[Talk] = list(zip(prompts, [()] * len(prompts) if tools is None else tools, strict=True))
        named = [self._names_special(*talk) for talk in talks]
        texts = self._texts([talk for talk, is_named in zip(talks, named, strict=True) if not is_named])
        ids = iter(self.encode([text for text in texts if isinstance(text, str)]))
        plain = iter([text if isinstance(text, Refusal) else next(ids) for text in texts])
        return [
            _or_refusal(self._guarded_ids, *talk) if is_named else next(plain)
            for talk, is_named in zip(talks, named, strict=True)
        ]

    def answer_ids(self, answers: list[str]) -> list[list[int]]:
        """Token ids of answers with their end of turn, as they stand after a prompt.

        A tokenizer may treat the beginning of a text in its own way, so the end of the prompt is put before it and
        taken away again. Where the two would melt into one token the answer is tokenised apart: the prompt must
        stay what inference sees.
        """
        written = [self._written(answer) for answer in answers]
        skips = {lead.tail: self.encode([lead.tail], special=False)[0] for lead, _ in written}
        parts = [self._parts(lead.text + text) for lead, text in written]
        bodies = self.encode(
            [lead.tail + first for (lead, _), (first, *_) in zip(written, parts, strict=True)], special=False
        )
        for i, ((lead, _), (first, *later)) in enumerate(zip(written, parts, strict=True)):
            skip = skips[lead.tail]
            melted = bodies[i][: len(skip)] != skip or (lead.ids and self._spaced)
            body = self._inside(first, special=False) if melted else bodies[i][len(skip) :]
            for part in later:
                body = body + self._inside(part, special=part in TAGS)
            bodies[i] = lead.ids + body + self.end_of_turn
        return bodies

    def leaves_out_thought(self, answer: str) -> bool:
        """Whether an answer loses its thought, because the prompt ends after an empty one."""
        return self._has_thoughts and self._closed and thought_of(answer) != ""

    def holds_special(self, text: str) -> bool:
        """Whether a text names one of the tokenizer's special tokens."""
        return self._special.search(text) is not None

    def identity(self) -> str:
        """A hash of all that decides the ids: template, switches, tokenizer; the same in every process."""
        if not self._identity:
            special = json.dumps(self.tokenizer.special_tokens_map, sort_keys=True, default=str)
            self._identity = digest(self.tokenizer.chat_template, special, *self._vocabulary())
        return self._identity

    def _vocabulary(self) -> list[str | bytes]:
        """What the tokenizer is made of."""
        if hasattr(self.tokenizer, "backend_tokenizer"):
            return [self._backend().to_str()]
        file = getattr(self.tokenizer, "vocab_file", None)
        content = Path(file).read_bytes() if file and Path(file).is_file() else b""
        vocab = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return [type(self.tokenizer).__name__, vocab, str(self.tokenizer.added_tokens_decoder), content]

    def _backend(self) -> Any:
        """The tokenizer proper, without the padding and cutting that an earlier call may have left on it."""
        backend = self.tokenizer.backend_tokenizer
        if backend.padding is not None:
            backend.no_padding()
        if backend.truncation is not None:
            backend.no_truncation()
        return backend

    def _render(self, turns: Sequence[Message], tools: Tools, *, ask: bool) -> str:
        """The template's text, with the generation prompt if it is to `ask`."""
        try:
            return self.tokenizer.apply_chat_template(
                self._given(turns), tools=list(tools) or None, tokenize=False, add_generation_prompt=ask
            )
        except FAULTS as e:
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise Refusal(reason.rstrip("."), _roles(turns)) from e

    def _given(self, turns: Sequence[Message]) -> list[Any]:
        """The messages as the template takes them."""
        return [thought_apart(m) for m in turns] if self._takes_apart else list(turns)

    def _texts(self, talks: list[Talk]) -> list[str | Refusal]:
        """The text of each prompt, or why there is none; in one call where nothing needs a closer look."""
        prompts = [messages for messages, _ in talks]
        if prompts and all(prompts) and not any(_has_tools(*talk) for talk in talks):
            try:
                given = [self._given(messages) for messages in prompts]
                return self.tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
            except FAULTS:
                pass  # one of them is refused; the single calls say which
        return [_or_refusal(lambda messages, tools: self.render(messages, tools=tools), *talk) for talk in talks]

    def _names_special(self, messages: Sequence[Message], tools: Tools) -> bool:
        if any(self.holds_special(m["content"]) for m in messages):
            return True
        return _has_tools(messages, tools) and any(self.holds_special(text) for text in _strings([messages, tools]))

    def _guarded_ids(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        """Names of special tokens stand aside while the template writes its own."""
        found: list[str] = []
        data = "".join(_strings([messages, tools]))
        mark = next(chr(c) for c in range(0xE000, 0x10FFFE) if chr(c) not in data)

        def aside(match: re.Match[str]) -> str:
            found.append(match.group())
            return f"{mark}{len(found) - 1}{mark}"

        guarded = _mapped([messages, tools], lambda text: self._special.sub(aside, text))
        pieces = re.split(f"{mark}([0-9]+){mark}", self.render(guarded[0], tools=guarded[1]))
        ids = self.encode(pieces[:1])[0]
        for i, piece in enumerate(pieces[1:], 1):
            ids += self._inside(found[int(piece)], special=False) if i % 2 else self._inside(piece, special=True)
        return ids

    def _inside(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text that goes on with another: without the space that a tokenizer may begin texts with."""
        for before in ("\n", ".", "x") if self._spaced else ():
            skip = self.encode([before])[0]
            ids = self.encode([before + text], special=special)[0]
            if ids[: len(skip)] == skip:
                return ids[len(skip) :]
        return self.encode([text], special=special)[0]

    def _parts(self, text: str) -> list[str]:
        """A text cut around the tags that are special tokens; the first part may be empty, later ones are not."""
        first, *later = re.split(f"({self._tags.pattern})", text)
        return [first, *filter(None, later)]

    def _written(self, answer: str) -> tuple[Lead, str]:
        """The answer as the template writes it after a prompt, without an end of turn that it may bring along."""
        while end := next((e for e in self._closers if answer.rstrip().endswith(e)), None):
            answer = answer.rstrip().removesuffix(end)
        if self._has_thoughts and holds_thought(answer):
            if self._keeps_thoughts and (text := self._after_prompt(answer)) is not None:
                return self._bare, text
            if not self._closed:
                return self._bare, thought_on(answer) if self._opened else self._stripped(answer)
            answer = without_thought(answer)
        return self._lead, self._stripped(answer)

    def _stripped(self, answer: str) -> str:
        left, right = self._strips
        return answer.lstrip(left).rstrip(right)

    def _after_prompt(self, answer: str) -> str | None:
        """What the template writes between the generation prompt and the end of turn, if it goes on from that prompt."""
        try:
            whole = self.render(QUESTION, answer=answer)
        except Refusal:
            return None
        goes_on = whole.startswith(self._asked) and whole.endswith(self._after)
        return whole[len(self._asked) : len(whole) - len(self._after)] if goes_on else None

    def _learn(self) -> None:
        """What the template puts before and after an answer."""
        try:
            self._asked, whole = self.render(QUESTION), self.render(QUESTION, answer=f"\t{PROBE}\t")
            if PROBE not in self._asked or whole.count(PROBE) < 2:
                raise ModelError("The chat template leaves out questions or answers. Choose another template=.")
            whole = self.render(QUESTION, answer=PROBE)
            self._strips = self._stripped_by(lambda c: c + PROBE, whole), self._stripped_by(lambda c: PROBE + c, whole)
        except Refusal as e:
            raise ModelError(f"The chat template cannot write a question and an answer: {e.reason}.") from e
        start = whole.rindex(PROBE)
        header = self._asked[self._asked.rindex(PROBE) + len(PROBE) :]
        text = whole[len(self._asked) : start] if whole.startswith(self._asked) else ""
        ids = self.encode([text[: self._after_special(text)]])[0]
        tail = header[self._after_special(header) :]
        self._bare = Lead([], "", tail)
        self._lead = Lead(ids, text[self._after_special(text) :], "" if ids else tail)
        self._after = whole[start + len(PROBE) :]
        self._learn_thoughts(header, text)
        self.end_of_turn = self._end_of_turn(self._after)
        last = self.tokenizer.convert_ids_to_tokens(self.end_of_turn[-1])
        self._closers = [end for end in {last, self.tokenizer.eos_token} if end]

    def _stripped_by(self, edge: Callable[[str], str], whole: str) -> str | None:
        """The spaces that the template takes away at an edge of an answer, as str.strip takes them; None is any."""
        taken = "".join(c for c in SPACE if self.render(QUESTION, answer=edge(c)) == whole)
        return None if taken == SPACE else taken

    def _learn_thoughts(self, header: str, lead: str) -> None:
        """What becomes of a thought: kept as the text that it is, written in a way of its own, or left out."""
        self._opened, self._closed = ends_open(header), ends_closed(header)
        answer = f"{OPEN}\n{THOUGHT}\n{CLOSE}\n\n{PROBE}"
        as_text = self._asked + lead + answer + self._after
        whole = self._with_thought(answer)
        self._has_thoughts = whole != as_text
        if not self._has_thoughts and (self._opened or self._closed or OPEN in lead):
            # A thought would follow one that the template has written, as it does where it looks for none in a text.
            self._has_thoughts = self._takes_apart = True
            whole = self._with_thought(answer)
            self._takes_apart = THOUGHT in whole
        # The template's own special tokens before an answer would be read as text.
        before = whole[len(self._asked) : whole.rfind(PROBE)]
        self._keeps_thoughts = THOUGHT in whole and not self._special.search(before)
        if self._opened and not lead:
            self._lead = Lead([], NOTHING, self._bare.tail)

    def _with_thought(self, answer: str) -> str:
        try:
            return self.render(QUESTION, answer=answer)
        except Refusal:
            return ""

    def _after_special(self, text: str) -> int:
        found = (match.end() for names in (self._special, self._tags) for match in names.finditer(text))
        return max(found, default=0)

    def _end_of_turn(self, text: str) -> list[int]:
        """The tokens after an answer up to the first special one; the eos token if there is none."""
        ids = self.encode([text])[0]
        for position, token in enumerate(ids):
            if token in self._ends:
                return ids[: position + 1]
        if self.tokenizer.eos_token_id is None:
            raise ModelError("Neither the chat template nor the tokenizer has a token that ends an answer.")
        return [self.tokenizer.eos_token_id]

    def _text(self, name: str, path: Path | None) -> str:
        """The template, so that whoever uses the saved tokenizer gets what training saw."""
        if name == "auto":
            if not self.tokenizer.chat_template:
                raise ModelError(
                    "The tokenizer has no chat template. Choose the one that the model was trained with, or for a base "
                    f"model one that any tokenizer can write: template={'|'.join(NEEDS)}, or template=file."
                )
            return _with_clock(self.tokenizer.get_chat_template())
        file = JINJA / f"{name}.jinja" if path is None else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as e:
            raise ConfigError(f"template.path={file} cannot be read as text: {e}.") from e
        # As plain texts of this tokenizer begin, without asking which family it is of.
        return "{{- bos_token }}" + text if name in ANY_TOKENIZER and self._begins_with_bos() else _with_clock(text)

    def _begins_with_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]

    def _think(self, enabled: bool) -> None:
        text = self.tokenizer.chat_template
        seen = []
        for value in (True, False):
            self.tokenizer.chat_template = _default("enable_thinking", str(value).lower()) + text
            seen.append(self.render(QUESTION))
        if seen[0] == seen[1]:
            raise ConfigError(
                f"template.enable_thinking={str(enabled).lower()} has no effect: this chat template has no such switch. "
                "Drop it."
            )
        self.tokenizer.chat_template = _default("enable_thinking", str(enabled).lower()) + text

    def _check_known(self, name: str) -> None:
        known = self.tokenizer.get_vocab()
        for needed in NEEDS[name]:
            token = getattr(self.tokenizer, f"{needed}_token") if needed in ("bos", "eos") else needed
            if token is None:
                raise ModelError(
                    f"template={name} needs a{'n' if needed == 'eos' else ''} {needed} token, which this tokenizer does "
                    "not have. Use template=auto."
                )
            if self.encode([token])[0] != [known.get(token)]:
                raise ModelError(
                    f"template={name} needs the token {token}, which this tokenizer does not have. Use template=auto."
                )


def _default(name: str, value: str) -> str:
    """Jinja that sets a variable unless the caller does."""
    return f"{{%- if {name} is not defined %}}{{%- set {name} = {value} %}}{{%- endif %}}"


def _with_clock(text: str) -> str:
    """A template whose clock stands still, if it has one that does not yet."""
    clock = stopped_clock()
    return clock + text if "strftime_now" in text and clock not in text else text


def _any_of(names: set[str]) -> re.Pattern[str]:
    """One of the names, the longest there is; of none, nothing."""
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or r"(?!)")


def _roles(turns: Iterable[Message]) -> str:
    return ", ".join(m["role"] for m in turns)


def _has_tools(messages: Sequence[Message], tools: Tools) -> bool:
    """Whether a conversation is more than roles and texts."""
    return bool(tools) or any(len(m) > 2 or m["role"] == "tool" for m in messages)


def _without_tools(turns: Sequence[Message], tools: Tools) -> Iterator[tuple[str, Talk]]:
    """What a conversation has of tools, and the conversation without it: they must not read the same."""
    if tools:
        yield "tools", (turns, ())
    if any(m.get("tool_calls") for m in turns):
        yield "calls of tools", ([{k: v for k, v in m.items() if k != "tool_calls"} for m in turns], tools)  # type: ignore[misc]
    if any(m["role"] == "tool" for m in turns):
        yield "results of tools", ([{**m, "content": PROBE} if m["role"] == "tool" else m for m in turns], tools)


def _or_refusal(
    make: Callable[[Sequence[Message], Tools], Made], messages: Sequence[Message], tools: Tools
) -> Made | Refusal:
    try:
        return make(messages, tools)
    except Refusal as e:
        return e
    except RecursionError:
        return Refusal("it is nested too deeply", _roles(messages))


def _strings(value: Any) -> Iterator[str]:
    """Every string within lists and dicts, names of fields included, in any order."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            left += [*part, *part.values()]
        elif isinstance(part, list | tuple):
            left += part


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of lists and dicts with every string changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_mapped(key, change): _mapped(part, change) for key, part in value.items()}
    return [_mapped(part, change) for part in value] if isinstance(value, list | tuple) else value


def _plain_fast(tokenizer: Any) -> bool:
    """Whether its Rust part alone decides the ids: no class of its own changes what goes in or comes out."""
    from transformers import PreTrainedTokenizerFast

    return isinstance(tokenizer, PreTrainedTokenizerFast) and all(
        getattr(type(tokenizer), name) is getattr(PreTrainedTokenizerFast, name)
        for name in ("__call__", "_encode_plus")
    )
