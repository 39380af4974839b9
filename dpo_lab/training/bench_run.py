"""The measurement behind `python -m dpo_lab.bench`: real steps of the real trainer, in a folder that goes away."""

import dataclasses
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dpo_lab.data.collate import count
from dpo_lab.data.module import Steps
from dpo_lab.data.prepare import Split
from dpo_lab.preference.flops import Shape, linear_shapes, reference_flops, shape_of, training_flops
from dpo_lab.preference.layout import Layout
from dpo_lab.preference.ref_cache import RefCache
from dpo_lab.preference.reference import CachedReference
from dpo_lab.runtime.errors import Guarded
from dpo_lab.training.bench_clock import Clock, Step
from dpo_lab.training.bench_memory import Peak
from dpo_lab.training.bench_profile import Profile
from dpo_lab.training.bench_rate import matmul_rate, published_peak
from dpo_lab.training.fit import fit
from dpo_lab.training.parts import Parts, RunContext, load_parts
from dpo_lab.training.ranks import Ranks
from dpo_lab.training.reference import check_agreement, fill_reference


def measure(run: RunContext, split: Split, trace: Path | None) -> dict[str, Any]:
    """Train for a few steps and say how fast; the keys are those of the JSON file.

    Args:
        run: what is asked, with optim.max_steps as many as are needed, in a temporary folder.
        split: the pairs.
        trace: where the profiler's trace goes.

    Raises:
        Guarded: nothing was learned, so the time means nothing.
    """
    asked = run.config.bench
    assert asked is not None
    parts = load_parts(run, split, None)
    parts.data = dataclasses.replace(parts.data, heldout=parts.data.heldout[:0])
    _start_without_cache(parts, run.folder.path)
    peak = Peak(parts.device)
    loaded = peak.now()
    reference, reference_peak = _reference_pass(run, parts, peak)
    check_agreement(run, parts)
    shape, shapes = shape_of(parts.policy), linear_shapes(parts.policy)
    rates = [_matmul_rate(run, parts, shapes)]
    peak.restart()
    profile = Profile(parts.device, shapes=trace is not None)
    with run.terminal.progress("training", parts.steps, unit="steps") as bar:
        clock = Clock(
            warmup=asked.warmup,
            timed=asked.steps,
            profile=profile,
            peak=peak,
            device=parts.device,
            interrupt=run.interrupt,
            bar=bar,
        )
        fit(run.config, parts, run.folder, ranks=Ranks(), resume=None, callback=clock)
    rates.append(_matmul_rate(run, parts, shapes))
    steps = clock.measured
    check_learning(steps)
    report = {
        "bench": asked.model_dump(),
        "step": _times(steps),
        "tokens": _tokens(steps, parts.tokens),
        "flops": _flops(run, parts, shape, steps, rates),
        "reference": reference | _read_seconds(parts, steps),
        "memory": {"what": peak.what, "loaded": loaded, "reference_peak": reference_peak}
        | {"peak": clock.peak_bytes, "increase": clock.peak_bytes - loaded, "exact": peak.exact},
        "split": None,
        "learning": {
            "trainable_parameters": parts.facts["trainable_parameters"],
            "loss": [step.loss for step in clock.steps],
            "grad_norm": [step.grad_norm for step in clock.steps],
        },
        "trace": None,
        "facts": {k: v for k, v in parts.facts.items() if k not in ("name", "run_id")},
    }
    if asked.profiled:
        found = profile.split(clock.profiled_seconds)
        report["split"] = dataclasses.asdict(found) | {"shares": found.shares}
        if trace is not None:
            with run.terminal.working("writing the trace"):
                report["trace"] = str(profile.write(trace))
    return report


def check_learning(steps: list[Step]) -> None:
    """The time of steps that train nothing means nothing.

    Raises:
        Guarded: every gradient is zero.
    """
    if not any(step.grad_norm > 0 for step in steps):
        raise Guarded(
            f"The gradients of the {len(steps)} timed steps are all zero, so nothing was learned and their time means "
            "nothing. Lower optim.lr, or check the loss's hyper-parameters."
        )


def _start_without_cache(parts: Parts, folder: Path) -> None:
    """Let the reference's log-probs be computed, though they may be on disk, and kept for this call alone."""
    parts.cache = RefCache(folder, parts.cache.path.stem, facts={})
    if isinstance(parts.reference, CachedReference):
        parts.reference.cache = parts.cache


def _reference_pass(run: RunContext, parts: Parts, peak: Peak) -> tuple[dict[str, Any], int]:
    """Time of computing the log-probs that training reads, and the most bytes that it takes."""
    peak.restart()
    begun = time.perf_counter()
    fill_reference(run, parts)
    seconds = time.perf_counter() - begun
    cached = parts.reference.mode == "cached"
    return {"mode": parts.reference.mode, "seconds": seconds if cached else None}, peak.peak()


