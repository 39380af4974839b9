"""Steps on a CUDA device: 16 bit, quantised, flash attention, each against fp32 on the CPU. Run with `pytest -m gpu`."""

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FP32, load_tiny, tiny_examples, tiny_policy, trained, write_tiny_model
from torch import Tensor

from dpo_lab.config.schema import Optim
from dpo_lab.data.collate import collate, microbatches
from dpo_lab.inference.scoring import Scorer
from dpo_lab.models.precision import Precision
from dpo_lab.preference.forward import Forward
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.losses import dpo_loss
from dpo_lab.preference.objective import Objective
from dpo_lab.preference.reference import LiveReference, adapter_off, frozen_model
from dpo_lab.training.module import PreferenceModule

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
EXAMPLES = tiny_examples()
BF16 = Precision("bf16", torch.bfloat16, torch.bfloat16)
FP16 = Precision("fp16", torch.float16, torch.float16)
needs_flash = pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs the package flash-attn")


@dataclass(frozen=True)
class Setting:
    """How the model is held and computed, and how close its gradient must be to fp32's (cosine)."""

    precision: Precision
    cosine: float
    quant: dict[str, Any] = field(default_factory=dict)
    attn: str = "auto"
    full: bool = False


SETTINGS = [
    pytest.param(Setting(FP32, 0.9999), id="fp32"),
    pytest.param(Setting(BF16, 0.95), id="bf16"),
    pytest.param(Setting(FP16, 0.99), id="fp16"),
    pytest.param(Setting(BF16, 0.95, {"bits": 4}), id="4-bit"),
    pytest.param(Setting(FP16, 0.95, {"bits": 4}), id="4-bit fp16"),
    pytest.param(Setting(BF16, 0.9, {"bits": 8}), id="8-bit"),
    pytest.param(
        Setting(Precision("bf16", torch.float32, torch.bfloat16), 0.95, full=True), id="full, bf16 under autocast"
    ),
    pytest.param(Setting(BF16, 0.95, attn="flash_attention_2"), id="flash attention", marks=needs_flash),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Activations of a real model's size, in layers that quantise into whole blocks."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}
    return write_tiny_model(tmp_path_factory.mktemp("models") / "gpu", **sizes)


def policy_of(folder: Path, setting: Setting, *, moved: float = 0.0, device: str = DEVICE) -> Any:
    if setting.full:
        return load_tiny(folder, setting.precision, device=device).requires_grad_(True)
    kwargs = {"device": device, "attn": setting.attn if device == DEVICE else "auto"} | setting.quant
    return tiny_policy(folder, setting.precision, moved=moved, **kwargs)


def module_of(policy: Any, setting: Setting, folder: Path, *, lr: float = 1e-2, steps: int = 8) -> PreferenceModule:
    optim = Optim.model_validate(
        {
            "_target_": "torch.optim.AdamW", "lr": lr, "weight_decay": 0.0, "batch_size": 8, "epochs": 1, "max_steps": None,
            "grad_clip": 1.0, "schedule": "constant", "warmup_ratio": 0.0,
        }
    )  # fmt: skip
    forward = Forward(setting.precision.autocast)
    own = frozen_model(load_tiny(folder, setting.precision, device=DEVICE)) if setting.full else adapter_off(policy)
    reference = LiveReference("live", own, forward)
    objective = Objective(dpo_loss, average="sum", beta=0.1)
    return PreferenceModule(policy, reference, forward, objective, optim, total_steps=steps, seed=0)


def batch(device: str) -> list[Layout]:
    return [layout.to(torch.device(device)) for layout in microbatches(EXAMPLES, list(range(8)), tokens=400)]


def gradient(policy: Any, setting: Setting, folder: Path, device: str) -> tuple[Tensor, float]:
    """All gradients of a step as one vector, and its loss."""
    module = module_of(policy, setting, folder)
    module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    _, losses = module.accumulation.of(0, batch(device))
    parts = [p.grad.float().flatten().cpu() for p in trained(policy).values() if p.grad is not None]
    assert len(parts) == len(trained(policy))
    return torch.cat(parts), losses.mean().item()


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_gradient_points_where_that_of_fp32_on_the_cpu_does(setting: Setting, folder: Path) -> None:
    ours, loss = gradient(policy_of(folder, setting, moved=0.2), setting, folder, DEVICE)
    plain = Setting(FP32, 1.0, setting.quant, full=setting.full)
    if setting.full:  # an untouched policy: its loss is ln 2, and its gradient is not zero
        policy = policy_of(folder, plain, device="cpu")
        module = module_of(policy, plain, folder)
        module.accumulation.reference = LiveReference("live", frozen_model(load_tiny(folder)), Forward())
        module.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
        expected = module.accumulation.of(0, batch("cpu"))[1].mean().item()
        theirs = torch.cat([p.grad.flatten() for p in trained(policy).values()])  # type: ignore[union-attr]
    else:
        theirs, expected = gradient(policy_of(folder, plain, moved=0.2, device="cpu"), plain, folder, "cpu")
    assert torch.isfinite(ours).all()
    assert loss == pytest.approx(expected, abs=0.15)
    assert torch.cosine_similarity(ours, theirs, dim=0).item() > setting.cosine


@pytest.mark.parametrize("setting", SETTINGS)
def test_eight_steps_through_lightning_lower_the_loss(
    setting: Setting, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In fp16 with a gradient scaler, which may skip the first updates while it finds its scale."""
    import lightning

    monkeypatch.chdir(tmp_path)
    policy = policy_of(folder, setting)
    before = {name: p.detach().clone() for name, p in trained(policy).items()}
    module = module_of(policy, setting, folder, lr=1e-3 if setting.full else 1e-2)
    losses, norms = [], []
    original = module.training_step

    def spy(step: list[Layout], batch_idx: int) -> None:
        original(step, batch_idx)
        losses.append(module.last["loss"])
        norms.append(module.last["grad_norm"])

    module.training_step = spy  # type: ignore[method-assign]
    trainer = lightning.Trainer(
        accelerator="gpu" if DEVICE == "cuda" else "cpu", devices=1, precision=setting.precision.lightning,  # type: ignore[arg-type]
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    steps: Any = torch.utils.data.DataLoader([batch("cpu")] * 8, batch_size=None, collate_fn=lambda step: step)  # type: ignore[arg-type]
    trainer.fit(module, steps)
    assert {p.device.type for p in policy.parameters()} == {DEVICE}  # evaluation and samples still need it there
    assert losses[0] == pytest.approx(math.log(2), abs=0.05)
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0] - 0.02
    assert sum(map(math.isfinite, norms)) >= 5
    assert all(not torch.equal(p.detach().cpu(), before[name].cpu()) for name, p in trained(policy).items())
    if setting.precision.name == "fp16":
        assert trainer.precision_plugin.state_dict()["scale"] > 1


@pytest.mark.parametrize("setting", SETTINGS)
@torch.no_grad()
def test_policy_and_reference_agree_at_the_start_whatever_the_batch(setting: Setting, folder: Path) -> None:
    policy, forward = policy_of(folder, setting), Forward(setting.precision.autocast)
    rows = list(range(8))
    together = forward.logps(policy, collate(EXAMPLES, rows).to(torch.device(DEVICE)))
    alone = torch.cat([forward.logps(policy, collate([EXAMPLES[i]], [i]).to(torch.device(DEVICE))) for i in rows])
    limit = 2e-2 if setting.quant.get("bits") == 8 else setting.precision.tolerance
    assert together.dtype == torch.float32
    assert (together - alone).abs().mean().item() < limit


def test_scores_and_exact_kl_of_an_untouched_policy(folder: Path) -> None:
    setting = Setting(BF16, 0.95)
    policy, forward = policy_of(folder, setting), Forward(BF16.autocast)
    scorer = Scorer(
        [],
        kl_layouts=[collate(EXAMPLES, list(range(8)))],
        forward=forward,
        reference=LiveReference("adapter_off", adapter_off(policy), forward),
        objective=Objective(dpo_loss, average="sum", beta=0.1),
        device=torch.device(DEVICE),
    )
    start, score = scorer.start(lambda n: None), scorer.score(policy, lambda n: None)
    assert start.metrics == pytest.approx(score.metrics, abs=1e-3)
    assert start.metrics["kl"] == 0.0


RUNS = {
    "bf16": ["trainer.precision=bf16"],
    "fp16": ["trainer.precision=fp16"],
    "4-bit": ["quant=4bit"],
    "8-bit": ["quant=8bit"],
    "full": ["lora=none", "reference.mode=frozen", "optim.lr=1e-3"],
    "DoRA on 4 bit": ["lora=dora", "quant=4bit"],
    "PiSSA": ["lora=pissa"],
    "a coupled loss in micro-batches": ["loss=aot", "trainer.microbatch_tokens=100"],
    "weighted pairs": ["loss.wpo=true", "loss.sft_weight=0.1"],
    "the reference on the CPU": ["reference=frozen", "reference.device=cpu"],
    "the reference in 16 bit": ["trainer.precision=32", "reference=frozen", "reference.dtype=bfloat16"],
    "paged optimizer": ["optim=paged_adamw8bit"],
    "Muon": ["optim=muon"],
    "scaled positions": ["model.rope.type=dynamic", "data.max_length=1000"],
    "checkpointing": ["model.gradient_checkpointing=true"],
    "no reference": ["loss=simpo"],
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_through_the_door(name: str, folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Say {i}.", "chosen": f"Gladly: {i}.", "rejected": "No!"} for i in range(24)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        *(sys.executable, "-m", "dpo_lab", "model=hf", f"model.path={folder}", "data=file", f"data.path={data}"),
        *("logger=none", "trainer.accelerator=" + ("gpu" if DEVICE == "cuda" else "cpu"), "data.eval_fraction=0.3"),
        *("optim.batch_size=4", "optim.max_steps=4", "generation.max_new_tokens=4", "prompts.count=1"),
        *(f"output_dir={tmp_path}/outputs", f"cache_dir={tmp_path}/cache", *RUNS[name]),
        *([] if any(word.startswith("optim.lr=") for word in RUNS[name]) else ["optim.lr=1e-2"]),
    ]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in metrics if "train/loss" in row]
    assert len(losses) == 4
    if not {"loss=simpo", "loss.sft_weight=0.1"} & set(RUNS[name]):
        assert losses[0] == pytest.approx(math.log(2), abs=0.1)
    assert all(map(math.isfinite, losses))
    assert (run / "final").is_dir()
