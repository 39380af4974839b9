"""Rules of `python -m dpo_lab.bench`."""

from collections.abc import Iterable

from dpo_lab.config import inputs
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config


def bench(config: Config) -> Iterable[str]:
    """What cannot be measured."""
    asked = config.bench
    if asked is None:
        return
    if config.trainer.devices != 1:
        yield f"trainer.devices={config.trainer.devices}: a bench measures one process. Use trainer.devices=1."
    if config.profile and not asked.profiled:
        yield "profile=true has no step to write a trace of with bench.profiled=0. Raise it, or drop profile=true."
    if config.plan:
        yield "plan=true has no effect on a bench. Use python -m dpo_lab plan=true."
    if config.output:
        file = expand(config.output)
        if file.is_dir():
            yield f"output={config.output} is a folder. Give a file, for example output={config.output}/bench.json."
        elif inputs.writable("output", str(file.parent)):
            yield f"output={config.output} cannot be written: look at the folder {file.parent}, or choose another file."
