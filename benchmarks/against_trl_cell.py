"""One cell of benchmarks/against_trl.py, in a process of its own: one side trains once, and says how long it took.

    python benchmarks/against_trl_cell.py FOLDER SIDE BATCH RESULT [CACHE]

Both sides: the clock starts with the pairs tokenised and the model loaded, and stops at the end of the last optimizer
step. Imports, loading and tokenising are told apart ("before"), and so is TRL's hash of the model, as dpo_lab's hash of
the weights is taken while it loads. Each step's end waits for the device on both sides.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from against_trl_cases import compose

from dpo_lab.runtime.files import read_json, read_jsonl, write_json

BORN = time.perf_counter()
Measured = dict[str, Any]


class Clock:
    """Notes moments, when the device has done what it was told."""

    def __init__(self, cuda: bool) -> None:
        import torch

        self.cuda, self.torch = cuda, torch
        self.moments: dict[str, float] = {}
        self.steps: list[float] = []

    def now(self) -> float:
        if self.cuda:
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def note(self, name: str) -> None:
        self.moments[name] = self.now()

    def timed(self, name: str, call: Callable[[], Any]) -> Any:
        """Call, noting `name_begun` and `name_ended`."""
        self.note(f"{name}_begun")
        found = call()
        self.note(f"{name}_ended")
        return found

    def between(self, first: str, last: str) -> float:
        return self.moments[last] - self.moments[first] if first in self.moments else 0.0

    def measured(self) -> Measured:
        """Seconds of the parts; a step lasts from the end of the one before it, the first from the trainer's start."""
        begun = self.moments["training_begun"]
        ends = [begun, *self.steps]
        reference = self.between("reference_begun", "reference_ended")
        training = self.steps[-1] - begun
        between = self.moments.get("between", 0.0)  # what comes after the reference and before the trainer
        return {
            "seconds": reference + between + training,
            "reference_seconds": reference,
            "between_seconds": between,
            "training_seconds": training,
            "step_seconds": [b - a for a, b in zip(ends, ends[1:], strict=False)],
            "before": {"seconds": self.moments["before"] - BORN},
        }


