"""A sweep's report: report.md, leaderboard.csv, report.html and the winner, from its run folders."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from dpo_lab.config.names import did_you_mean, listed
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import atomic_produce, atomic_write, remove, short
from dpo_lab.runtime.terminal import Terminal
from dpo_lab.sweep.contents import Report, facts_line, gather
from dpo_lab.sweep.leaderboard import as_csv, as_table
from dpo_lab.sweep.markdown import markdown
from dpo_lab.sweep.page import write_page
from dpo_lab.sweep.results import load
from dpo_lab.sweep.statistics import answer

SHOWN = 15  # settings in the terminal
LOST = 5  # trials in the terminal that do not count


def report(config: Config, tree: dict[str, Any], folder: Path) -> dict[str, float]:
    """Write and show the report of a sweep.

    Args:
        config: the validated configuration; sweep.name or sweep.dir say which.
        tree: the same as plain containers.
        folder: nothing is written there.

    Returns:
        How many trials there are, and how many settings were compared.

    Raises:
        LabError: there is no such sweep, or the report cannot be written.
    """
    terminal = Terminal()
    path = find_sweep(config.sweep.name, config.sweep.dir, expand(config.output_dir) / "sweeps")
    with terminal.working("reading the sweep"):
        written = write_report(path)
    show(written, terminal.console)
    return {"trials": float(len(written.sweep.trials)), "settings": float(len(written.answer.standings))}


def find_sweep(name: str | None, folder: str | None, sweeps: Path) -> Path:
    """The folder of a sweep, given by its name or as such.

    Args:
        name: sweep.name.
        folder: sweep.dir, which goes before the name.
        sweeps: where sweeps have their folders.

    Raises:
        ConfigError: neither is given, or there is no such folder.
    """
    if folder is not None:
        path = expand(folder)
        if not path.is_dir():
            raise ConfigError(f"sweep.dir={folder}: there is no such folder.")
        return path
    there = sorted((p.name for p in sweeps.glob("*") if (p / "sweep.yaml").is_file()), key=str.lower)
    known = f" In {short(sweeps)} there {'is' if len(there) == 1 else 'are'} {listed(there[:12], 'and')}{' and others' if len(there) > 12 else ''}." if there else f" {short(sweeps)} holds no sweep."  # fmt: skip
    if name is None:
        raise ConfigError(f"Say which sweep: sweep.name=NAME or sweep.dir=FOLDER.{known}")
    path = sweeps / name
    if not path.is_dir():
        raise ConfigError(
            f"sweep.name={name}: there is no folder {short(path)}{did_you_mean(name, there) or '.'}{known}"
        )
    return path


def write_report(path: Path) -> Report:
    """Read a sweep's run folders and write what they say beside them, each file atomically.

    Args:
        path: the sweep's folder.

    Raises:
        LabError: the folder is no sweep, or cannot be written.
    """
    sweep = load(path)
    gathered = gather(sweep, answer(sweep))
    reasons = {trial.id: why for trial, why in gathered.lost}
    atomic_write(gathered.file("leaderboard.csv"), _bytes(as_csv(sweep, gathered.rows, reasons)))
    atomic_write(gathered.file("report.md"), _bytes(markdown(gathered)))
    write_page(gathered.file("report.html"), gathered)
    point_at_winner(gathered)
    return gathered


def point_at_winner(report: Report) -> None:
    """Let `winner` lead to the winner's final/; where links are impossible it is a file that holds the path."""
    link = report.file("winner")
    if report.winner is None:
        remove(link)
        return
    target = Path(report.winner.path.name, "final")

    def produce(temporary: Path) -> None:
        try:
            temporary.symlink_to(target)
        except OSError:
            temporary.write_text(f"{target.as_posix()}\n", encoding="utf-8")

    atomic_produce(link, produce)


def show(report: Report, console: Console) -> None:
    """The leaderboard in the terminal, with the answer in a sentence, and where the rest is."""
    console.print()
    console.print(Text(report.title, style="bold"))
    console.print(Text(facts_line(report), style="dim"))
    if report.answer.standings:
        console.print(as_table(report.rows, SHOWN))
        more = len(report.answer.standings) - SHOWN
        if more > 0:
            console.print(Text(f"{more:,} more settings are in leaderboard.csv.", style="dim"))
        if any(standing.may_be_best for standing in report.answer.standings):
            console.print(
                Text(
                    "● may be the best at 95 % confidence. Margins: log-ratios, in nats. Behind: points of accuracy.",
                    style="dim",
                )
            )
    console.print()
    console.print(Text(report.answer.sentence, style="bold"))
    for trial, why in report.lost[:LOST]:
        console.print(Text(f"{trial.id}: {why}", style="yellow"))
    if len(report.lost) > LOST:
        console.print(Text(f"{len(report.lost) - LOST:,} more did not count.", style="yellow"))
    for advice in report.advice:
        console.print(Text(f"\n{advice.text}"))
        for command in advice.commands:
            console.print(Text(f"  {command}", style="cyan"), soft_wrap=True)
    _show_files(report, console)


def _show_files(report: Report, console: Console) -> None:
    console.print()
    rows = {"page": str(short(report.file("report.html"))), "table": str(short(report.file("leaderboard.csv")))}
    if report.command:
        rows |= {"winner": f"{short(report.sweep.path)}/winner", "repeat it": report.command}
    width = max(map(len, rows))
    for name, text in rows.items():
        console.print(Text.assemble((f"{name:{width}}  ", "cyan"), text), soft_wrap=True)


def _bytes(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which JSON can hold, becomes a question mark."""
    return text.encode("utf-8", "replace")
