"""An Ollama Modelfile for a GGUF file: the chat template in Ollama's own template language where it has the means.

Ollama takes Go templates over a list of messages. What a chat template writes around system, user and assistant messages
is found by rendering marks; the same pieces put together again must give what the template writes, or none is derived.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError

from dpo_lab.data.templates import Template

SYSTEM, ASK, SAY, AGAIN = "\u2042sys\u2042", "\u2042ask\u2042", "\u2042say\u2042", "\u2042more\u2042"
TALKS = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


class Underivable(Exception):
    """Why a template has no counterpart."""


@dataclass(frozen=True)
class Frame:
    """What stands before and after a message of each role, and before an answer.

    Attributes:
        roles: (before, after) of system, user and assistant.
        ask: after the last message, where the answer begins.
        system: the system message that the template writes where none is given.
    """

    roles: dict[str, tuple[str, str]]
    ask: str
    system: str | None

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """What Ollama's renderer makes of messages."""
        given = list(messages)
        if self.system is not None and given[0]["role"] != "system":
            given.insert(0, {"role": "system", "content": self.system})
        return "".join(self.roles[m["role"]][0] + m["content"] + self.roles[m["role"]][1] for m in given) + self.ask

    def template(self) -> str:
        """As a Go template."""
        (name, (before, after)), *others = self.roles.items()
        parts = [f'{{{{ if eq .Role "{name}" }}}}{before}{{{{ .Content }}}}{after}']
        for name, (before, after) in others:
            parts.append(f'{{{{ else if eq .Role "{name}" }}}}{before}{{{{ .Content }}}}{after}')
        return f"{{{{ range .Messages }}}}{''.join(parts)}{{{{ end }}}}{{{{ end }}}}{self.ask}"


def modelfile(template: Template, weights: str) -> tuple[str, str | None]:
    """The Modelfile's text, and why there is no TEMPLATE in it; None where there is one.

    Args:
        template: of the run.
        weights: name of the GGUF file in the same folder.
    """
    lines, why = [f"FROM ./{weights}", ""], None
    try:
        frame = derive(template)
        lines += [f'TEMPLATE """{frame.template()}"""', ""]
        if frame.system is not None:
            lines += [f'SYSTEM """{frame.system}"""', ""]
    except Underivable as e:
        why = str(e)
        lines += [f"# No TEMPLATE: {why}. Ollama then uses the chat template in the file, if it knows it.", ""]
    lines += [f"PARAMETER stop {_quoted(end)}" for end in stops(template)]
    return "\n".join(lines) + "\n", why


def stops(template: Template) -> list[str]:
    """The texts that end an answer."""
    tokenizer = template.tokenizer
    ids = dict.fromkeys([template.end_of_turn[-1], tokenizer.eos_token_id])
    texts = [tokenizer.decode([i], skip_special_tokens=False) for i in ids if i is not None]
    return [text for text in dict.fromkeys(texts) if text.strip()]


def derive(template: Template) -> Frame:
    """The pieces of a chat template.

    Raises:
        Underivable: it is no such sequence of pieces, or they cannot be written as a Go template.
    """
    try:
        bos = template.tokenizer.bos_token if begins_with_bos(template) else ""  # which Ollama writes by itself

        def render(*roles: str, ask: bool) -> str:
            return _rendered(template, roles, ask=ask).removeprefix(bos)

        frame = _frame(render)
        for roles in TALKS:
            if frame.render(_talk(roles)) != render(*roles, ask=True):
                raise Underivable("the chat template is more than a text before and after each message")
    except (TemplateError, ValueError, TypeError) as e:
        raise Underivable("the chat template does not take messages of system, user and assistant") from e
    texts = [frame.ask, frame.system or "", *(part for pair in frame.roles.values() for part in pair)]
    if any(mark in text for text in texts for mark in ("{{", '"""')):
        raise Underivable("the chat template writes signs that a Modelfile has a meaning for")
    return frame


def begins_with_bos(template: Template) -> bool:
    """Whether the chat template writes the bos token, once, at the beginning of a conversation."""
    bos = template.tokenizer.bos_token
    text = _rendered(template, TALKS[1], ask=True)
    return bool(bos) and text.startswith(bos) and text.count(bos) == 1


def _rendered(template: Template, roles: Sequence[str], *, ask: bool) -> str:
    return str(template.tokenizer.apply_chat_template(_talk(roles), tokenize=False, add_generation_prompt=ask))


def _frame(render: Callable[..., str]) -> Frame:
    after_user = _after(render("user", ask=False), ASK)
    after_answer = _after(render("user", "assistant", ask=False), SAY)
    whole = render("user", "assistant", "user", ask=True)
    before_answer = _without_start(_between(whole, ASK, SAY), after_user)
    before_user = _without_start(_between(whole, SAY, AGAIN), after_answer)
    prompt = _without_start(_after(whole, AGAIN), after_user)
    with_system = render("system", "user", ask=True)
    before_system = _before(with_system, SYSTEM)
    after_system = _without_end(_between(with_system, SYSTEM, ASK), before_user)
    head = _without_end(_before(whole, ASK), before_user)
    system = None
    if head:
        if not (head.startswith(before_system) and head.endswith(after_system)):
            raise Underivable("the chat template begins with a text of its own")
        system = head[len(before_system) : len(head) - len(after_system)]
        if not system:
            raise Underivable("the chat template writes an empty system message")
    roles = {"system": (before_system, after_system), "user": (before_user, after_user)}
    return Frame(roles | {"assistant": (before_answer, after_answer)}, prompt, system)


def _talk(roles: Sequence[str]) -> list[dict[str, str]]:
    """A conversation of marks, each its own."""
    marks = {"system": [SYSTEM], "user": [ASK, AGAIN, f"3{ASK}"], "assistant": [SAY, f"2{SAY}"]}
    return [{"role": role, "content": marks[role].pop(0)} for role in roles]


def _before(text: str, mark: str) -> str:
    return text[: _place(text, mark)]


def _after(text: str, mark: str) -> str:
    return text[_place(text, mark) + len(mark) :]


def _between(text: str, first: str, second: str) -> str:
    return _before(_after(text, first), second)


def _place(text: str, mark: str) -> int:
    if text.count(mark) != 1:
        raise Underivable("the chat template leaves out messages, or writes them twice")
    return text.index(mark)


def _without_start(text: str, start: str) -> str:
    if not text.startswith(start):
        raise Underivable("the chat template writes the last message in another way than earlier ones")
    return text[len(start) :]


def _without_end(text: str, end: str) -> str:
    if not text.endswith(end):
        raise Underivable("the chat template writes the first message in another way than later ones")
    return text[: len(text) - len(end)]


def _quoted(text: str) -> str:
    return f'"{text}"' if '"' not in text else text