def peak_gib(cuda: bool) -> Measured:
    """Of this process so far: resident memory, and the device's where it has its own."""
    import torch

    status = Path("/proc/self/status").read_text(encoding="ascii")
    kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    peaks = {"peak_rss_gib": kib / 2**20}
    if cuda:
        peaks["peak_cuda_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peaks


# dpo_lab


def dpo_lab_cell(folder: Path, spec: dict[str, Any], cache: Path) -> Measured:
    """`python -m dpo_lab` as it is, with timers around the reference pass and the training."""
    from dpo_lab.preference.ref_cache import answer_key
    from dpo_lab.training import align
    from dpo_lab.training.run import train

    clock, found = Clock(spec["case"]["device"] == "cuda"), dict[str, Any]()
    fill, fit = align.fill_reference, align.fit

    def timed_fill(run: Any, parts: Any) -> None:
        check_ids(parts.data.train, spec)
        examples = [parts.data.train[row] for row in range(len(parts.data.train))]
        keys = [answer_key(e.prompt_ids, ids) for e in examples for ids in (e.chosen_ids, e.rejected_ids)]
        found["reference_missing"] = len(set(parts.cache.missing(keys)))
        found["microbatch_tokens"] = parts.tokens
        clock.note("before")
        clock.timed("reference", lambda: fill(run, parts))

    def timed_fit(*args: Any, **kwargs: Any) -> None:
        callback = kwargs["callback"]
        after_step = callback.on_train_batch_end

        def on_train_batch_end(*given: Any, **named: Any) -> None:
            clock.steps.append(clock.now())
            after_step(*given, **named)

        callback.on_train_batch_end = on_train_batch_end
        clock.note("training_begun")
        clock.moments["between"] = clock.between("reference_ended", "training_begun")
        fit(*args, **kwargs)
        found.update(peak_gib(clock.cuda))

    align.fill_reference, align.fit = timed_fill, timed_fit
    output = folder / f"outputs-{time.time_ns()}"
    config, tree = compose([*spec["words"], f"cache_dir={cache}", f"output_dir={output}"])
    train(config, tree, output / "run")
    steps = [row for row in read_jsonl(output / "run" / "metrics.jsonl") if "train/loss" in row]
    curves = {"losses": [s["train/loss"] for s in steps], "grad_norms": [s["train/grad_norm"] for s in steps]}
    return clock.measured() | curves | found


def check_ids(examples: Any, spec: dict[str, Any]) -> None:
    """What is trained on is what TRL gets."""
    for row, ids in zip(spec["order"], spec["ids"], strict=True):
        example = examples[row]
        assert [example.prompt_ids, example.chosen_ids, example.rejected_ids] == ids, f"row {row} has other token ids"


def fill_only(folder: Path, spec: dict[str, Any], cache: Path) -> None:
    """The sweep's first trial, of another rank and learning rate, as far as it fills the cache."""
    from dpo_lab.training import align
    from dpo_lab.training.run import train

    class Enough(Exception):
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise Enough

    align.fit = stop
    case, output = spec["case"], folder / f"first-{time.time_ns()}"
    other = {"lora.r": 2 * case["rank"], "optim.lr": case["lr"] / 2}
    words = [word for word in spec["words"] if word.partition("=")[0] not in other]
    words += [f"{key}={value}" for key, value in other.items()]
    config, tree = compose([*words, f"cache_dir={cache}", f"output_dir={output}"])
    try:
        train(config, tree, output / "run")
    except Enough:
        return
    raise AssertionError("the trial went on without its training")


# TRL


def trl_settings(spec: dict[str, Any], side: str, batch: int, output: Path) -> dict[str, Any]:
    """DPOConfig of a side: what both must share, then TRL's defaults or its best."""
    case = spec["case"]
    cuda = case["device"] == "cuda"
    shared = {
        "output_dir": str(output), "max_length": case["max_length"], "beta": case["beta"], "learning_rate": case["lr"],
        "lr_scheduler_type": "constant", "per_device_train_batch_size": batch, "seed": case["seed"],
        "gradient_accumulation_steps": case["batch_size"] // batch, "num_train_epochs": 1, "weight_decay": 0.0,
        "train_sampling_strategy": "sequential", "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        # DPOConfig() asks for bf16 autocast everywhere, and on a machine without a GPU refuses to go on
        # without use_cpu. On a CPU without bf16 units it is several times slower, so fp32 favours TRL.
        "use_cpu": not cuda, "bf16": case["precision"] == "bf16",
    }  # fmt: skip
    if side == "trl_defaults":
        return shared
    return shared | {
        "gradient_checkpointing": False, "precompute_ref_log_probs": True, "logging_strategy": "no",
        "optim": "adamw_torch_fused",
    }  # fmt: skip


def trl_cell(folder: Path, spec: dict[str, Any], side: str, batch: int) -> Measured:
    """TRL's DPOTrainer on token ids; its constructor computes the reference where it is asked to in advance."""
    from importlib.util import find_spec

    import torch
    import trl.trainer.dpo_trainer as module
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    from dpo_lab.models.adapter_init import initialise

    case = spec["case"]
    cuda = case["device"] == "cuda"
    clock, best = Clock(cuda), side == "trl_best"
    disable_progress_bars()

    class Trainer(DPOTrainer):
        """On rows that are tokenised already, with timers, and keeping what it knows of each step."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            return clock.timed("reference", lambda: super(Trainer, self)._precompute_ref_logps(*args, **kwargs))

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            losses[-1].append(loss)
            return loss

    class AfterStep(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.steps.append(clock.now())
            losses.append([])

    losses: list[list[Any]] = [[]]
    norms: list[Any] = []
    hash_module = module.hash_module  # pyright: ignore[reportPrivateImportUsage]
    module.hash_module = lambda model: clock.timed("hash", lambda: hash_module(model))  # type: ignore[assignment]
    flash = best and cuda and find_spec("flash_attn") is not None
    model: Any = AutoModelForCausalLM.from_pretrained(
        spec["model"],
        dtype=torch.bfloat16 if best and cuda else torch.float32,
        attn_implementation="flash_attention_2" if flash else "sdpa",
    )
    rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), ids, strict=True)) for ids in spec["ids"]]
    r = case["rank"]
    trainer: Any = Trainer(
        model=model.to("cuda") if cuda else model,
        args=DPOConfig(**trl_settings(spec, side, batch, folder / f"trl-{time.time_ns()}")),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(spec["model"]),
        peft_config=LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),  # type: ignore[arg-type]
        callbacks=[AfterStep()],
    )  # fmt: skip
    initialise(trainer.model, SimpleNamespace(r=r, init="default"), seed=case["seed"])  # type: ignore[arg-type]
    clip = trainer.accelerator.clip_grad_norm_

    def clip_and_keep(*args: Any, **kwargs: Any) -> Any:
        norms.append(clip(*args, **kwargs))
        return norms[-1]

    trainer.accelerator.clip_grad_norm_ = clip_and_keep
    clock.note("before")
    clock.note("training_begun")
    trainer.train()
    peaks = peak_gib(cuda)
    measured = clock.measured()
    measured["before"]["seconds"] -= measured["reference_seconds"]
    measured["before"]["hash_seconds"] = clock.between("hash_begun", "hash_ended")
    args = trainer.args
    said = {
        "dtype": str(model.dtype), "attn": model.config._attn_implementation, "batch": args.per_device_train_batch_size,
        "accumulation": args.gradient_accumulation_steps, "bf16": args.bf16, "optim": str(args.optim),
        "gradient_checkpointing": args.gradient_checkpointing, "precompute_ref_log_probs": args.precompute_ref_log_probs,
    }  # fmt: skip
    curves = {"losses": [float(sum(step)) for step in losses if step], "grad_norms": [float(n) for n in norms]}
    return measured | peaks | curves | {"settings": said}


# The machine


def machine_cell(spec: dict[str, Any]) -> Measured:
    """The model's shape, and the machine's rate at its matrix products in the dtype of the products.

    For each shape of the decoder's linear layers, x W and then the gradient of x, over the tokens of a step (at most
    2048), each repeated for a fifth of a second; the operations of one pass through the layers over its seconds.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from dpo_lab.preference.flops import linear_shapes, shape_of

    case = spec["case"]
    cuda = case["device"] == "cuda"
    clock = Clock(cuda)
    dtype, device = torch.bfloat16 if cuda else torch.float32, torch.device(case["device"])
    with torch.device("meta"):
        from transformers import AutoConfig

        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(spec["model"]))
    lengths = sorted(sum(pair) for pair in spec["lengths"])
    tokens = min(2048, lengths[len(lengths) // 2] * case["batch_size"])
    operations = seconds = 0.0
    for (inner, outer), count in linear_shapes(model).items():
        weight = torch.randn(outer, inner, dtype=dtype, device=device) / inner**0.5
        x = torch.randn(tokens, inner, dtype=dtype, device=device)
        times: list[float] = []
        until = time.perf_counter() + 0.4
        while time.perf_counter() < until or len(times) < 4:
            begun = clock.now()
            _ = (x @ weight.T) @ weight
            times.append(clock.now() - begun)
        seconds += count * sorted(times[1:])[len(times[1:]) // 2]
        operations += count * 4.0 * tokens * inner * outer
    threads = torch.get_num_threads()
    shape = vars(shape_of(model))
    return {"shape": shape, "tokens": tokens, "matmul_flops": operations / seconds, "threads": threads}


def main() -> None:
    folder, side, batch, result = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    spec = read_json(folder / "spec.json")
    cache = Path(sys.argv[5]) if len(sys.argv) > 5 else folder
    if side == "fill":
        return fill_only(folder, spec, cache)
    if side == "machine":
        measured = machine_cell(spec)
    elif side.startswith("dpo_lab"):
        measured = dpo_lab_cell(folder, spec, cache)
    else:
        measured = trl_cell(folder, spec, side, batch)
    write_json(result, json.loads(json.dumps(measured)))
    return None


if __name__ == "__main__":
    main()
