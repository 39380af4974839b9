"""The `shared` forward gives the numbers of the `padded` one, and both those of the model's own logits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    FAMILIES,
    FP32,
    FP64,
    difference,
    move,
    plain_model,
    tiny_examples,
    tiny_lora,
    trained,
    worst_gradient,
    write_tiny_model,
)
from torch import Tensor, nn

from dpo_lab.config.schema import Quant
from dpo_lab.data.collate import collate, microbatches
from dpo_lab.data.types import Example, Pair
from dpo_lab.models.lean import make_lean
from dpo_lab.models.load import load_model
from dpo_lab.models.locate import Located
from dpo_lab.models.lora import new_adapter
from dpo_lab.models.precision import Precision
from dpo_lab.preference.forward import Forward, causal_lm
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.logps import head_of
from dpo_lab.preference.losses import aot_loss, dpo_loss, ipo_loss
from dpo_lab.preference.objective import Objective
from dpo_lab.preference.reference import adapter_off
from dpo_lab.preference.sharing import share

SHARED, PADDED = Forward(), Forward(shared=False)
OBJECTIVES = {
    "dpo": Objective(dpo_loss, average="sum", beta=0.1),
    "ipo": Objective(ipo_loss, average="mean", beta=0.1),
    "aot": Objective(aot_loss, average="sum", beta=0.1),  # couples the pairs
}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
MIXED = Precision("bf16", torch.float32, torch.bfloat16)
BF16 = Precision("bf16", torch.bfloat16, torch.bfloat16)
TRUE_BF16 = Precision("32", torch.bfloat16, torch.bfloat16)  # no autocast


# -- pairs ----------------------------------------------------------------------------------------------------------


def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> Example:
    return Example(prompt, chosen, rejected, Pair((), "a", "b", 1))


def pairs(*lengths: tuple[int, int, int]) -> list[Example]:
    """Pairs of random tokens."""
    generator = torch.Generator().manual_seed(len(lengths))

    def random(n: int) -> list[int]:
        return torch.randint(3, 259, (n,), generator=generator).tolist()

    return [pair(random(p), random(c), random(r)) for p, c, r in lengths]


def ranked(count: int) -> list[Example]:
    """All pairs of one ranked list, the better answer first, and a pair of another prompt."""
    other, *rest = pairs(*((5, 1 + i % 4, 3) for i in range(count + 1)))
    answers = [e.chosen_ids + [7 + i] for i, e in enumerate(rest)]
    prompt = rest[0].prompt_ids
    return [pair(prompt, a, b) for i, a in enumerate(answers) for b in answers[i + 1 :]] + [other]


(SOME,) = pairs((9, 4, 6))
P, A, B = SOME.prompt_ids, SOME.chosen_ids, SOME.rejected_ids
EXAMPLES: dict[str, list[Example]] = {
    "ragged": tiny_examples(),
    "one-token answers": pairs((6, 1, 1), (9, 1, 1), (4, 1, 5)),
    "one-token prompts": pairs((1, 4, 2), (1, 1, 1), (3, 2, 6)),
    "identical prompts": [pair(P, A, B), pair(P, [9, 8, 7], [5]), *pairs((3, 2, 2))],
    "identical answers": [pair(P, A, B), pair([*P, 5], A, B), pair([4], A, B), pair([4], B, [3])],
    "chosen is rejected": [pair(P, A, A), pair(P, B, B), *pairs((3, 2, 4))],
    "the same pair twice": [pair(P, A, B), pair(P, A, B), *pairs((3, 2, 4))],
    "a very long prompt beside short ones": pairs((3, 2, 4), (400, 3, 3), (5, 9, 1), (2, 60, 4)),
    "a single pair": pairs((7, 5, 3)),
    "many pairs": pairs(*((1 + i % 7, 1 + i % 5, 1 + i % 3) for i in range(40))),
    "a ranked list": ranked(4),
}


def packed(name: str) -> Layout:
    return collate(EXAMPLES[name], range(len(EXAMPLES[name])))


# -- models ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A policy and how it is held."""

    family: str
    precision: Precision = FP32
    bits: int | None = None
    lean: bool = True
    checkpointing: bool = False
    dropout: float = 0.0
    full: bool = False

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.precision.weights]

    def __str__(self) -> str:
        words = [
            self.family,
            str(self.precision),
            f"{self.bits}-bit" if self.bits else "",
            "" if self.lean else "not lean",
        ]
        words += ["checkpointing" if self.checkpointing else "", "full" if self.full else ""]
        return ", ".join(filter(None, words))


