"""Facts about this installation and machine: what a run records, and what `python -m dpo_lab.env` shows."""

import importlib.metadata
import os
import platform
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

_DISTRIBUTION = "dpo-lab"
_SHOWN = (
    *(_DISTRIBUTION, "torch", "transformers", "peft", "lightning", "bitsandbytes", "datasets", "wandb"),
    *("hydra-core", "omegaconf", "pydantic"),
)
_BF16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86, ARM: without them a CPU emulates bf16, 8 times slower


def versions() -> dict[str, str]:
    """Python and the packages that a result depends on; nothing is imported for it."""
    return {"python": platform.python_version()} | {name: _version(name) or "not installed" for name in _SHOWN}


def device_facts() -> dict[str, Any]:
    """The CPU and every CUDA device, as a run on this machine would find them."""
    import torch

    return {
        "cpu": {
            "model": _cpu_field("model name") or platform.processor() or platform.machine(),
            "cores": _usable_cores(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(_memory_bytes() / 2**30, 1),
            "bf16": _cpu_has_bf16(),
        },
        "cuda_version": torch.version.cuda,
        "gpus": [_gpu_facts(index) for index in range(torch.cuda.device_count())],
    }


def auto_precision(accelerator: str) -> str:
    """What `precision=auto` means on "cpu" or "gpu": "bf16" where the hardware has it, else "32" or "fp16"."""
    if accelerator == "cpu":
        return "bf16" if _cpu_has_bf16() else "32"
    import torch

    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp16"


@cache
def git_commit() -> str | None:
    """The commit of the checkout that holds the package, "-dirty" if tracked files differ; None outside one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an install: a repository further up is the user's, not ours
        return None
    command = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def extras() -> dict[str, dict[str, Any]]:
    """Each extra of the package's own metadata: which of its packages are missing, and the line that adds them."""
    try:
        names = importlib.metadata.metadata(_DISTRIBUTION).get_all("Provides-Extra") or []
        lines = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return {}  # a plain copy of the source, not installed
    parsed = [Requirement(line) for line in lines]
    return {name: _extra(name, [r for r in parsed if _belongs(r, name)]) for name in names}


def caches(lab: Path) -> dict[str, dict[str, Any]]:
    """Path, size and writability of the lab's own cache folder and of the hub's."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return {"dpo_lab": _folder(lab), "hugging_face": _folder(Path(HF_HUB_CACHE))}


def gather(cache_dir: Path) -> dict[str, Any]:
    """Everything above in one dictionary, ready for JSON."""
    device = device_facts()
    accelerator = "gpu" if device["gpus"] else "cpu"
    return {
        "versions": versions(),
        "commit": git_commit(),
        "device": device,
        "precision": {"accelerator": accelerator, "auto": auto_precision(accelerator), "why": _why(accelerator)},
        "extras": extras(),
        "caches": caches(cache_dir),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _belongs(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": extra})


def _extra(name: str, requirements: list[Requirement]) -> dict[str, Any]:
    found = {r.name: _version(r.name) for r in requirements}
    missing = [r.name for r in requirements if not r.specifier.contains(found[r.name] or "0", prereleases=True)]
    return {"installed": not missing, "missing": missing, "install": f'pip install "dpo_lab[{name}]"'}


def _cpu_field(name: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE | re.IGNORECASE)
    return match.group(1).strip() if match else ""


def _cpu_has_bf16() -> bool:
    flags = _cpu_field("flags") or _cpu_field("features")
    return not _BF16_UNITS.isdisjoint(flags.split())


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_bytes() -> int:
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical  # a container's limit


def _gpu_facts(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "bf16": bf16,
    }


def _why(accelerator: str) -> str:
    bf16 = auto_precision(accelerator) == "bf16"
    if accelerator == "gpu":
        return "the GPU has bf16" if bf16 else "the GPU has no bf16"
    return "the CPU has bf16 units" if bf16 else "the CPU has no bf16 units and would emulate it, many times slower"


def _folder(path: Path) -> dict[str, Any]:
    nearest = next(p for p in (path, *path.parents) if p.exists())
    size = sum(_size(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)
    return {"path": str(path), "bytes": size, "writable": nearest.is_dir() and os.access(nearest, os.W_OK)}


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size  # of a link itself: the hub's snapshots are links into its blobs
    except OSError:
        return 0  # deleted meanwhile
