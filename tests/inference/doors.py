"""What the doors evaluate, chat, export and serve hand to their jobs, made in this process; and results to give them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runs import Lab

from dpo_lab.config import resolvers
from dpo_lab.config.overrides import read
from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.schema import Config
from dpo_lab.config.sources import Sources
from dpo_lab.config.verify import verify


@dataclass(frozen=True)
class Results(Lab):
    """A lab and its finished runs: the folders of two adapters of one base, learning rates 1e-2 and 3e-2."""

    runs: list[Path] = field(default_factory=list)


def whole_run(lab: Lab) -> Path:
    """The folder of a run that trained all weights; trained by the first who asks."""
    return _trained(lab, "lora=none", "optim.lr=1e-3")


def quantised_run(lab: Lab) -> Path:
    """The folder of a run on a 4-bit base, of which the lab keeps a model with rows wide enough."""
    from tiny import write_tiny_model

    wide = lab.root / "wide"
    if not wide.exists():
        write_tiny_model(wide, hidden_size=64, intermediate_size=128)
    return _trained(lab, "quant=4bit", f"model.path={wide}")


def _trained(lab: Lab, *words: str) -> Path:
    folder = lab.folder(*words)
    return folder.path if folder.final.is_dir() else lab.train(*words).path


def door_config(primary: str, *words: str) -> tuple[Config, dict[str, Any], list[str]]:
    """The config and tree of a door with these words on its command line, and the keys that they name.

    A job is called as `job(config, tree, Path(), given=given)`. Rules between keys are not looked at: see `refused`.
    """
    resolvers.register()
    sources = Sources((CONF_DIR,), primary)
    given, problems = read(words, sources, multirun=False)
    assert not problems, problems
    tree = resolvers.plain(sources.compose([g.text for g in given]))
    return Config.model_validate(tree), tree, [g.key for g in given]


def refused(primary: str, *words: str) -> list[str]:
    """What the door says is wrong with these words before anything loads; [] where it would begin."""
    resolvers.register()
    sources = Sources((CONF_DIR,), primary)
    given, problems = read(words, sources, multirun=False)
    return [*problems, *verify(given, sources).problems]


def of_lab(lab: Lab, *words: str) -> list[str]:
    """The words with the output and cache folders of a lab, on the CPU."""
    own = [f"output_dir={lab.output}", f"cache_dir={lab.cache}", "trainer.accelerator=cpu"]
    keys = {word.partition("=")[0] for word in words}
    return [*words, *(word for word in own if word.partition("=")[0] not in keys)]


def door_of(primary: str, lab: Lab, *words: str) -> tuple[Config, dict[str, Any], list[str]]:
    """`door_config` with the folders of a lab."""
    return door_config(primary, *of_lab(lab, *words))


def run_words(*folders: Path) -> str:
    """run=FOLDER, or run=[FOLDER,FOLDER]."""
    return f"run={folders[0]}" if len(folders) == 1 else f"run=[{','.join(map(str, folders))}]"