class Folders:
    """A model folder of each family; those for quantised layers divide into blocks of 64."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getitem__(self, model: Model) -> Path:
        wide = model.bits is not None and model.family != "smollm2"
        folder = self.root / f"{model.family}{'-wide' if wide else ''}"
        if not folder.exists():
            sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128} if wide else {}
            write_tiny_model(folder, model.family, **sizes)
        return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("models"))


def loaded(folder: Path, model: Model) -> Any:
    """A policy that has moved away from its base, as the lab loads it; neither lean nor shared yet."""
    settings = plain_model(folder).model_copy(update={"gradient_checkpointing": model.checkpointing})
    quant = Quant(bits=model.bits, threshold=0.0)  # type: ignore[arg-type]
    base = load_model(Located(folder, folder.name), settings, quant, model.precision, torch.device("cpu"))
    if model.full:
        return base.requires_grad_(True)
    if model.checkpointing:
        base.enable_input_require_grads()
    policy = new_adapter(base, tiny_lora(dropout=model.dropout), seed=0)
    move(policy, 0.3)
    return policy.eval()


def made(folders: Folders, model: Model) -> Any:
    """The policy of a run: lean where asked, and shared."""
    policy = loaded(folders[model], model)
    if model.full and model.precision == FP64:
        exact_norms(policy)  # trained, so not lean
    elif model.lean:
        make_lean(policy)
    assert share(policy, max_length=512, compute=model.precision.autocast) is None
    assert Forward(model.precision.autocast).shares(policy)
    return policy


def exact_norms(policy: nn.Module) -> None:
    """RMS norms in the dtype of their input: transformers' own round to fp32, whatever comes in."""
    for module in policy.modules():
        if hasattr(module, "variance_epsilon"):

            def forward(x: Tensor, module: Any = module) -> Tensor:
                return module.weight * (x / (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).sqrt())

            module.forward = forward  # type: ignore[method-assign]


LEAN = [Model(family, precision) for family in FAMILIES for precision in (FP32, FP64)]
PLAIN = [Model(family, lean=False) for family in FAMILIES]
QUANTISED = [Model(family, bits=bits) for family in FAMILIES for bits in (4, 8)]
CHECKPOINTED = [Model("llama", FP64, checkpointing=True), Model("qwen3", checkpointing=True, lean=False)]
CHECKPOINTED += [Model("llama", bits=4, checkpointing=True), Model("smollm3", bits=8, checkpointing=True)]
FULL = [Model("llama", FP64, full=True), Model("qwen2", full=True)]
MODELS = [*LEAN, *PLAIN, *QUANTISED, *CHECKPOINTED, *FULL]


class Policies:
    """The policy of each model, made once."""

    def __init__(self, folders: Folders) -> None:
        self.folders, self.made = folders, dict[Model, Any]()

    def __getitem__(self, model: Model) -> Any:
        if model not in self.made:
            self.made[model] = made(self.folders, model)
        assert causal_lm(self.made[model]).dtype == model.precision.weights
        return self.made[model]


@pytest.fixture(scope="module")
def policies(folders: Folders) -> Policies:
    return Policies(folders)


# -- what is compared -----------------------------------------------------------------------------------------------


def weights_of(layout: Layout) -> Tensor:
    """A factor for each completion token, as a loss would give it; none of them alike."""
    return torch.linspace(-1.0, 2.0, len(layout.targets), dtype=torch.float64) + 0.01


def gradients_of(policy: nn.Module, value: Tensor) -> dict[str, Tensor]:
    policy.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in trained(policy).items() if p.grad is not None}


def close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> bool:
    """Gradients of every parameter, relative to the largest of each."""
    assert set(ours) == set(theirs)
    return worst_gradient(ours, theirs) < tolerance


def own_logps(policy: Any, layout: Layout) -> Tensor:
    """From the model's own logits, one answer at a time, nothing beside it."""
    parts = []
    for prompt, p, start, n in layout.answers:
        ids = torch.cat([layout.ids[prompt : prompt + p], layout.ids[start : start + n]])
        logits = policy(input_ids=ids[None], use_cache=False).logits[0, p - 1 : -1]
        parts.append(logits.log_softmax(-1).gather(-1, ids[p:, None])[:, 0])
    return torch.cat(parts)


