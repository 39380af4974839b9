"""The scores of an evaluation: as JSON, and as a table in the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from dpo_lab.config.brought import REFERENCE
from dpo_lab.config.schema import Config
from dpo_lab.inference.evals.compare import Compared, Estimate
from dpo_lab.inference.evals.lengths import length_bias
from dpo_lab.inference.evals.pairs import Scored
from dpo_lab.inference.evals.place import Place
from dpo_lab.inference.evals.seen import Seen
from dpo_lab.inference.evals.standing import Standing
from dpo_lab.runtime.files import short
from dpo_lab.runtime.terminal import Terminal

MOST_COMPARED = 12  # rows of comparisons in the terminal; the page has all


@dataclass(frozen=True)
class Report:
    """What was found, ready for JSON."""

    content: dict[str, Any]

    @classmethod
    def of(
        cls,
        *,
        place: Place,
        config: Config,
        model: str,
        reference: dict[str, Any],
        standings: Sequence[Standing],
        compared: Compared,
        lengths: dict[str, Any],
        found: Scored,
        seen: Mapping[str, Seen],
        seconds: float,
    ) -> "Report":
        """Put together what an evaluation found.

        Args:
            place: its folder.
            config: with what the results bring along.
            model: what the base is called.
            reference: the reference's own row.
            standings: the results in order.
            compared: how sure their scores and differences are.
            lengths: of prompts and answers.
            found: the pairs.
            seen: of each result, how many of them it was trained on.
            seconds: that it took.
        """
        assert config.evaluate is not None
        results = [
            {
                "name": standing.name,
                "path": standing.path,
                "accuracy": asdict(compared.accuracy[standing.name]),
                "margin": asdict(compared.margin[standing.name]),
                "lengths": length_bias(standing),
                "trained_on": seen[standing.name].pairs,
                "metrics": standing.metrics,
            }
            for standing in standings
        ]
        content = {
            "task": "score",
            "identity": place.identity,
            "model": model,
            "split": config.evaluate.split,
            "format": found.format,
            "pairs": len(found.prompts),
            "prompts": len(set(found.prompts)),
            "counts": found.counts,
            "kl_pairs": min(config.trainer.kl_pairs, len(found.prompts)),
            "resamples": config.evaluate.resamples,
            "seed": config.seed,
            "seconds": round(seconds, 1),
            "reference": reference,
            "results": results,
            "comparisons": [c.to_json() for c in compared.comparisons],
            "lengths": lengths,
            "notes": [one.note for one in seen.values() if one.note],
        }
        return cls(content)

    def metrics(self) -> dict[str, float]:
        """NAME/METRIC of every result."""
        return {
            f"{result['name']}/{key}": value
            for result in self.content["results"]
            for key, value in result["metrics"].items()
        }


def show(content: dict[str, Any], folder: Path, terminal: Terminal) -> None:
    """The table of an evaluation, its comparisons, and where the rest is."""
    pairs, prompts = content["pairs"], content["prompts"]
    terminal.header(
        f"{pairs:,} pairs of {prompts:,} prompts ({content['split']})",
        {"model": content["model"], "reference": content["reference"]["what"], "data": content["counts"]},
    )
    terminal.console.print(_table(content))
    rows = comparisons(content)
    if rows:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("compared with", "", "accuracy, points", "margin, nats", "says"):
            table.add_column(name, justify="left" if name in ("compared with", "", "says") else "right")
        for row in rows[:MOST_COMPARED]:
            table.add_row(
                Text(row["baseline"]), Text(row["result"]), difference(row["accuracy"], 100, 1),
                difference(row["margin"], 1, 2), verdict(row),
            )  # fmt: skip
        terminal.console.print(table)
        if len(rows) > MOST_COMPARED:
            terminal.say(f"{len(rows) - MOST_COMPARED} more comparisons are on the page.")
    for note in content.get("notes", ()):
        terminal.console.print(Text(note, style="bold yellow"), soft_wrap=True)
    terminal.say(f"Intervals: the middle 95 % of {content['resamples']:,} draws of the prompts.")
    place = short(folder)
    terminal.facts({"page": f"{place}/report.html", "numbers": f"{place}/scores.json"})


def comparisons(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of results with each other; each alone is held against the reference in the first table."""
    return [row for row in content["comparisons"] if row["baseline"] != REFERENCE]


def verdict(row: dict[str, Any]) -> str:
    """What a comparison says, in words: by accuracy, and by margin where accuracy does not tell."""
    for key, better, worse in (
        ("accuracy", "more accurate", "less accurate"),
        ("margin", "wider margin", "narrower margin"),
    ):
        found = Estimate(**row[key]) if row[key] else None
        if found is not None and found.clear:
            return better if found.value > 0 else worse
    return "no clear difference"


def difference(found: dict[str, Any] | None, scale: float, digits: int) -> str:
    """+1.2 [-0.3, 2.8]; n/a where there is none."""
    if found is None:
        return "n/a"
    value = f"{scale * found['value']:+.{digits}f}"
    return value if found["low"] is None else f"{value} {interval(found, scale, digits)}"


def interval(found: dict[str, Any], scale: float, digits: int) -> str:
    """[low, high], or nothing."""
    if found["low"] is None:
        return ""
    return f"[{scale * found['low']:.{digits}f}, {scale * found['high']:.{digits}f}]"


def _table(content: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in ("accuracy, %", "margin, nats", "loss", "KL", "chosen", "rejected"):
        table.add_column(name, justify="right")
    has_kl = any("kl" in result["metrics"] for result in content["results"])
    table.add_row(REFERENCE, "n/a", "0.00", "", "0.000" if has_kl else "", "0.00", "0.00", style="dim")
    for result in content["results"]:
        metrics = result["metrics"]
        table.add_row(
            Text(result["name"]),
            f"{100 * result['accuracy']['value']:.1f} {interval(result['accuracy'], 100, 1)}",
            f"{result['margin']['value']:+.2f} {interval(result['margin'], 1, 2)}",
            f"{metrics['loss']:.4f}",
            f"{metrics['kl']:.3f}" if "kl" in metrics else "",
            f"{metrics['logratios/chosen']:+.2f}",
            f"{metrics['logratios/rejected']:+.2f}",
        )
    return table
