"""Where the configuration lies: inside the package when installed, beside it in a checkout."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
CONF_DIR = next(p for p in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if p.is_dir())
DEMO_DIR = _PACKAGE / "data" / "demo"


def expand(path: str) -> Path:
    """A path of the config as a file: `~` is home, `pkg://NAME` is a file that the project ships."""
    if path.startswith("pkg://"):
        return DEMO_DIR / path.removeprefix("pkg://")
    return Path(os.path.expanduser(path))  # noqa: PTH111 - unlike Path's it leaves an unknown user's ~name as it is