# -- the numbers ----------------------------------------------------------------------------------------------------


# The kinds of layouts that differ in how they are computed, for every model; the rest for each family.
CORE = ("ragged", "a very long prompt beside short ones", "a ranked list", "chosen is rejected")
PACKS = [(model, name) for model in MODELS for name in (EXAMPLES if model in LEAN else CORE)]


@pytest.mark.parametrize(("model", "name"), PACKS, ids=str)
def test_log_probs_and_their_gradients_are_those_of_the_padded_way(name: str, model: Model, policies: Policies) -> None:
    policy = policies[model]
    policy.train(model.checkpointing)
    layout = packed(name)
    weights = weights_of(layout)
    ours, theirs = SHARED.logps(policy, layout), PADDED.logps(policy, layout)
    assert ours.dtype == model.precision.weights
    assert difference(ours.detach(), theirs.detach()) < model.tolerance
    gradient, expected = (gradients_of(policy, (values * weights).sum()) for values in (ours, theirs))
    assert set(gradient) == set(trained(policy))
    assert close(gradient, expected, model.tolerance)


@pytest.mark.parametrize("loss", OBJECTIVES)
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_losses_and_their_gradients_are_those_of_the_padded_way(loss: str, model: Model, policies: Policies) -> None:
    policy = policies[model]
    policy.train(model.checkpointing)
    layout = packed("ragged")
    objective = OBJECTIVES[loss]

    def step(forward: Forward) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            if model.full:
                ref = torch.linspace(-9.0, -1.0, len(layout.targets), dtype=model.precision.weights)
            else:
                with adapter_off(policy)() as off:
                    ref = forward.logps(off, layout)
        losses = objective(objective.pairs(layout, forward.logps(policy, layout), ref))
        return losses.detach(), gradients_of(policy, losses.mean())

    losses, gradient = step(SHARED)
    theirs, expected = step(PADDED)
    assert len(losses) == 8
    assert losses.std() > 1e-3
    assert difference(losses, theirs) < model.tolerance
    assert close(gradient, expected, model.tolerance)


INDEPENDENT = [
    model for model in MODELS if not model.checkpointing and (model.lean or model.family in ("llama", "smollm3"))
]


@pytest.mark.parametrize("model", INDEPENDENT, ids=str)
@pytest.mark.parametrize(
    "name", ["ragged", "a very long prompt beside short ones", "a ranked list", "chosen is rejected"]
)
def test_log_probs_and_gradients_are_those_of_the_models_own_logits(
    name: str, model: Model, policies: Policies, folders: Folders
) -> None:
    """The other model is a second one, loaded from disk and neither lean nor shared."""
    policy = policies[model].eval()
    own = loaded(folders[model], model)
    if model.precision == FP64:
        exact_norms(own)
    layout = packed(name)
    theirs = own_logps(own, layout)
    expected = gradients_of(own, (theirs * weights_of(layout)).sum())
    for forward in (SHARED, PADDED):
        ours = forward.logps(policy, layout)
        assert difference(ours.detach(), theirs.detach()) < model.tolerance
        assert close(gradients_of(policy, (ours * weights_of(layout)).sum()), expected, model.tolerance)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_statistics_and_exact_kl_are_those_of_the_padded_way(model: Model, policies: Policies) -> None:
    policy = policies[model].eval()
    layout = packed("ragged")
    found = {}
    for forward in (SHARED, PADDED):
        logps, log_sum_sq, hidden = forward.statistics_and_hidden(policy, layout)
        assert difference(logps, forward.logps(policy, layout).detach()) < model.tolerance
        assert difference(log_sum_sq, forward.statistics(policy, layout)[1]) < model.tolerance
        assert difference(hidden, forward.logps_and_hidden(policy, layout)[1]) < model.tolerance
        head = head_of(causal_lm(policy))
        found[forward] = [logps.detach(), log_sum_sq.detach(), forward.kl(hidden, head, hidden.flip(0), head)]
    for ours, theirs in zip(found[SHARED], found[PADDED], strict=True):
        assert ours.shape == layout.targets.shape
        assert difference(ours, theirs) < model.tolerance
    assert found[SHARED][2].max() > 1e-2


