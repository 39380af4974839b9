"""What a bench shows: what was trained where, how fast, and which part took how long."""

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from dpo_lab.config.schema import Config
from dpo_lab.runtime.files import short
from dpo_lab.runtime.terminal import Terminal, duration

UNSTEADY = 1.25  # between the machine's rates before and after the steps
PARTS = {
    "data": "waiting for a step's pairs",
    "reference": "the reference's log-probs",
    "forward": "the decoder, forward",
    "head": "the LM head, forward (with its gradient where it is frozen)",
    "backward": "backward",
    "optimizer": "clipping and update",
    "other": "the rest: loss, metrics, trainer",
}


def show(report: dict[str, Any], config: Config, terminal: Terminal, output: Path | None) -> None:
    """The numbers of a report in the terminal, and which files hold more; `output` is the one with all of them."""
    facts = report["facts"]
    terminal.header(f"bench of {facts['model']['name']}", _asked(report, config))
    terminal.facts(_found(report))
    low, high = sorted(report["flops"]["matmul_rates"])
    if high > UNSTEADY * low:
        terminal.say(
            f"This machine's matmul rate was {_rate(low)} at one end of the steps and {_rate(high)} at the other: something "
            "else is running on it, and these numbers will not be seen again."
        )
    if report["split"] is not None:
        terminal.console.print(_split(report["split"]))
        if missing := report["split"]["missing"]:
            terminal.say(f"not seen by the profiler, so part of the others: {', '.join(missing)}")
    files: dict[str, str] = {}
    if report["trace"]:
        trace = short(Path(report["trace"]))
        files["trace"] = f"{trace}: open it at https://ui.perfetto.dev, or in chrome://tracing"
    if output is not None:
        files["numbers"] = str(short(output))
    if files:
        terminal.facts(files)


def _asked(report: dict[str, Any], config: Config) -> dict[str, str]:
    facts, tokens, learning = report["facts"], report["tokens"], report["learning"]
    r = config.lora.r
    what = f"LoRA r={r}" if r is not None else "all weights"
    batches = f"{tokens['microbatches']:g} micro-batch{'es' if tokens['microbatches'] != 1 else ''}"
    return {
        "device": f"{_device(facts)}, {facts['precision']}",
        "training": f"{what}, {learning['trainable_parameters']:,} of {facts['parameters']:,} parameters",
        "loss": f"{_last(config.loss.target)}, {_last(config.optim.target)}",
        "step": f"{report['step']['pairs']} pairs of {tokens['step']:,.0f} tokens ({tokens['answers']:,.0f} of answers; "
        f"{tokens['step_padded']:,.0f} as padded rows) in {batches} of {tokens['microbatch']:,.0f}",
    }


def _last(target: str) -> str:
    return target.rpartition(".")[2]


def _device(facts: dict[str, Any]) -> str:
    device = facts["device"]
    if facts["accelerator"] == "gpu":
        return device["gpus"][0]["name"]
    return f"{device['cpu']['model']}, {facts['threads']} thread{'s' if facts['threads'] > 1 else ''}"


def _found(report: dict[str, Any]) -> dict[str, str]:
    step, memory, learning, asked = report["step"], report["memory"], report["learning"], report["bench"]
    seconds, norms = step["seconds"], learning["grad_norm"]
    since = "" if memory["exact"] else " (since the process began)"
    return {
        "step time": f"{_time(seconds['median'])} ({_time(seconds['min'])} to {_time(seconds['max'])}; "
        f"{asked['steps']} steps after {asked['warmup']} of warm-up)",
        "pairs/s": f"{step['pairs_per_second']:.3g}",
        "tokens/s": f"{step['tokens_per_second']:,.0f}",
        "model FLOPs": _utilisation(report["flops"]),
        "peak memory": f"{_size(memory['peak'])} of {memory['what']}{since}, {_size(memory['increase'])} more than the "
        "loaded model",
        "reference": _reference(report["reference"], memory),
        "learning": f"loss {learning['loss'][0]:.4f} to {learning['loss'][-1]:.4f}, gradient norm {norms[0]:.3g} to {norms[-1]:.3g}",
    }


def _utilisation(flops: dict[str, Any]) -> str:
    text = (
        f"{_rate(flops['per_second'])}, {flops['share_of_matmul_rate']:.1%} of this machine's {_rate(flops['matmul_rate'])} "
        f"in {flops['matmul_dtype']} at the model's shapes"
    )
    return text + (f", {flops['share_of_peak']:.1%} of {_rate(flops['peak'])} at most" if flops["peak"] else "")


def _reference(reference: dict[str, Any], memory: dict[str, Any]) -> str:
    if reference["seconds"] is None:
        return {"none": "none"}.get(reference["mode"], f"{reference['mode']}: computed in every step")
    return (
        f"{_time(reference['seconds'])} to compute for all pairs of the steps, peak {_size(memory['reference_peak'])}; "
        f"{_time(reference['read_seconds_per_step'])} to read for a step"
    )


def _split(split: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("part of a step")
    table.add_column("share", justify="right")
    table.add_column("what it is", style="dim")
    for part, share in split["shares"].items():
        table.add_row(part, "not seen" if part in split["missing"] else f"{share:.1%}", PARTS[part])
    return table


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _rate(operations: float) -> str:
    unit, name = next(((u, n) for u, n in ((1e12, "TFLOP/s"), (1e9, "GFLOP/s")) if operations >= u), (1e6, "MFLOP/s"))
    return f"{operations / unit:,.3g} {name}" if operations < 1000 * unit else f"{operations / unit:,.0f} {name}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
