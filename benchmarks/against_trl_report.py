"""What benchmarks/against_trl.py makes of its cells: which of them can be believed, medians, ratios, a table."""

from statistics import median
from typing import Any

from against_trl_cases import Case

from dpo_lab.preference.flops import Shape, reference_flops, training_flops

Cell = dict[str, Any]
LOSSES_AGREE = 0.02  # relative
NORMS_AGREE = {"32": 0.02, "bf16": 0.15}  # of the first step's gradient: its rounding is not averaged away
PEAK_TFLOPS = 790.0  # what an H100's dense bf16 products come to in practice
TARGETS = {  # by device: what is compared -> at least, or (memory) at most
    "cpu": {"cold": 2.1, "cached": 3.0, "matmul_share": 0.6, "memory": 0.6},
    "cuda": {"cold": 2.0, "mfu": 0.4},
}


def check(cells: list[Cell], case: Case) -> None:
    """Note in each cell of one case and number of pairs what keeps it from being believed.

    The sides train alike or not at all: loss and norm of the gradient, of the first and of the last step, are held against the median
    of TRL's cells, or of all where TRL has none.
    """
    trained = [cell for cell in cells if "losses" in cell]
    trl = [cell for cell in trained if cell["side"].startswith("trl")] or trained
    steps = {cell["pairs"]: cell["pairs"] // case.batch_size for cell in cells}
    for cell in trained:
        losses, norms = cell["losses"], cell["grad_norms"]
        found = []
        if len(losses) != steps[cell["pairs"]] or len(norms) != len(losses):
            found.append(f"{len(losses)} losses and {len(norms)} grad-norms, not {steps[cell['pairs']]}")
        else:
            for name, key, place, limit in (
                ("first loss", "losses", 0, LOSSES_AGREE),
                ("last loss", "losses", -1, LOSSES_AGREE),
                ("first grad-norm", "grad_norms", 0, NORMS_AGREE[case.precision]),
                ("last grad-norm", "grad_norms", -1, NORMS_AGREE[case.precision]),
            ):
                expected = median(other[key][place] for other in trl if other["pairs"] == cell["pairs"])
                if not abs(cell[key][place] - expected) <= limit * abs(expected):
                    found.append(f"{name} {cell[key][place]:.4f}, of TRL {expected:.4f}")
            if not min(norms) > 0:
                found.append("a grad-norm is not above 0")
        expected = {"dpo_lab_cold": True, "dpo_lab_cached": False}.get(cell["side"])
        if expected is not None and (cell["reference_missing"] > 0) != expected:
            found.append(f"{cell['reference_missing']} answers were not in the reference cache")
        cell["problems"] = found


def sound(cells: list[Cell], side: str, pairs: int, batch: int | None = None) -> dict[int, Cell]:
    """Round -> cell of those that finished and can be believed."""
    return {
        cell["round"]: cell
        for cell in cells
        if (cell["side"], cell["pairs"]) == (side, pairs)
        and batch in (None, cell["batch"])
        and not cell.get("failed")
        and not cell.get("problems")
    }


def best_batches(cells: list[Cell], pairs: int) -> list[int]:
    """TRL's batches, quickest first: by the median of those rounds that the most of them have."""
    batches = {cell["batch"] for cell in cells if cell["side"] == "trl_best"}
    found = {batch: sound(cells, "trl_best", pairs, batch) for batch in batches}
    found = {batch: rounds for batch, rounds in found.items() if rounds}
    return sorted(found, key=lambda batch: median(cell["seconds"] for cell in found[batch].values()))


def best_batch(cells: list[Cell], pairs: int) -> int | None:
    """Of those that ran in all the rounds that any did."""
    ranked = best_batches(cells, pairs)
    most = max((len(sound(cells, "trl_best", pairs, batch)) for batch in ranked), default=0)
    return next((batch for batch in ranked if len(sound(cells, "trl_best", pairs, batch)) == most), None)


def _middle(rounds: dict[int, Cell], key: str) -> float | None:
    return median(cell[key] for cell in rounds.values()) if rounds else None


def _ratio(upper: dict[int, Cell], lower: dict[int, Cell], key: str) -> float | None:
    """Median over the rounds that have both of the ratio."""
    shared = upper.keys() & lower.keys()
    return median(upper[n][key] / lower[n][key] for n in shared) if shared else None


def _step_rate(cell: Cell, flops: list[float]) -> float:
    """Operations a second of the steps after the first, which also prepares; of the first where there is one only."""
    start = min(1, len(flops) - 1)
    return sum(flops[start:]) / sum(cell["step_seconds"][start:])


def summarise(cells: list[Cell], case: Case, pairs: int, lengths: list[list[int]]) -> dict[str, Any]:
    """Medians and ratios of one case at one number of pairs."""
    batch = best_batch(cells, pairs) or best_batch(cells, case.pairs)
    sides = {
        "trl_defaults": sound(cells, "trl_defaults", pairs),
        "trl_best": sound(cells, "trl_best", pairs, batch) if batch else {},
        "dpo_lab_cold": sound(cells, "dpo_lab_cold", pairs),
        "dpo_lab_cached": sound(cells, "dpo_lab_cached", pairs),
    }
    memory = "peak_cuda_gib" if case.device == "cuda" else "peak_rss_gib"
    parts = ("seconds", "reference_seconds", "training_seconds", memory)
    medians = {side: {part: _middle(rounds, part) for part in parts} for side, rounds in sides.items() if rounds}
    for side in medians:
        medians[side]["pairs_per_second"] = pairs / (medians[side]["seconds"] or 1)
    trl = [side for side in ("trl_defaults", "trl_best") if side in medians]
    better = min(trl, key=lambda side: medians[side]["seconds"] or 0, default=None)
    against = "trl_best" if case.device == "cuda" else better
    cold, cached = sides["dpo_lab_cold"], sides["dpo_lab_cached"]
    ratios = {
        "cold": _ratio(sides[against], cold, "seconds") if against else None,
        "cached": _ratio(sides[against], cached, "seconds") if against else None,
        "training": _ratio(sides["trl_best"], cold, "training_seconds"),
        "memory": _ratio(cold, sides["trl_best"], memory),
    }
    rates = _rates(cells, case, pairs, lengths, sides)
    for side, rate in rates.pop("training_flops").items():
        medians[side]["training_flops"] = rate
    return {
        "pairs": pairs,
        "steps": pairs // case.batch_size,
        "tokens": {"prompt_once": sum(map(sum, lengths)), "as_two_sequences": sum(2 * p + c + r for p, c, r in lengths)},
        "trl_best_batch": batch,
        "ratios_are_against": against,
        "rounds": {side: sorted(rounds) for side, rounds in sides.items()},
        "medians": medians,
        "ratios": ratios | rates,
    }  # fmt: skip


def _rates(
    cells: list[Cell], case: Case, pairs: int, lengths: list[list[int]], sides: dict[str, dict[int, Cell]]
) -> dict[str, Any]:
    """FLOP/s of each side by one formula, and dpo_lab's share of the machine's own."""
    machine = sound(cells, "machine", pairs)
    if not machine:
        return {"training_flops": {}, "matmul_share": None, "mfu": None}
    first = next(iter(machine.values()))
    shape, size = Shape(**first["shape"]), case.batch_size
    shaped = [(p, c, r) for p, c, r in lengths]
    steps = [training_flops(shape, shaped[start : start + size]) for start in range(0, len(shaped), size)]
    of_reference = reference_flops(shape, shaped)
    rates = {side: median(_step_rate(c, steps) for c in rounds.values()) for side, rounds in sides.items() if rounds}
    mine: dict[int, list[float]] = {}
    for side in ("dpo_lab_cold", "dpo_lab_cached"):
        for n, cell in sides[side].items():
            mine.setdefault(n, []).append(_step_rate(cell, steps))
    shares = [median(rate) / machine[n]["matmul_flops"] for n, rate in mine.items() if n in machine]
    found = median(median(rate) for rate in mine.values()) if mine else None
    return {
        "training_flops": rates,
        "formula_flops": {"training": sum(steps), "reference": of_reference},
        "machine_matmul_flops": median(cell["matmul_flops"] for cell in machine.values()),
        "matmul_share": median(shares) if shares else None,
        "mfu": found / (PEAK_TFLOPS * 1e12) if found and case.device == "cuda" else None,
    }


def met(case: Case, summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each target of the case's machine beside what was found."""
    found = {}
    for name, target in TARGETS[case.device].items():
        value = summary["ratios"].get(name)
        if name == "mfu" and case.source != (256, 256):
            continue
        reached = None if value is None else value <= target if name == "memory" else value >= target
        found[name] = {"target": target, "found": value, "reached": reached}
    return found


def table(cases: dict[str, Any]) -> str:
    """Every case and number of pairs, as the README shows it."""
    head = "| case | pairs | TRL defaults | TRL best (batch) | dpo_lab | reference cached | cold | cached | memory | of matmul rate |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|"]
    for name, case in cases.items():
        for summary in case["summaries"].values():
            medians, ratios = summary["medians"], summary["ratios"]
            memory = "peak_cuda_gib" if case["settings"]["device"] == "cuda" else "peak_rss_gib"

            def seconds(side: str, medians: dict[str, Any] = medians) -> str:
                return f"{medians[side]['seconds']:.4g} s" if side in medians else "-"

            def gib(side: str, medians: dict[str, Any] = medians, memory: str = memory) -> str:
                return f"{medians[side][memory]:.2f}" if side in medians else "-"

            share = ratios["matmul_share"] if ratios["mfu"] is None else ratios["mfu"]
            best = f"{seconds('trl_best')} ({summary['trl_best_batch']})"
            lines.append(
                f"| {name} | {summary['pairs']} | {seconds('trl_defaults')} | {best} | {seconds('dpo_lab_cold')} "
                f"| {seconds('dpo_lab_cached')} | {_times(ratios['cold'])} | {_times(ratios['cached'])} "
                f"| {gib('trl_best')} -> {gib('dpo_lab_cold')} GiB ({_times(ratios['memory'])}) "
                f"| {'-' if share is None else f'{share:.0%}'} |"
            )
    return "\n".join(lines)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"