# -- packs ----------------------------------------------------------------------------------------------------------


ONE = Model("llama", FP64)


@pytest.fixture(scope="module")
def one(folders: Folders) -> Any:
    return made(folders, ONE)


@pytest.mark.parametrize("name", EXAMPLES)
@torch.no_grad()
def test_a_pair_has_the_same_log_probs_alone_and_in_any_pack(name: str, one: Any) -> None:
    examples = EXAMPLES[name]
    everything = list(range(len(examples)))

    def by_pair(layouts: list[Layout]) -> Tensor:
        found: dict[int, Tensor] = {}
        for layout in layouts:
            tokens = [chosen + rejected for _, chosen, rejected in layout.lengths]
            found |= dict(zip(layout.index, SHARED.logps(one, layout).split(tokens), strict=True))
        assert sorted(found) == everything
        return torch.cat([found[i] for i in everything])

    alone = by_pair([collate([examples[i]], [i]) for i in everything])
    for cut in (
        [packed(name)],
        [collate(examples[::-1], everything[::-1])],
        microbatches(examples, everything, tokens=40, shared=True),
        microbatches(examples, everything, tokens=40),
    ):
        assert difference(by_pair(cut), alone) < 1e-9


@torch.no_grad()
def test_a_ranked_list_has_the_numbers_of_its_pairs_apart_from_fewer_tokens(one: Any) -> None:
    layout = packed("a ranked list")
    apart = [collate([e], [i]) for i, e in enumerate(EXAMPLES["a ranked list"])]
    assert len(layout.ids) < 0.5 * sum(len(x.ids) for x in apart)
    assert difference(SHARED.logps(one, layout), torch.cat([SHARED.logps(one, x) for x in apart])) < 1e-9


@torch.no_grad()
def test_other_tokens_of_one_pair_change_no_other_pair(one: Any) -> None:
    layout = packed("many pairs")
    before = SHARED.logps(one, layout)
    prompt, p, start, n = layout.answers[6]  # the chosen answer of the fourth pair
    ids = layout.ids.clone()
    ids[prompt : prompt + p] = 11
    ids[start : start + n] = 12
    changed = SHARED.logps(one, Layout(ids, layout.lengths, places=layout.places)) != before
    pairs_changed = [part.any().item() for part in changed.split([c + r for _, c, r in layout.lengths])]
    assert pairs_changed == [i == 3 for i in range(40)]


# -- 16 bit, dropout, training mode ---------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [MIXED, BF16, TRUE_BF16], ids=["fp32 under bf16", "bf16 under bf16", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lean", [True, False], ids=["lean", "not lean"])
def test_in_bf16_the_two_ways_are_close(family: str, precision: Precision, lean: bool, folders: Folders) -> None:
    policy = made(folders, Model(family, precision, lean=lean))
    layout = packed("ragged")
    found = []
    for shared in (True, False):
        forward = Forward(precision.autocast, shared=shared)
        logps = forward.logps(policy, layout)
        gradient = gradients_of(policy, (logps * weights_of(layout)).sum())
        found.append((logps.detach(), torch.cat([g.double().flatten() for g in gradient.values()])))
    (ours, gradient), (theirs, expected) = found
    assert (ours - theirs).abs().mean() < 5e-2
    assert torch.cosine_similarity(gradient, expected, dim=0) > 0.99


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "not lean"])
def test_dropout_of_the_adapter_changes_nothing_in_eval_mode(lean: bool, folders: Folders) -> None:
    layout = packed("ragged")
    dropped, plain = (made(folders, Model("llama", FP32, lean=lean, dropout=p)) for p in (0.5, 0.0))
    ours, theirs = (SHARED.logps(policy, layout) for policy in (dropped, plain))
    assert difference(ours.detach(), theirs.detach()) < 1e-5
    assert close(gradients_of(dropped, ours.sum()), gradients_of(plain, theirs.sum()), 1e-4)
    dropped.train()
    assert difference(SHARED.logps(dropped, layout).detach(), theirs.detach()) > 1e-2


def test_training_mode_and_gradients_do_not_change_the_log_probs(one: Any) -> None:
    layout = packed("ragged")
    with torch.no_grad():
        evaluated = SHARED.logps(one.eval(), layout)
    assert difference(SHARED.logps(one.train(), layout).detach(), evaluated) < 1e-12
    one.eval()
