"""The order of roles in prompts."""

from collections.abc import Iterator, Sequence

from dpo_lab.data.doctor.case import Case, Marked, Result, graded, mask_of, pairs_word
from dpo_lab.data.doctor.findings import Finding
from dpo_lab.data.doctor.statistics import percent
from dpo_lab.data.types import Message

FEW = 0.01  # of the pairs: below, a slip in the data; above, a habit that the model learns


def role_order(case: Case) -> Result:
    """Conversations that no chat would produce."""
    faults = [[tuple(faults_of(pair.prompt)) for pair in sample.pairs] for sample in case.samples]
    tally: dict[str, int] = {}
    for kinds in (k for part in faults for k in part):
        for kind in kinds:
            tally[kind] = tally.get(kind, 0) + 1
    found = Marked.of(case, [mask_of(bool(k) for k in part) for part in faults])
    result = Result(numbers={"roles/faulty": found.count})
    if found.count:
        kinds = ", ".join(f"{kind} ({n:,})" for kind, n in sorted(tally.items(), key=lambda item: -item[1]))
        result.findings.append(
            Finding(
                "role-order",
                graded(found.share, warning=FEW),
                f"{pairs_word(found.count)} ({percent(found.share)}) have turns in an unusual order: {kinds}.",
                "Check data.columns and data.tags: a role may have been read as another. A system message belongs "
                "first, user and assistant take turns, and the prompt ends with the user.",
                found.count,
                found.share,
                found.rows,
            )
        )
    return result


def faults_of(prompt: Sequence[Message]) -> Iterator[str]:
    """What is unusual about the order of a prompt's turns, each kind once."""
    roles = [m["role"] for m in prompt]
    if "system" in roles[1:]:
        yield "a system message after the first turn"
    turns = [role for role in roles if role != "system"]
    if "user" not in turns:
        yield "no user turn"
    elif turns[0] != "user":
        yield f"the {turns[0]} begins"
    following = set(zip(turns, turns[1:], strict=False))
    for role in ("user", "assistant"):
        if (role, role) in following:
            yield f"two {role} turns in a row"
    if turns and turns[-1] == "assistant":
        yield "the prompt ends with the assistant"
