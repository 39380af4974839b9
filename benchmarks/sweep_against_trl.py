"""A grid of 12 trials, end to end, against 12 runs of TRL at its best, on one machine in one call.

    python benchmarks/sweep_against_trl.py [--steps 8] [--heldout 16] [--batches 2,4,8] [WORD ...]

2 learning rates x 3 betas x 2 ranks on the demo pairs, 8 steps of 8 pairs each, and an evaluation of the held-out pairs at
the end of each. dpo_lab: `python -m dpo_lab --multirun launcher=processes launcher.n=2`, two trials at a time on one thread each,
with an empty reference cache, from the command to the report; WORDs take the place of these two overrides. TRL: a fresh
process a run, from its imports to its evaluation; the reference in advance, no checkpointing, pairs sorted by length, and
the best of --batches, which the first run finds. TRL runs three of the twelve settings; their mean is taken 12 times.
Writes benchmarks/results/sweep_against_trl.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dpo_lab.runtime.facts import device_facts, git_commit, versions
from dpo_lab.runtime.files import read_json, read_jsonl, write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "sweep_against_trl.json"
DEMO = ROOT / "dpo_lab" / "data" / "demo"
LRS, BETAS, RANKS = (1e-4, 2e-4), (0.05, 0.1, 0.3), (8, 16)
TIMED = ((1e-4, 0.05, 8), (2e-4, 0.3, 16), (1e-4, 0.1, 8))  # of the twelve, by TRL
BATCH = 8  # pairs per optimizer step


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "trl":
        return trl(json.loads(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--heldout", type=int, default=16, help="pairs that each run evaluates at its end")
    parser.add_argument("--batches", default="2,4,8", help="TRL's sizes of a forward pass of which the best counts")
    parser.add_argument("words", nargs="*", default=["launcher=processes", "launcher.n=2"], help="more overrides")
    options = parser.parse_args()
    batches = [int(b) for b in options.batches.split(",")]
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(Path(scratch), options.steps, options.heldout, batches, options.words)
    result |= {"versions": versions() | {"trl": package("trl")}, "device": device_facts(), "commit": git_commit()}
    write_json(RESULT, result)
    ours, theirs = result["dpo_lab"]["seconds"], result["trl"]["seconds_of_twelve"]
    print(f"dpo_lab {ours:.0f} s, TRL {theirs:.0f} s (3 of 12 timed): {theirs / ours:.2f}x; at least 4 asked for")
    return None


def package(name: str) -> str:
    from importlib.metadata import version

    return version(name)


def measure(scratch: Path, steps: int, heldout: int, batches: list[int], more: list[str]) -> dict[str, Any]:
    """Both sides, TRL's before and after ours."""
    pairs = steps * BATCH
    files = {}
    for name, source, n in (("train", "demo_train.jsonl", pairs), ("eval", "demo_eval.jsonl", heldout)):
        files[name] = scratch / f"{name}.jsonl"
        write_jsonl(files[name], read_jsonl(DEMO / source)[:n])
    first = {b: trl_run(scratch, files, TIMED[0], b) for b in batches}
    best = min(first, key=lambda b: first[b]["seconds"])
    runs = [first[best], trl_run(scratch, files, TIMED[1], best)]
    ours = sweep(scratch, files, steps, more)
    runs.append(trl_run(scratch, files, TIMED[2], best))
    mean = sum(run["seconds"] for run in runs) / len(runs)
    return {
        "what": f"12 trials of {steps} steps of {BATCH} demo pairs, {heldout} held-out pairs at the end, end to end",
        "dpo_lab": ours,
        "trl": {
            "batch": best,
            "seconds_by_batch": {str(b): run["seconds"] for b, run in first.items()},
            "runs": runs,
            "seconds_a_run": mean,
            "seconds_of_twelve": 12 * mean,
        },
        "ratio": 12 * mean / ours["seconds"],
        "target": 4.0,
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def sweep(scratch: Path, files: dict[str, Path], steps: int, more: list[str]) -> dict[str, Any]:
    """`python -m dpo_lab --multirun`; the converted model is there, as TRL's is, the reference is not."""
    cache = scratch / "cache"
    cache.mkdir()
    models = Path("~/.cache/dpo_lab/models").expanduser()
    if models.is_dir():
        (cache / "models").symlink_to(models)
    words = [
        "--multirun", "data=file", f"data.path={files['train']}", f"data.eval_path={files['eval']}", "data.format=trl",
        f"optim.batch_size={BATCH}", f"optim.max_steps={steps}", "optim.schedule=constant", "optim.warmup_ratio=0",
        f"optim.lr={','.join(map(str, LRS))}", f"loss.beta={','.join(map(str, BETAS))}", f"lora.r={','.join(map(str, RANKS))}",
        "lora.alpha=16", "trainer=cpu", "trainer.eval_every=0", "trainer.kl_pairs=0", "prompts=none", "logger=none", "sweep.name=grid",
        "doctor.enabled=false", *more, f"cache_dir={cache}", f"output_dir={scratch / 'outputs'}",
    ]  # fmt: skip
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "dpo_lab", *words], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        sys.exit(f"dpo_lab: exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    folders = [file.parent for file in (scratch / "outputs" / "sweeps" / "grid").glob("*/trial.json")]
    assert len(folders) == 12
    trials = [trial_facts(folder) for folder in folders]
    print(f"dpo_lab: {seconds:.1f} s for 12 trials", flush=True)
    return {"seconds": seconds, "trials": trials, "command": "python -m dpo_lab " + " ".join(words[:-2])}


def trial_facts(folder: Path) -> dict[str, Any]:
    rows = read_jsonl(folder / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    last = [row for row in rows if "val/loss" in row][-1]
    said = read_json(folder / "trial.json")
    found = {"axes": said["axes"], "first_loss": losses[0], "last_loss": losses[-1], "steps": len(losses)}
    return found | {"val_loss": last["val/loss"], "seconds": read_json(folder / "status.json")["seconds"]}


def trl_run(scratch: Path, files: dict[str, Path], setting: tuple[float, float, int], batch: int) -> dict[str, Any]:
    lr, beta, r = setting
    output = scratch / f"trl-{time.time_ns()}"
    spec = {"lr": lr, "beta": beta, "r": r, "batch": batch, "output": str(output)}
    spec |= {name: str(file) for name, file in files.items()} | {"model": str(model_folder())}
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        "HF_DATASETS_CACHE": str(scratch / "datasets"),
    }
    begun = time.perf_counter()
    words = [sys.executable, __file__, "trl", json.dumps(spec)]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        sys.exit(f"TRL: exit code {done.returncode}\n{done.stderr[-3000:]}")
    said = read_json(output / "said.json")
    print(f"TRL, lr {lr:g}, beta {beta:g}, r {r}, batch {batch}: {seconds:.1f} s", flush=True)
    return {"lr": lr, "beta": beta, "r": r, "batch": batch, "seconds": seconds} | said


def model_folder() -> Path:
    from against_trl_cases import _smollm2

    return _smollm2()


def trl(spec: dict[str, Any]) -> None:
    """One run of TRL, in a process of its own."""
    import torch
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    losses: list[float] = []

    class Losses(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                losses.append(float(logs["loss"]))

    def rows(file: str) -> Any:
        listed = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_jsonl(Path(file))]
        listed = [row if isinstance(row["prompt"], list) else conversational(row) for row in listed]
        by_length = sorted(listed, key=lambda row: len(json.dumps(row, ensure_ascii=False)))
        return Dataset.from_list(by_length)

    r = spec["r"]
    trainer: Any = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32, attn_implementation="sdpa"),
        args=DPOConfig(
            output_dir=spec["output"], max_length=1024, beta=spec["beta"], learning_rate=spec["lr"],
            lr_scheduler_type="constant", per_device_train_batch_size=spec["batch"], per_device_eval_batch_size=spec["batch"],
            gradient_accumulation_steps=BATCH // spec["batch"], num_train_epochs=1, weight_decay=0.0,
            train_sampling_strategy="sequential", report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
            use_cpu=True, bf16=False, gradient_checkpointing=False, precompute_ref_log_probs=True,
            optim="adamw_torch_fused",
        ),
        train_dataset=rows(spec["train"]),
        eval_dataset=rows(spec["eval"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=r, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"),  # type: ignore[arg-type]
        callbacks=[Losses()],
    )  # fmt: skip
    trainer.train()
    found = trainer.evaluate()
    facts = {"first_loss": losses[0], "last_loss": losses[-1], "steps": len(losses), "val_loss": found["eval_loss"]}
    write_json(Path(spec["output"]) / "said.json", facts)


def conversational(row: dict[str, Any]) -> dict[str, Any]:
    """Text as messages, so that TRL applies the chat template, as dpo_lab does."""
    sides = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
    return {"prompt": [{"role": "user", "content": row["prompt"]}]} | sides


if __name__ == "__main__":
    main()
