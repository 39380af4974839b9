"""Whether the chat template belongs to the model, and whether the data brings along one of its own."""

import re
from typing import Any

import jinja2

from dpo_lab.data.doctor.case import Case, Marked, Result, graded, mask_of, pairs_word, shown
from dpo_lab.data.doctor.findings import Finding
from dpo_lab.data.doctor.statistics import percent
from dpo_lab.data.templates import Refusal, Template
from dpo_lab.data.types import Message, Pair

MANY = 0.05  # pairs with markers: no longer someone writing about templates
MOST = 0.5  # the data was written with a template
MARKERS = {  # how a family writes turns -> the family
    "<|im_start|>": "ChatML",
    "<|im_end|>": "ChatML",
    "<|start_header_id|>": "Llama 3",
    "<|end_header_id|>": "Llama 3",
    "<|eot_id|>": "Llama 3",
    "<|begin_of_text|>": "Llama 3",
    "<start_of_turn>": "Gemma",
    "<end_of_turn>": "Gemma",
    "[INST]": "Mistral and Llama 2",
    "[/INST]": "Mistral and Llama 2",
    "<<SYS>>": "Llama 2",
    "<|user|>": "Zephyr and Phi",
    "<|assistant|>": "Zephyr and Phi",
    "<|endoftext|>": "GPT",
    "<\uff5cAssistant\uff5c>": "DeepSeek",
    "### Response:": "Alpaca",
    "\n\nHuman: ": "Anthropic's transcripts",
    "\n\nAssistant: ": "Anthropic's transcripts",
}
TURN_TOKENS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "<start_of_turn>",
    "[INST]",
    "<|assistant|>",
    "<\uff5cAssistant\uff5c>",
)
AS_TEXT = ("<|user|>", "<|assistant|>", "<|system|>")  # Zephyr's, which its tokenizer writes with ordinary tokens
SPELLED = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_turn>")


def template_tokens(case: Case) -> Result:
    """The tokens that the template writes are tokens of this tokenizer, and the ones its model knows."""
    template, result = case.template, Result()
    try:
        text = template.render([Message(role="user", content="a")], answer="b")
    except Refusal:
        return result
    split = [m for m in dict.fromkeys(SPELLED.findall(text)) if m not in AS_TEXT and _pieces(template, m) > 1]
    result.numbers["template/split_tokens"] = len(split)
    if split:
        result.findings.append(
            Finding(
                "split-template-tokens",
                "error",
                f"The template writes {', '.join(split)}, which this tokenizer splits into "
                f"{', '.join(str(_pieces(template, m)) for m in split)} ordinary tokens: the model has not been "
                "trained with them.",
                "Choose the template= of this model's family, or template=auto for the tokenizer's own.",
                count=len(case),
                share=1.0,
            )
        )
    for finding in (_other_family(template, text), _not_its_own(template)):
        if finding is not None:
            result.findings.append(finding)
    return result


def marked_texts(case: Case) -> Result:
    """Markers of chat templates within prompts and answers."""
    names = [[_markers_in(pair) for pair in sample.pairs] for sample in case.samples]
    found = Marked.of(case, [mask_of(bool(m) for m in part) for part in names])
    result = Result(numbers={"template/marked_pairs": found.count})
    if not found.count:
        return result
    tally: dict[str, int] = {}
    for markers in (m for part in names for m in part):
        for marker in markers:
            tally[marker] = tally.get(marker, 0) + 1
    commonest = sorted(tally, key=lambda m: -tally[m])[:4]
    family = MARKERS[commonest[0]]
    split = [m for m in commonest if _pieces(case.template, m) > 1]
    result.findings.append(
        Finding(
            "template-in-data",
            graded(found.share, warning=MANY, error=MOST),
            f"{pairs_word(found.count)} ({percent(found.share)}) hold markers of a chat template ({family}) in their "
            f"texts: {', '.join(f'{m.strip()} ({tally[m]:,})' for m in commonest)}. They are read as text"
            + (f"; {', '.join(m.strip() for m in split)} is no token of this tokenizer" if split else "")
            + ".",
            "Give the data without a template: the lab writes its own. For transcripts take the data.format that reads "
            "them; if these texts are about templates, leave them.",
            found.count,
            found.share,
            found.rows,
            _shown_marker(case, names),
        )
    )
    return result


def _markers_in(pair: Pair) -> tuple[str, ...]:
    texts = (pair.chosen, pair.rejected, *(m["content"] for m in pair.prompt))
    return tuple(marker for marker in MARKERS if any(marker in text for text in texts))


def _shown_marker(case: Case, names: list[list[tuple[str, ...]]]) -> str:
    for sample, part in zip(case.samples, names, strict=True):
        for pair, markers in zip(sample.pairs, part, strict=True):
            for text in (pair.chosen, pair.rejected, *(m["content"] for m in pair.prompt)):
                if markers and markers[0] in text:
                    return shown(text, text.index(markers[0]))
    return ""


def _pieces(template: Template, marker: str) -> int:
    return len(template.encode([marker])[0])


def _other_family(template: Template, text: str) -> Finding | None:
    """The tokenizer has turn tokens, and the template writes none of them."""
    known = {token.content for token in template.tokenizer.added_tokens_decoder.values()}
    has = [m for m in TURN_TOKENS if m in known]
    if not has or any(m in text for m in has):
        return None
    return Finding(
        "wrong-template",
        "warning",
        f"This tokenizer has the turn tokens of {MARKERS[has[0]]} ({has[0]}), but template={template.name} writes none "
        "of them: a chat model of this family has not seen prompts like these.",
        "Take template=auto, or the template= of the family; for a base model ignore this.",
    )


def _not_its_own(template: Template) -> Finding | None:
    """The tokenizer came with a template that writes the same turns differently."""
    own = template.own
    if not own or template.name == "auto":
        return None
    turns: list[Any] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    try:
        theirs = template.tokenizer.apply_chat_template(
            turns, chat_template=own, tokenize=False, add_generation_prompt=True
        )
        ours = template.render(turns)
    except (Refusal, jinja2.TemplateError, TypeError, ValueError, LookupError):
        return None
    if theirs == ours:
        return None
    return Finding(
        "another-template",
        "warning",
        f"template={template.name} writes prompts otherwise than the tokenizer's own template.",
        "If the model was tuned for chat, take template=auto.",
        example=f"{shown(ours)} instead of {shown(theirs)}",
    )
