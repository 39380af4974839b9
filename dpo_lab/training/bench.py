"""`python -m dpo_lab.bench`: how fast this machine trains a configuration, and where the time goes."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.prepare import read_pairs
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import write_json
from dpo_lab.runtime.terminal import Terminal
from dpo_lab.training.folder import RunFolder
from dpo_lab.training.interrupt import Interrupt

TRACE = "bench.trace.json"


def bench(config: Config, tree: dict[str, Any], folder: Path) -> dict[str, float]:
    """Measure a few training steps of a configuration; nothing of them is kept but the numbers.

    Args:
        config: the validated configuration, with its node bench.
        tree: the same as plain containers.
        folder: Hydra's; nothing is written there.

    Returns:
        The main numbers.

    Raises:
        LabError: something the user can act on.
    """
    _check_sweep(config)
    terminal = Terminal()
    output = expand(config.output) if config.output else None
    with tempfile.TemporaryDirectory(prefix="dpo_lab_bench_") as place:
        run_folder = RunFolder(Path(place))
        interrupt = Interrupt(run_folder.control)
        with interrupt.listening():
            with interrupt.at_once():
                split = read_pairs(config.data, expand(config.cache_dir), terminal.progress)
            with terminal.working("loading libraries"):
                from dpo_lab.training.bench_run import measure
                from dpo_lab.training.bench_table import show
                from dpo_lab.training.parts import RunContext
            context = RunContext(_for_a_few_steps(config), tree, run_folder, terminal, interrupt)
            report = measure(context, split, trace_path(output) if config.profile else None)
    if output is not None:
        write_json(output, report)
    show(report, config, terminal, output)
    step, flops = report["step"], report["flops"]
    return {
        "step_seconds": step["seconds"]["median"],
        "pairs_per_second": step["pairs_per_second"],
        "tokens_per_second": step["tokens_per_second"],
        "share_of_matmul_rate": flops["share_of_matmul_rate"],
        "peak_bytes": report["memory"]["peak"],
    }


def trace_path(output: Path | None) -> Path:
    """Beside the file with the numbers, or else in the current folder."""
    return Path(TRACE).absolute() if output is None else output.with_name(f"{output.stem}.trace.json")


def _for_a_few_steps(config: Config) -> Config:
    """As many steps as are measured; the pairs are not examined."""
    asked = config.bench
    assert asked is not None
    steps = asked.warmup + asked.steps + asked.profiled
    optim = config.optim.model_copy(update={"max_steps": steps})
    doctor = config.doctor.model_copy(update={"enabled": False})
    return config.model_copy(update={"optim": optim, "doctor": doctor})


def _check_sweep(config: Config) -> None:
    """The jobs of a sweep must not write over each other's file."""
    if config.output is None or not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return
    # As it was typed: in Hydra's own record each job's value has taken the place of ${...}.
    if not any(word.startswith("output=") and "${" in word for word in sys.argv):
        raise ConfigError(
            f"output={config.output} would be written by every job of the sweep. Put what is swept into the name, for "
            "example output='bench_r${lora.r}.json'."
        )
