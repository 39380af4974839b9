"""Answers to fixed prompts, of the reference and of the trained policy."""

from dataclasses import dataclass
from typing import Any

from dpo_lab.data.types import Message
from dpo_lab.inference.generate import ends_of, generate
from dpo_lab.inference.sampler import Sampling
from dpo_lab.preference.ref_cache import answer_key
from dpo_lab.training.parts import Parts, RunContext


@dataclass(frozen=True)
class Asked:
    """A prompt as messages and as token ids."""

    messages: list[Message]
    ids: list[int]


def sample_prompts(run: RunContext, parts: Parts) -> list[Asked]:
    """The fixed prompts: the user's own, or the first held-out ones."""
    config = run.config.prompts
    if config.own:
        before = [Message(role="system", content=config.system)] if config.system else []
        own = [[*before, Message(role="user", content=text)] for text in config.own]
        return [Asked(m, ids) for m, ids in zip(own, parts.template.prompt_ids(own), strict=True)]
    return [Asked(list(e.pair.prompt), e.prompt_ids) for e in parts.data.heldout[: config.count]]


def reference_answers(run: RunContext, parts: Parts, asked: list[Asked]) -> list[str]:
    """The reference's answers, from the cache where they are known; valid before the first update only."""
    sampling = _sampling(run)
    batch = [token for a in asked for token in [*a.ids, -1]]  # batch mates may change the last bits
    ends = sorted(ends_of(parts.policy, parts.template))
    how = [sampling.max_new_tokens, *ends, -1, *batch]
    if sampling != Sampling(sampling.max_new_tokens, seed=sampling.seed):  # else the most probable tokens
        how += repr(sampling).encode()
    keys = [answer_key(a.ids, how) for a in asked]
    known = [parts.cache.read_text(key) for key in keys]
    if any(text is None for text in known):
        with run.terminal.working("sampling the reference's answers"), parts.ref_model() as model:
            known = _answers(run, parts, model, asked)
        for key, text in zip(keys, known, strict=True):
            parts.cache.write_text(key, text or "")
    run.interrupt.check()
    return [text or "" for text in known]


def policy_answers(run: RunContext, parts: Parts, asked: list[Asked], before: list[str]) -> list[dict[str, Any]]:
    """Rows of samples.jsonl: the policy's answers beside the reference's."""
    if not asked:
        return []
    parts.policy.eval()
    with run.terminal.working("sampling the policy's answers"):
        after = _answers(run, parts, parts.policy, asked)
    return [
        {"step": parts.steps, "prompt": a.messages, "reference": reference, "policy": policy}
        for a, reference, policy in zip(asked, before, after, strict=True)
    ]


def _answers(run: RunContext, parts: Parts, model: Any, asked: list[Asked]) -> list[str]:
    if not asked:
        return []
    found = generate(model, [a.ids for a in asked], parts.template, _sampling(run), parts.precision)
    return [answer.text for answer in found]


def _sampling(run: RunContext) -> Sampling:
    return Sampling.of(run.config.generation, seed=run.config.seed)
