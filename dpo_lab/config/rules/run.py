"""Rules of data, outputs, device and logger."""

import math
import sys
from collections.abc import Iterable

from dpo_lab.config import inputs
from dpo_lab.config.rules import machine
from dpo_lab.config.schema import Config, Data


def data(config: Config) -> Iterable[str]:
    """There must be pairs, and enough of them."""
    d, o = config.data, config.optim
    yield from _sources(d)
    for key, paths in (("data.path", d.paths), ("data.eval_path", [d.eval_path] if d.eval_path else [])):
        for path in paths:
            yield from inputs.data_file(key, path)
    yield from _mixture(d)
    if (
        config.trains
        and d.max_pairs is not None
        and o.max_steps is None
        and math.floor(d.max_pairs * o.epochs / o.batch_size) < 1
    ):
        yield (
            f"data.max_pairs={d.max_pairs} is not enough for one step: optim.epochs={o.epochs:g} of them make "
            f"{d.max_pairs * o.epochs:g} pairs, a step takes optim.batch_size={o.batch_size}. Raise one or lower the other."
        )


def _sources(d: Data) -> Iterable[str]:
    """Where the pairs come from: one place."""
    if not d.paths and d.hub is None and d.dir is None:
        yield "No data: give data=file data.path=FILE, data=hub data.hub.name=OWNER/NAME, or data=llamafactory data.dir=FOLDER data.name=NAME."
    if d.paths and d.eval_path and not d.paths[0].startswith("pkg://") and d.eval_path.startswith("pkg://"):
        yield (
            f"data.path={d.path} would be evaluated on the demo's pairs ({d.eval_path}). Use data=file data.path=FILE, "
            "or give data.eval_path=FILE too."
        )
    if d.dir is not None and d.paths:
        yield f"data.path={d.path} and data.dir={d.dir} are two sources. Use data=file, or data=llamafactory."
    if d.dir is not None:
        yield from inputs.data_folder(d.dir)
        if not d.names:
            yield f"data.dir={d.dir} needs data.name=NAME, one of the datasets that its dataset_info.json names."
    for key, names in (("data.name", d.names), ("data.eval_name", d.eval_names)):
        if names and d.dir is None:
            yield f"{key}={_said(names)} names datasets of a dataset_info.json. Add data=llamafactory data.dir=FOLDER."
    if d.eval_names and d.eval_path is not None:
        yield f"data.eval_name={_said(d.eval_names)} and data.eval_path={d.eval_path} both say what is held out. Drop one."


def _mixture(d: Data) -> Iterable[str]:
    """How several sources become one."""
    sources = max(len(d.paths), len(d.names))
    if d.mix != "concat" and sources < 2:
        yield f"data.mix={d.mix} has no effect on one source. Give several: data.path=[FILE,FILE] or data.name=[NAME,NAME]."
    if d.probabilities is not None and d.mix == "concat":
        yield "data.probabilities has no effect with data.mix=concat. Use data.mix=interleave_under or interleave_over."
    elif d.probabilities is not None and sources > 1:
        if len(d.probabilities) != sources:
            yield f"data.probabilities has {len(d.probabilities)} numbers for {sources} sources. Give one for each."
        elif abs(sum(d.probabilities) - 1) > 1e-6:
            yield f"data.probabilities add up to {sum(d.probabilities):g}, not to 1."


def _said(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"[{','.join(names)}]"


def outputs(config: Config) -> Iterable[str]:
    """Folders that the run writes must be writable, and a sweep's name the name of one folder."""
    for key, path in (("output_dir", config.output_dir), ("cache_dir", config.cache_dir)):
        if path:
            yield from inputs.writable(key, path)
    for name in ("runs", "sweeps"):
        yield from inputs.writable("output_dir", f"{config.output_dir}/{name}")
    name = config.sweep.name
    if name is not None and (name in (".", "..") or "/" in name):
        yield f"sweep.name={name} must be a plain folder name. The folder above it is output_dir."


def device(config: Config) -> Iterable[str]:
    """What the device cannot do."""
    t = config.trainer
    if t.accelerator == "gpu" and not machine.may_have_gpu():
        yield "trainer.accelerator=gpu, but this machine has no GPU. Use trainer=auto or trainer=cpu."
    if t.accelerator == "mps" and sys.platform != "darwin":
        yield "trainer.accelerator=mps is Apple's GPU, but this machine is no Mac. Use trainer=auto or trainer=cpu."
    if t.accelerator == "mps" and t.precision not in ("auto", "32", "fp16_on_gpu"):
        yield f"trainer.precision={t.precision} is not offered on mps. Use trainer.precision=32."
    if t.accelerator == "mps" and config.quant.bits is not None:
        yield f"quant.bits={config.quant.bits} does not work on mps. Use quant=none."
    if t.accelerator == "mps" and t.devices != 1:
        yield f"trainer.devices={t.devices}: there is one mps device. Use trainer.devices=1."
    if isinstance(t.devices, int) and t.devices > config.optim.batch_size:
        yield (
            f"trainer.devices={t.devices} is more than optim.batch_size={config.optim.batch_size}: some would have no "
            "pair of a step. Lower one or raise the other."
        )
    if t.accelerator == "cpu" and t.precision == "fp16":
        yield (
            "trainer.precision=fp16 does not work on a CPU. Use 32 or bf16, or trainer.precision=fp16_on_gpu, "
            "which is fp16 on a GPU and auto on a CPU."
        )


def logger(config: Config) -> Iterable[str]:
    """The logger's package must be there."""
    name = config.logger.name
    if name != "none" and not machine.installed(name):
        package = "wandb" if name == "wandb" else '"dpo_lab[tensorboard]"'
        yield f"logger.name={name} needs a package that is not installed: pip install {package}. Or use logger=none."
