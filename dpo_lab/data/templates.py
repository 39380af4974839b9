"""How messages become text and token ids: one template for training, samples and chat, saved with the result."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Template as TemplateConfig
from dpo_lab.data.types import Message
from dpo_lab.runtime.errors import ConfigError, DataError, ModelError

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


class Template:
    """A tokenizer with the chat template of the run.

    Names of special tokens within messages and answers are text: data cannot end a turn or begin one. Only at the
    very end of an answer they are taken for the end of turn, which stands there once.

    Args:
        tokenizer: of the model; its chat template is replaced.
        name: auto for the tokenizer's own, file for `path`, or one of data/jinja.
        path: a Jinja file.
        enable_thinking: what the template sees under this name; None leaves it to the template.

    Attributes:
        tokenizer: its `chat_template` is the one in use, so that saving it saves the template.
        end_of_turn: token ids that close an answer.
    """

    def __init__(
        self, tokenizer: Any, name: str, *, path: Path | None = None, enable_thinking: bool | None = None
    ) -> None:
        self.tokenizer, self.name = tokenizer, name
        if name in NEEDS:
            self._check_known(name)
        tokenizer.chat_template = self._text(name, path)
        if enable_thinking is not None:
            self._think(enable_thinking)
        added = tokenizer.added_tokens_decoder
        special = {token.content for token in added.values() if token.special} | set(tokenizer.all_special_tokens)
        self._special = re.compile("|".join(re.escape(s) for s in sorted(special, key=len, reverse=True)) or r"(?!)")
        self._ends = {i for i, token in added.items() if token.content.strip()} | set(tokenizer.all_special_ids)
        self._learn()

    def render(self, messages: Iterable[Message], *, answer: str | None = None) -> str:
        """The prompt as text, up to where the answer begins; with `answer`, the whole conversation.

        Raises:
            Refusal: the template does not take these messages.
        """
        turns: list[Any] = [dict(m) for m in messages]
        if answer is not None:
            turns.append({"role": "assistant", "content": answer})
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as e:
            reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise Refusal(reason.rstrip("."), ", ".join(m["role"] for m in turns)) from e

    def encode(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Token ids of texts in which the names of special tokens are these tokens (`special`) or mere text."""
        if not texts:
            return []
        ids = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=not special, verbose=False)
        return ids["input_ids"]

    def prompt_ids(self, prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        """Token ids of prompts, up to where the answer begins: what inference starts from.

        Raises:
            Refusal: the template does not take one of them.
        """
        plain = [i for i, messages in enumerate(prompts) if not any(self.holds_special(m["content"]) for m in messages)]
        ids = dict(zip(plain, self.encode([self.render(prompts[i]) for i in plain]), strict=True))
        return [ids[i] if i in ids else self._guarded_ids(messages) for i, messages in enumerate(prompts)]

    def answer_ids(self, answers: list[str]) -> list[list[int]]:
        """Token ids of answers with their end of turn, as they stand after a prompt.

        A tokenizer may treat the beginning of a text in its own way, so the end of the prompt is put before it and
        taken away again. Where the two would melt into one token the answer is tokenised apart: the prompt must
        stay what inference sees.
        """
        texts = [self._rest + self._bare(answer) for answer in answers]
        skip = self.encode([self._tail], special=False)[0]
        bodies = self.encode([self._tail + text for text in texts], special=False)
        for i, body in enumerate(bodies):
            melted = body[: len(skip)] != skip
            bodies[i] = self.encode([texts[i]], special=False)[0] if melted else body[len(skip) :]
        return [self._fixed + body + self.end_of_turn for body in bodies]

    def holds_special(self, text: str) -> bool:
        """Whether a text names one of the tokenizer's special tokens."""
        return self._special.search(text) is not None

    def _guarded_ids(self, messages: Sequence[Message]) -> list[int]:
        """Names of special tokens stand aside while the template writes its own."""
        found: list[str] = []

        def aside(match: re.Match[str]) -> str:
            found.append(match.group())
            return f"\ue000{len(found) - 1}\ue001"

        guarded = [Message(role=m["role"], content=self._special.sub(aside, m["content"])) for m in messages]
        ids: list[int] = []
        for i, piece in enumerate(re.split("\ue000([0-9]+)\ue001", self.render(guarded))):
            own = i % 2 == 0 or int(piece) >= len(found)
            ids += self.encode([piece if own else found[int(piece)]], special=own)[0]
        return ids

    def _bare(self, answer: str) -> str:
        """The answer as the template writes it, without an end of turn that it may bring along."""
        while end := next((e for e in self._closers if answer.rstrip().endswith(e)), None):
            answer = answer.rstrip().removesuffix(end)
        return answer.strip() if self._strips else answer

    def _learn(self) -> None:
        """What the template puts before and after an answer."""
        question = [Message(role="user", content=PROBE)]
        try:
            prompt, whole = self.render(question), self.render(question, answer=f"\t{PROBE}\t")
        except Refusal as e:
            raise ModelError(f"The chat template cannot write a question and an answer: {e.reason}.") from e
        if PROBE not in prompt or whole.count(PROBE) < 2:
            raise ModelError("The chat template leaves out questions or answers. Choose another template=.")
        self._strips = f"\t{PROBE}\t" not in whole
        whole = self.render(question, answer=PROBE)
        start = whole.rindex(PROBE)
        header = prompt[prompt.rindex(PROBE) + len(PROBE) :]
        lead = whole[len(prompt) : start] if whole.startswith(prompt) else ""
        self._fixed = self.encode([lead[: self._after_special(lead)]])[0]
        self._rest = lead[self._after_special(lead) :]  # before each answer, tokenised with it: Mistral's space
        self._tail = "" if self._fixed else header[self._after_special(header) :]
        self.end_of_turn = self._end_of_turn(whole[start + len(PROBE) :])
        last = self.tokenizer.convert_ids_to_tokens(self.end_of_turn[-1])
        self._closers = [end for end in {last, self.tokenizer.eos_token} if end]

    def _after_special(self, text: str) -> int:
        return max((match.end() for match in self._special.finditer(text)), default=0)

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
            text = self.tokenizer.get_chat_template()
            # Llama 3.2 writes today's date into the prompt, and its own constant where it knows of none.
            dated = "date_string" in text and "strftime_now" in text
            return _default("date_string", "'26 Jul 2024'") + text if dated else text
        file = JINJA / f"{name}.jinja" if path is None else path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as e:
            raise ConfigError(f"template.path={file} cannot be read as text: {e}.") from e
        # As plain texts of this tokenizer begin, without asking which family it is of.
        return "{{- bos_token }}" + text if name in ANY_TOKENIZER and self._begins_with_bos() else text

    def _begins_with_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos]

    def _think(self, enabled: bool) -> None:
        text = self.tokenizer.chat_template
        question = [Message(role="user", content=PROBE)]
        seen = []
        for value in (True, False):
            self.tokenizer.chat_template = _default("enable_thinking", str(value).lower()) + text
            seen.append(self.render(question))
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