def _read_seconds(parts: Parts, steps: list[Step]) -> dict[str, float | None]:
    """What it takes to read the log-probs of a step."""
    if parts.reference.mode != "cached":
        return {"read_seconds_per_step": None}
    begun = time.perf_counter()
    for layout in (layout for step in steps for layout in step.layouts):
        parts.reference.logps(layout)
    return {"read_seconds_per_step": (time.perf_counter() - begun) / len(steps)}


def _times(steps: list[Step]) -> dict[str, Any]:
    seconds = [step.seconds for step in steps]
    pairs = sum(len(layout) for layout in steps[0].layouts)
    median = statistics.median(seconds)
    return {
        "seconds": {"median": median, "min": min(seconds), "max": max(seconds), "all": seconds},
        "waited_for_data": statistics.median(step.waited for step in steps),
        "pairs": pairs,
        "pairs_per_second": pairs / median,
        "tokens_per_second": statistics.median(_packed(step.layouts) / step.seconds for step in steps),
    }


def _tokens(steps: list[Step], limit: int) -> dict[str, Any]:
    """Tokens of a step and of a micro-batch, as they are packed and as rows of prompt + answer would be padded."""
    layouts = [layout for step in steps for layout in step.layouts]
    return {
        "step": statistics.median(_packed(step.layouts) for step in steps),
        "step_padded": statistics.median(sum(count(x, shared=False) for x in step.layouts) for step in steps),
        "answers": statistics.median(sum(n for x in step.layouts for *_, n in x.answers) for step in steps),
        "all": [_packed(step.layouts) for step in steps],
        "microbatches": statistics.median(len(step.layouts) for step in steps),
        "microbatch": statistics.median(len(layout.ids) for layout in layouts),
        "microbatch_most": max(len(layout.ids) for layout in layouts),
        "microbatch_limit": limit,
    }


def _packed(layouts: list[Layout]) -> int:
    return sum(len(layout.ids) for layout in layouts)


def _flops(run: RunContext, parts: Parts, shape: Shape, steps: list[Step], rates: list[float]) -> dict[str, Any]:
    """Operations of the steps, and their share of what the machine can do.

    model FLOP utilisation = (4 N (p + R) + 4 V d R + 3 attention) / step seconds / the rate of the machine, with 6 for
    the first two 4 in full fine-tuning, and a forward pass more where the reference is computed in every step; see
    `preference.flops`. The rate is (a) that of the model's own products, the better of two measurements before and
    after the steps, and (b) what the maker of the GPU publishes, or `bench.peak_tflops`.
    """
    frozen, live = run.config.lora.r is not None, parts.reference.present and parts.reference.mode != "cached"
    needed: list[float] = []
    for step in steps:
        lengths = [(p, *(n for _, n in answers)) for x in step.layouts for (_, p), answers in x.runs]
        again = reference_flops(shape, lengths) if live else 0.0
        needed.append(training_flops(shape, lengths, frozen=frozen) + again)
    achieved = statistics.median(n / step.seconds for n, step in zip(needed, steps, strict=True))
    rate, peak = max(rates), _peak(run, parts)
    return {
        "shape": dataclasses.asdict(shape),
        "step": statistics.median(needed),
        "per_second": achieved,
        "matmul_rate": rate,
        "matmul_rates": rates,
        "matmul_dtype": str(_dtype(run, parts)).removeprefix("torch."),
        "share_of_matmul_rate": achieved / rate,
        "peak": peak,
        "share_of_peak": achieved / peak if peak else None,
    }


def _matmul_rate(run: RunContext, parts: Parts, shapes: Mapping[tuple[int, int], int]) -> float:
    """The machine's rate for the model's products, with as many rows as a micro-batch of the first step has tokens."""
    config, train = run.config, parts.data.train
    first = Steps(
        train,
        start=0,
        end=1,
        batch_size=config.optim.batch_size,
        seed=config.data.seed,
        tokens=parts.tokens,
        shared=parts.passes.shared,
    )[0]
    rows = round(statistics.median(len(layout.ids) for layout in first))
    with run.terminal.working("measuring the machine's matmul rate"):
        return matmul_rate(shapes, rows, dtype=_dtype(run, parts), device=parts.device)


def _dtype(run: RunContext, parts: Parts) -> torch.dtype:
    """Of the products."""
    precision = parts.precision
    return precision.quant_compute if run.config.quant.bits == 4 else precision.autocast or precision.weights


def _peak(run: RunContext, parts: Parts) -> float | None:
    """Operations per second, as given or as published."""
    asked = run.config.bench.peak_tflops if run.config.bench else None
    if asked is None and parts.device.type == "cuda":
        asked = published_peak(torch.cuda.get_device_name(parts.device), _dtype(run, parts))
    return asked * 1e12 if asked else None
