"""python -m dpo_lab.env: versions, device, precision, extras and caches, for a bug report or a first look."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpo_lab.config.paths import CONF_DIR
from dpo_lab.runtime.facts import gather


def main(argv: list[str] | None = None) -> None:
    """Print what this installation and machine are."""
    parser = argparse.ArgumentParser(prog="python -m dpo_lab.env", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args(argv)
    cache_dir = Path(OmegaConf.load(CONF_DIR / "train.yaml").cache_dir).expanduser()
    facts = gather(cache_dir) | {"conf": str(CONF_DIR)}
    if given.json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        Console().print(table(facts))


def table(facts: dict[str, Any]) -> Table:
    """The facts as two columns that fit a terminal of 80."""
    view = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1))
    view.add_column(style="bold", no_wrap=True)
    view.add_column(overflow="fold")
    for title, rows in _sections(facts).items():
        view.add_section()
        view.add_row(f"[cyan]{title}[/cyan]", "")
        for name, value in rows:
            view.add_row(f"  {name}", escape(value))
    return view


def _sections(facts: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    cpu, precision = facts["device"]["cpu"], facts["precision"]
    gpus = [
        (f"gpu {i}", f"{g['name']}, {g['memory_gib']} GiB, capability {g['capability']}, {_has(g['bf16'])} bf16")
        for i, g in enumerate(facts["device"]["gpus"])
    ]
    return {
        "versions": [
            *facts["versions"].items(),
            ("commit", facts["commit"] or "not a checkout"),
            ("conf", facts["conf"]),
        ],
        "device": [
            ("cpu", f"{cpu['model']}, {cpu['cores']} cores, {cpu['memory_gib']} GiB, {_has(cpu['bf16'])} bf16 units"),
            ("threads", f"{cpu['threads']} in PyTorch"),
            *(gpus or [("gpu", "none that PyTorch can use")]),
            ("precision=auto", f"{precision['auto']} on the {precision['accelerator']}: {precision['why']}"),
        ],
        "extras": [
            (name, "installed" if extra["installed"] else extra["install"]) for name, extra in facts["extras"].items()
        ]
        or [("unknown", "dpo_lab is not installed: pip install -e .")],
        "caches": [
            (name, f"{c['path']}, {c['bytes'] / 2**20:.0f} MiB, {'writable' if c['writable'] else 'not writable'}")
            for name, c in facts["caches"].items()
        ],
    }


def _has(value: bool) -> str:
    return "with" if value else "no"


if __name__ == "__main__":
    main()
