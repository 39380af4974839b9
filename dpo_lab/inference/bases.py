"""Whether the base that an adapter names is the one it is put on."""

import re
from pathlib import Path

from dpo_lab.config.inputs import GGUF
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Model
from dpo_lab.models.locate import Located

CACHED = re.compile(r"models--([^/\\]+)--([^/\\]+)")  # a model's folder in the hub's own cache


def is_base(made_for: str, located: Located, model: Model, cache_dir: Path) -> bool | None:
    """Whether what adapter_config.json calls its base is the model in use; None where nothing tells.

    Weights on this machine are compared, names otherwise: by their last part, since mirrors and hubs put other owners
    before it. A folder that is not here, or one that somebody named, proves nothing.

    Args:
        made_for: base_model_name_or_path.
        located: the model in use.
        model: how it was asked for.
        cache_dir: of fingerprints.
    """
    folder = expand(made_for)
    if (folder / "config.json").is_file():
        return Located(folder, folder.name).identity(cache_dir) == located.identity(cache_dir)
    if folder.is_file() and model.path is not None and folder.samefile(expand(model.path)):
        return True
    asked = [_hub_name(str(located.path)), *([model.name, *model.names.values()] if model.path is None else [])]
    ours = {_last(name) for name in asked if name}
    theirs = _hub_name(made_for)
    if _last(theirs or made_for) in ours | {located.path.name.casefold()}:
        return True
    return False if theirs and ours else None


def _hub_name(text: str) -> str | None:
    """OWNER/NAME of a hub's name, or of a folder in its cache."""
    if found := CACHED.search(text):
        return f"{found[1]}/{found[2]}"
    is_name = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) is not None
    return text if is_name and not text.endswith(GGUF) else None


def _last(name: str) -> str:
    return Path(name).name.casefold()
