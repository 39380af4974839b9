"""What this machine has, found out without importing anything heavy."""

import shutil
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def installed(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None


@cache
def may_have_gpu() -> bool:
    """False only where there is certainly none; the run finds out the rest."""
    devices = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
    return sys.platform != "linux" or any(Path(d).exists() for d in devices) or shutil.which("nvidia-smi") is not None
