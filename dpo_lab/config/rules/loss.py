"""Rules of loss: what its functions take, and which modifiers make sense for them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dpo_lab.config.names import listed
from dpo_lab.config.rules.objective import keywords
from dpo_lab.config.schema import Config, Loss
from dpo_lab.config.target import Signature, TargetError, signature

LOSS_INPUTS = (
    "chosen_logratios",
    "rejected_logratios",
    "chosen_logps",
    "rejected_logps",
    "ref_chosen_logps",
    "ref_rejected_logps",
    "chosen_tokens",
    "rejected_tokens",
)

OURS = "dpo_lab.preference.losses."
IMITATE = ("sft_loss", "orpo_loss")
# f'(u) = f'(policy / reference) holds up to a constant that only a difference of two cancels, arXiv:2309.16240.
OF_A_DIFFERENCE = ("dpo_loss", "cdpo_loss", "robust_loss", "hinge_loss", "ipo_loss", "exo_loss", "discopop_loss")

_HALF = "at least 0 and below 0.5: with half of the labels wrong nothing could be learned"
RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "cdpo_loss.label_smoothing": (lambda x: 0 <= x < 0.5, _HALF),
    "robust_loss.label_smoothing": (lambda x: 0 <= x < 0.5, _HALF),
    "exo_loss.label_smoothing": (lambda x: 0 < x < 0.5, "above 0, because the loss holds its logarithm, and below 0.5"),
    "discopop_loss.tau": (lambda x: x > 0, "greater than 0"),
    "simpo_loss.gamma": (lambda x: x >= 0, "at least 0"),
}


@dataclass(frozen=True)
class _Function:
    """A function that the loss calls with log-probs of pairs."""

    group: str  # loss, or loss.terms.NAME
    target: str
    beta: float | None
    extra: Mapping[str, Any]
    own_beta: bool  # given for this function alone

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2]

    @property
    def takes(self) -> Signature | None:
        """Its parameters; None where only running the code could tell, or where there is no such thing."""
        try:
            return signature(self.target)
        except TargetError:
            return None

    @property
    def compares(self) -> bool | None:
        """Whether it compares policy and reference."""
        takes = self.takes
        return None if takes is None else any("ratios" in n or n.startswith("ref_") for n in takes.positional)


def needs_reference(loss: Loss) -> bool | None:
    """Whether a loss compares policy and reference; None where only running its code could tell."""
    known = [f.compares for f in _functions(loss)]
    return None if None in known and True not in known else any(known)


def loss(config: Config) -> Iterable[str]:
    """The inputs of each function are of the vocabulary, its hyper-parameters are all given and no others."""
    asked = config.loss
    yield from _combination(asked)
    for function in _functions(asked):
        yield from _signature(function)
        yield from _ranges(function)


def modifiers(config: Config) -> Iterable[str]:
    """A modifier has an effect, and one that its paper means."""
    asked, functions = config.loss, _functions(config.loss)
    name = asked.target.rpartition(".")[2]
    if asked.sft_weight and asked.terms is not None:
        yield f"loss.sft_weight={asked.sft_weight:g} beside loss.terms: imitation is a term there. Use loss.terms.sft.weight."
    elif asked.sft_weight and asked.target in [OURS + n for n in IMITATE]:
        yield f"loss.sft_weight={asked.sft_weight:g}: {name} imitates the chosen answers already. Drop it, or use loss=dpo."
    if asked.ld_alpha is not None and needs_reference(asked) is False:
        yield (
            f"loss.ld_alpha={asked.ld_alpha:g}: {name} has no log-ratios in which the longer answer could weigh more. "
            "Drop it, or use a loss with a reference, such as loss=dpo."
        )
    coupled = [f.name for f in functions if f.takes and "couples_pairs" in f.takes.decorators]
    if asked.wpo and coupled:
        yield (
            f"loss.wpo=true weighs pairs, but {listed(coupled, 'and')} looks at all pairs of a step together, so that "
            "none has a loss of its own. Drop one of them."
        )
    if asked.f_divergence != "reverse_kl":
        yield from _f_divergence(asked, functions)


def _functions(loss: Loss) -> list[_Function]:
    extra = loss.model_extra or {}
    if not loss.terms:
        return [_Function("loss", loss.target, loss.beta, extra, own_beta=True)]
    return [
        _Function(
            f"loss.terms.{name}",
            term.target,
            loss.beta if term.beta is None else term.beta,
            term.model_extra or {},
            own_beta=term.beta is not None,
        )
        for name, term in loss.terms.items()
    ]


def _combination(loss: Loss) -> Iterable[str]:
    """A loss of losses has terms, and no other has."""
    try:
        takes = signature(loss.target)
    except TargetError as e:
        if loss.terms:  # otherwise it is reported as a function of pairs
            yield f"loss._target_={loss.target}: {e}"
        return
    if takes is None:
        return
    combines = "weights" in takes.keyword_only
    if combines and not loss.terms:
        yield f"loss.terms is empty: {loss.target} combines other losses. Start from loss=mpo."
    elif loss.terms and not combines:
        yield f"loss.terms has no effect: {loss.target} combines no losses. Use loss=mpo, or remove loss.terms."
    elif loss.terms:
        hyper = {"weights": None, **(loss.model_extra or {})}
        yield from keywords("loss", loss.target, hyper, takes.keyword_only, takes.keyword_only, takes)
        inherits = [
            f for f in _functions(loss) if not f.own_beta and (f.takes is None or "beta" in f.takes.keyword_only)
        ]
        if loss.beta is not None and not inherits:
            yield (
                f"loss.beta={loss.beta:g} has no effect: each of loss.terms has its own or takes none. Use loss.beta=null."
            )


def _signature(function: _Function) -> Iterable[str]:
    group, target = function.group, function.target
    try:
        takes = signature(target)
    except TargetError as e:
        yield f"{group}._target_={target}: {e}"
        return
    if takes is None or "weights" in takes.keyword_only:
        return
    for name in takes.positional:
        if name not in LOSS_INPUTS:
            yield (
                f"{target}: the parameter {name} is not an input that a loss can ask for ({', '.join(LOSS_INPUTS)}). "
                "A hyper-parameter stands after a * in the function's signature."
            )
    hands_on = function.beta is not None and (function.own_beta or "beta" in takes.keyword_only)
    hyper = dict(function.extra) | ({"beta": function.beta} if hands_on else {})
    yield from keywords(group, target, hyper, takes.keyword_only, takes.keyword_only, takes)


def _ranges(function: _Function) -> Iterable[str]:
    """Hyper-parameters of our own losses, whose types no schema knows."""
    if not function.target.startswith(OURS):
        return
    for name, value in function.extra.items():
        fits, words = RANGES.get(f"{function.name}.{name}", (None, ""))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if fits and not (number and fits(value)):
            yield f"{function.group}.{name}={value}: must be {words if number else 'a number'}."


def _f_divergence(loss: Loss, functions: list[_Function]) -> Iterable[str]:
    asked = f"loss.f_divergence={loss.f_divergence}"
    if needs_reference(loss) is False:
        yield f"{asked}: {loss.target.rpartition('.')[2]} has no reference to diverge from. Drop it, or use loss=dpo."
    for function in functions:
        takes = function.takes
        if takes is None or not function.compares:
            continue
        if function.target.startswith(OURS):
            fits = function.name in OF_A_DIFFERENCE
        else:
            fits = {"chosen_logratios", "rejected_logratios"} <= set(takes.positional)
        if not fits:
            yield (
                f"{asked}: {function.name} looks at more than the difference of two log-ratios, for which alone another "
                f"divergence is defined. Use one of {', '.join(OF_A_DIFFERENCE)}, or drop it."
            )
