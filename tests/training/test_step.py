"""One optimizer step: its gradient however it is cut, what it changes, and what is measured before and after."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.nn.functional as F
from tiny import (
    CASES,
    FP32,
    FP64,
    difference,
    load_tiny,
    move,
    tiny_examples,
    tiny_lora,
    tiny_policy,
    trained,
    worst_gradient,
    write_tiny_model,
)
from torch import Tensor, nn

from dpo_lab.config.schema import Optim
from dpo_lab.data.collate import collate, microbatches
from dpo_lab.inference.scoring import Scorer
from dpo_lab.models.lora import new_adapter
from dpo_lab.models.precision import Precision
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.losses import dpo_loss, ipo_loss
from dpo_lab.preference.objective import Objective
from dpo_lab.preference.ref_cache import RefCache
from dpo_lab.preference.reference import (
    CachedReference,
    LiveReference,
    Reference,
    adapter_off,
    fill_cache,
    frozen_model,
)
from dpo_lab.runtime.errors import Guarded
from dpo_lab.training.module import PreferenceModule

EXAMPLES = tiny_examples()
ALL = list(range(8))
DPO = Objective(dpo_loss, average="sum", beta=0.1)
IPO = Objective(ipo_loss, average="mean", beta=0.1)


def cut(*groups: list[int]) -> list[Layout]:
    return [collate([EXAMPLES[i] for i in group], group) for group in groups]


def optim(**changes: Any) -> Optim:
    """Plain gradient descent, so that an update is the gradient."""
    return Optim.model_validate(
        {
            "_target_": "torch.optim.SGD", "lr": 0.1, "weight_decay": 0.0, "batch_size": 8, "epochs": 1, "max_steps": None,
            "grad_clip": None, "schedule": "constant", "warmup_ratio": 0.0,
        }
        | changes
    )  # fmt: skip


def module_of(
    policy: nn.Module,
    *,
    reference: Reference | None = None,
    objective: Objective = DPO,
    seed: int = 0,
    steps: int = 1,
    **changes: Any,
) -> PreferenceModule:
    reference = reference or LiveReference("adapter_off", adapter_off(policy), Forward())
    return PreferenceModule(policy, reference, Forward(), objective, optim(**changes), total_steps=steps, seed=seed)


def accumulated(policy: nn.Module, batch: list[Layout], objective: Objective = DPO) -> tuple[dict[str, Tensor], Tensor]:
    """The gradient of one step before the optimizer, and the losses of its pairs."""
    module = module_of(policy, objective=objective)
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    policy.zero_grad()
    _, losses = module.accumulation.of(0, batch)
    return {name: p.grad.clone() for name, p in trained(policy).items() if p.grad is not None}, losses


def fit(module: PreferenceModule, steps: list[list[Layout]], **kwargs: Any) -> lightning.Trainer:
    """The steps through Lightning, as a run does them."""
    trainer = lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **kwargs,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(steps, batch_size=None, collate_fn=lambda step: step))  # type: ignore[arg-type]
    return trainer


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- the gradient -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [DPO, IPO], ids=["dpo", "ipo"])
@pytest.mark.parametrize(
    "name", ["llama fp32", "llama fp64", "qwen2 fp32", "qwen2 fp64", "4-bit", "8-bit, outliers apart"]
)
def test_eight_pairs_have_one_gradient_however_they_are_cut(
    name: str, objective: Objective, request: pytest.FixtureRequest
) -> None:
    case = CASES[name]
    policy = tiny_policy(request.getfixturevalue(case.fixture), case.precision, moved=0.3, **case.quant)
    whole, losses = accumulated(policy, cut(ALL), objective)
    for batch in (cut(*([i] for i in ALL)), cut([7, 6], [5, 0, 3], [1, 2, 4]), microbatches(EXAMPLES, ALL, tokens=256)):
        gradient, again = accumulated(policy, batch, objective)
        assert len(batch) > 2
        assert worst_gradient(gradient, whole) < case.tolerance
        order = torch.tensor([i for layout in batch for i in layout.index])
        assert difference(again, losses[order]) < case.tolerance


def all_logits_loss(policy: Any, *, ipo: bool, beta: float) -> Tensor:
    """DPO with summed or IPO with averaged log-probs, on all logits, one answer at a time, by autograd alone."""

    def logps(prompt: list[int], answer: list[int]) -> Tensor:
        ids = torch.tensor([prompt + answer])
        logits = policy(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        return -F.cross_entropy(logits, torch.tensor(answer), reduction="mean" if ipo else "sum")

    losses = []
    for e in EXAMPLES:
        chosen, rejected = logps(e.prompt_ids, e.chosen_ids), logps(e.prompt_ids, e.rejected_ids)
        with torch.no_grad(), policy.disable_adapter():
            ref_chosen, ref_rejected = logps(e.prompt_ids, e.chosen_ids), logps(e.prompt_ids, e.rejected_ids)
        margin = (chosen - ref_chosen) - (rejected - ref_rejected)
        losses.append((margin - 1 / (2 * beta)) ** 2 if ipo else torch.log1p(torch.exp(-beta * margin)))
    return torch.stack(losses)


@pytest.mark.parametrize("objective", [DPO, IPO], ids=["dpo", "ipo"])
@pytest.mark.parametrize("family", ["tiny_model", "tiny_qwen"])
def test_the_gradient_is_that_of_all_logits_by_autograd(
    family: str, objective: Objective, request: pytest.FixtureRequest
) -> None:
    policy = tiny_policy(request.getfixturevalue(family), FP64, moved=0.3)
    ours, losses = accumulated(policy, cut([0, 1, 2], [3, 4, 5, 6, 7]), objective)
    policy.zero_grad()
    expected = all_logits_loss(policy, ipo=objective is IPO, beta=0.1)
    expected.mean().backward()
    theirs = {name: p.grad for name, p in trained(policy).items() if p.grad is not None}
    assert difference(losses, expected.detach()) < 1e-9
    assert worst_gradient(ours, theirs) < 1e-9


def test_full_fine_tuning_has_the_same_gradient_too(tiny_model: Path) -> None:
    """The head is trained, and tied to the embedding."""
    policy: Any = load_tiny(tiny_model, FP64).requires_grad_(True)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype))
    frozen = load_tiny(tiny_model, FP64)
    module = module_of(policy, reference=LiveReference("frozen", frozen_model(frozen), Forward()))
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    module.accumulation.of(0, cut([0, 1, 2], [3, 4, 5, 6, 7]))
    ours = {name: p.grad.clone() for name, p in trained(policy).items()}  # type: ignore[union-attr]
    policy.zero_grad()
    forward, layout = Forward(), cut(ALL)[0]
    losses = []
    for e, ref in zip(EXAMPLES, frozen_sums(frozen, layout), strict=True):
        sums = [
            -F.cross_entropy(
                policy(input_ids=torch.tensor([e.prompt_ids + answer])).logits[0, len(e.prompt_ids) - 1 : -1],
                torch.tensor(answer),
                reduction="sum",
            )
            for answer in (e.chosen_ids, e.rejected_ids)
        ]
        losses.append(-F.logsigmoid(0.1 * (sums[0] - sums[1] - (ref[0] - ref[1]))))
    torch.stack(losses).mean().backward()
    theirs = {name: p.grad for name, p in trained(policy).items()}
    assert "model.embed_tokens.weight" in theirs
    assert forward.compute is None
    assert worst_gradient(ours, theirs) < 1e-9  # type: ignore[arg-type]


@torch.no_grad()
def frozen_sums(frozen: nn.Module, layout: Layout) -> list[Tensor]:
    return list(layout.answer_sums(Forward().logps(frozen, layout)).view(-1, 2))


# -- the step -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "loss"), [(DPO, math.log(2)), (IPO, 25.0)], ids=["dpo", "ipo"])
def test_the_first_step_starts_at_ln_2_or_25_with_margin_and_accuracy_0(
    objective: Objective, loss: float, tiny_model: Path
) -> None:
    policy = tiny_policy(tiny_model)
    module = module_of(policy, objective=objective)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    fit(module, [cut([0, 1, 2], [3, 4, 5, 6, 7])])
    last = module.last
    assert last["loss"] == pytest.approx(loss, abs=1e-4)
    assert last["rewards/margins"] == last["rewards/accuracies"] == 0.0
    assert last["lr"] == 0.1
    assert module.step == 1
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in trained(policy) if "lora_B" in name}  # A has no gradient while B is zero
    norm = torch.stack([(p.detach() - before[n]).norm() / 0.1 for n, p in trained(policy).items()]).norm().item()
    assert last["grad_norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_under_lightnings_autocast_policy_and_cached_reference_still_agree(
    full: bool, tiny_wide: Path, tmp_path: Path
) -> None:
    """In bf16 a step runs under autocast as a whole, and the pass that fills the cache does not."""
    bf16 = Precision("bf16", torch.float32 if full else torch.bfloat16, torch.bfloat16)
    policy: Any = load_tiny(tiny_wide, bf16).requires_grad_(True) if full else tiny_policy(tiny_wide, bf16)
    forward, cache = Forward(bf16.autocast), RefCache(tmp_path, "a" * 16, facts={})
    fill_cache(
        cache, cut(ALL), lambda: nullcontext(policy), forward, device=torch.device("cpu"), on_batch=lambda n: None
    )
    module = PreferenceModule(policy, CachedReference(cache, None), forward, IPO, optim(), total_steps=1, seed=0)
    fit(module, [cut(ALL)], precision="bf16-mixed")
    assert module.last["logratios/chosen"] == pytest.approx(0.0, abs=1e-5)
    assert module.last["logratios/rejected"] == pytest.approx(0.0, abs=1e-5)


def test_a_step_descends_and_a_second_one_changes_every_adapter_weight(tiny_model: Path) -> None:
    policy = tiny_policy(tiny_model)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    module = module_of(policy, steps=6)
    losses = []
    for _ in range(6):
        fit(module, [cut(ALL)])
        losses.append(module.last["loss"])
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.01
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(trained(policy))


def test_every_step_takes_its_own_gradient_and_nothing_of_the_step_before(tiny_model: Path) -> None:
    steps = [cut([0, 1], [2, 3, 4]), cut([5, 6], [7]), cut([1, 7])]
    lightnings, by_hand = (tiny_policy(tiny_model, FP64, moved=0.3) for _ in range(2))
    fit(module_of(lightnings, steps=3), steps, precision="64-true")
    for batch in steps:
        gradient, _ = accumulated(by_hand, batch)
        with torch.no_grad():
            for name, p in trained(by_hand).items():
                p -= 0.1 * gradient[name]
    expected = trained(by_hand)
    assert all(difference(p.detach(), expected[name].detach()) < 1e-9 for name, p in trained(lightnings).items())


def test_full_fine_tuning_changes_all_weights(tiny_model: Path) -> None:
    policy: Any = load_tiny(tiny_model).requires_grad_(True)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    fit(
        module_of(policy, reference=LiveReference("frozen", frozen_model(load_tiny(tiny_model)), Forward())), [cut(ALL)]
    )
    assert all(not torch.equal(p, before[name]) for name, p in policy.named_parameters())


def test_clipping_scales_the_update_and_reports_the_norm_before(tiny_model: Path) -> None:
    updates, norms = [], []
    for limit in (None, 0.5):
        policy = tiny_policy(tiny_model, moved=0.3)
        before = {name: p.detach().clone() for name, p in trained(policy).items()}
        module = module_of(policy, grad_clip=limit)
        fit(module, [cut(ALL)])
        norms.append(module.last["grad_norm"])
        updates.append(torch.cat([(p.detach() - before[name]).flatten() for name, p in trained(policy).items()]))
    assert norms[0] == norms[1] > 1
    torch.testing.assert_close(updates[1], updates[0] * 0.5 / norms[0], rtol=1e-3, atol=1e-6)


def test_the_schedule_counts_optimizer_steps_and_not_micro_batches(tiny_model: Path) -> None:
    module, rates = module_of(tiny_policy(tiny_model), steps=4, schedule="linear", warmup_ratio=0.5), []
    original = module.training_step

    def spy(batch: list[Layout], batch_idx: int) -> None:
        original(batch, batch_idx)
        rates.append(module.last["lr"])

    module.training_step = spy  # type: ignore[method-assign]
    fit(module, [cut([i], [i + 1], [i + 2]) for i in range(4)])
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.05])


def test_dropout_is_a_function_of_seed_and_step(tiny_model: Path) -> None:
    def after(seed: int, *, shifted: bool = False, first: int = 0) -> float:
        policy = new_adapter(load_tiny(tiny_model), tiny_lora(dropout=0.3), seed=0).eval()  # the step turns dropout on
        move(policy, 0.3)
        module = module_of(policy, seed=seed)
        module.step = first
        torch.manual_seed(999 if shifted else 1)  # as an evaluation or a restart would leave it
        fit(module, [cut(ALL)])
        return module.last["loss"]

    assert after(0) == after(0, shifted=True)
    assert len({after(0), after(1), after(0, first=1)}) == 3


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(tiny_model: Path) -> None:
    policy = tiny_policy(tiny_model, moved=0.3)
    with torch.no_grad():
        next(iter(trained(policy).values())).fill_(math.nan)
    with pytest.raises(Guarded, match="loss of step 1 is nan"):
        fit(module_of(policy), [cut(ALL)])


def test_a_first_gradient_of_zero_stops_the_run(tiny_model: Path) -> None:
    nothing = Objective(lambda chosen_logps: 0.0 * chosen_logps, average="sum", beta=None)
    with pytest.raises(Guarded, match="gradient of the first step is zero"):
        fit(module_of(tiny_policy(tiny_model), objective=nothing), [cut(ALL)])


# -- where the adapter starts ---------------------------------------------------------------------------------------


def adapter_start(folder: Path, *, seed: int, targets: Any = "all-linear") -> dict[str, Tensor]:
    policy = new_adapter(load_tiny(folder), tiny_lora(target_modules=targets), seed=seed)
    return {name: p.detach() for name, p in trained(policy).items()}


def test_an_adapter_starts_at_zero_from_its_seed_and_module_name_alone(tiny_model: Path) -> None:
    torch.manual_seed(1)
    everything = adapter_start(tiny_model, seed=0)
    torch.manual_seed(2)
    some = adapter_start(tiny_model, seed=0, targets=["v_proj", "down_proj", "q_proj"])
    other = adapter_start(tiny_model, seed=1)
    assert set(some) < set(everything)
    assert {name.split(".")[-4] for name in some} == {"q_proj", "v_proj", "down_proj"}
    first = [name for name in everything if "lora_A" in name]
    assert all(torch.equal(some[name], everything[name]) for name in some)
    assert not any(torch.equal(other[name], everything[name]) for name in first)
    assert all((p == 0).all() for name, p in everything.items() if "lora_B" in name)
    shapes: dict[Any, list[Tensor]] = {}
    for name in first:
        shapes.setdefault(everything[name].shape, []).append(everything[name])
    for same in shapes.values():  # no two modules start alike
        assert len({tuple(p.flatten().tolist()) for p in same}) == len(same) > 1


def test_an_adapter_is_as_large_as_peft_draws_it(tiny_model: Path) -> None:
    for name, p in adapter_start(tiny_model, seed=0).items():
        if "lora_A" in name:
            bound = 1 / math.sqrt(p.shape[1])  # kaiming_uniform_ with a = sqrt(5)
            assert 0.9 * bound < p.abs().max() <= bound


# -- evaluation -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[FP32, FP64], ids=["fp32", "fp64"])
def scored(request: pytest.FixtureRequest, tiny_model: Path) -> tuple[Any, Scorer]:
    """A policy and its scorer: pairs 5, 6, 7 without KL, the others with it, all out of order."""
    policy = tiny_policy(tiny_model, request.param)
    return (
        policy,
        Scorer(
            cut([7, 5], [6]),
            kl_layouts=cut([4, 1], [0, 3, 2]),
            forward=Forward(),
            reference=LiveReference("adapter_off", adapter_off(policy), Forward()),
            objective=DPO,
            device=torch.device("cpu"),
        ),
    )


def test_the_scores_at_the_start_are_those_of_an_untouched_policy(scored: tuple[Any, Scorer]) -> None:
    policy, scorer = scored
    seen: list[int] = []
    start, score = scorer.start(seen.append), scorer.score(policy.train(), seen.append)
    assert policy.training
    assert seen == [2, 3, 2, 1] * 2
    assert len(scorer) == 8
    assert start.metrics.keys() == score.metrics.keys()
    assert start.metrics == pytest.approx(score.metrics, abs=1e-6)
    assert start.metrics["loss"] == pytest.approx(math.log(2))
    assert start.metrics["kl"] == start.metrics["rewards/accuracies"] == start.metrics["rewards/margins"] == 0.0
    assert [r["index"] for r in start.records] == [r["index"] for r in score.records] == ALL
    for ours, theirs in zip(start.records, score.records, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def test_records_stand_in_the_order_of_the_data_and_hold_their_own_pair(scored: tuple[Any, Scorer]) -> None:
    policy, scorer = scored
    move(policy, 0.3)
    scores = scorer.score(policy, lambda n: None)
    ref = scorer.reference.logps(cut(ALL)[0])
    with torch.no_grad():
        own = cut(ALL)[0].answer_sums(Forward().logps(policy, cut(ALL)[0])).view(-1, 2)
    ref_sums = cut(ALL)[0].answer_sums(ref).view(-1, 2)
    for i, record in enumerate(scores.records):
        assert record["index"] == i
        assert (record["chosen_tokens"], record["rejected_tokens"]) == EXAMPLES[i].lengths[1:]
        assert (record["chosen_logps"], record["rejected_logps"]) == pytest.approx(tuple(own[i].tolist()), rel=1e-5)
        assert (record["ref_chosen_logps"], record["ref_rejected_logps"]) == pytest.approx(
            tuple(ref_sums[i].tolist()), rel=1e-5
        )
    assert scores.metrics["loss"] == pytest.approx(sum(r["loss"] for r in scores.records) / 8)


@torch.no_grad()
def test_kl_is_0_at_the_start_and_afterwards_that_of_the_full_distributions(scored: tuple[Any, Scorer]) -> None:
    policy, scorer = scored
    assert abs(scorer.score(policy, lambda n: None).metrics["kl"]) < 1e-6
    move(policy, 0.3)
    kl = scorer.score(policy, lambda n: None).metrics["kl"]
    expected = []
    for e in EXAMPLES[:5]:  # the pairs of kl_layouts
        for answer in (e.chosen_ids, e.rejected_ids):
            ids = torch.tensor([e.prompt_ids + answer])
            here = slice(len(e.prompt_ids) - 1, -1)
            ours = torch.distributions.Categorical(logits=policy(input_ids=ids).logits[0, here])
            with policy.disable_adapter():
                theirs = torch.distributions.Categorical(logits=policy(input_ids=ids).logits[0, here])
            expected.append(torch.distributions.kl_divergence(ours, theirs))
    assert kl > 0.01
    assert kl == pytest.approx(torch.cat(expected).mean().item(), rel=1e-4)


def test_kl_is_that_of_each_models_own_head(tmp_path: Path) -> None:
    """A trained head is the policy's alone, though both are one object in memory."""
    folder = write_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
    policy = new_adapter(load_tiny(folder, FP64), tiny_lora(modules_to_save=["lm_head"]), seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trained(policy).items():
        if "lm_head" in name:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    layout, forward = collate(EXAMPLES, ALL), Forward()
    scorer = Scorer(
        [], kl_layouts=[layout], forward=forward, objective=DPO, device=torch.device("cpu"),
        reference=LiveReference("adapter_off", adapter_off(policy), forward),
    )  # fmt: skip
    expected = []
    for e in EXAMPLES:
        for answer in (e.chosen_ids, e.rejected_ids):
            ids, here = torch.tensor([e.prompt_ids + answer]), slice(len(e.prompt_ids) - 1, -1)
            with torch.no_grad():
                ours = torch.distributions.Categorical(logits=policy(input_ids=ids).logits[0, here])
                with policy.disable_adapter():
                    theirs = torch.distributions.Categorical(logits=policy(input_ids=ids).logits[0, here])
            expected.append(torch.distributions.kl_divergence(ours, theirs))
    kl = scorer.score(policy, lambda n: None).metrics["kl"]
    assert kl > 0.1
    assert kl == pytest.approx(torch.cat(expected).mean().item(), rel=1e-9)
