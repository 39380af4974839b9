"""The most memory that a part of a process takes: of the GPU where there is one, else what the process has resident."""

from pathlib import Path

import torch

_SELF = Path("/proc/self")


class Peak:
    """The highest use since the last `restart`.

    Attributes:
        what: the memory that is meant.
        exact: whether peaks are counted from `restart`; else from the start of the process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.what = "GPU memory" if device.type == "cuda" else "resident memory"
        self.exact = True

    def restart(self) -> None:
        """Forget what was used before."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            (_SELF / "clear_refs").write_text("5", encoding="ascii")  # Linux: the peak begins anew at what is used now
        except OSError:
            self.exact = False

    def now(self) -> int:
        """Bytes in use."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return _status("VmRSS") or _resource()

    def peak(self) -> int:
        """The most bytes that were in use at one time."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _status("VmHWM") or _resource()


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes."""
    try:
        text = (_SELF / "status").read_text(encoding="ascii")
    except OSError:
        return None
    line = next((line for line in text.splitlines() if line.startswith(f"{field}:")), None)
    return int(line.split()[1]) * 1024 if line else None


def _resource() -> int:
    """The peak since the process began, where there is no /proc; macOS counts bytes, others KiB."""
    import resource
    import sys

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
