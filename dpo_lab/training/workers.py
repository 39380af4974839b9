"""The ranks beside the first, each a process of its own that loads the run's parts and takes its share of each step."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning

from dpo_lab.config.schema import Config
from dpo_lab.data.prepare import read_pairs
from dpo_lab.runtime.errors import LabError
from dpo_lab.runtime.files import read_json
from dpo_lab.runtime.terminal import Terminal
from dpo_lab.training.checkpoint import last_checkpoint
from dpo_lab.training.fit import fit
from dpo_lab.training.folder import RunFolder
from dpo_lab.training.interrupt import Interrupt
from dpo_lab.training.module import PreferenceModule
from dpo_lab.training.parts import RunContext, load_parts
from dpo_lab.training.ranks import LostTouch, Ranks

log = logging.getLogger(__name__)
LOST = 75  # exit code of a rank that the others left
FAREWELL = 60.0  # seconds that the others may take to end once the first has


class Workers:
    """The other ranks of a run, as the first one sees them."""

    def __init__(self, size: int, place: Path, folder: RunFolder, processes: list[subprocess.Popen[bytes]]) -> None:
        self.ranks, self.place, self.folder, self.processes = Ranks(0, size), place, folder, processes

    def wait(self, check: Callable[[], None]) -> None:
        """Until all have loaded; `check` may raise to end the waiting.

        Raises:
            LabError: one of them failed.
        """
        while not all(_ready(self.place, rank).exists() for rank, _ in enumerate(self.processes, start=1)):
            check()
            if any(process.poll() is not None for process in self.processes):
                raise self.explain(LabError("A process that should train with this one ended before it began."))
            time.sleep(0.05)

    def explain(self, error: Exception) -> Exception:
        """Why the ranks lost touch: the error of the one that failed, if one did."""
        deadline = time.monotonic() + 5.0  # who failed may still be writing it down
        while time.monotonic() < deadline:
            for rank, process in enumerate(self.processes, start=1):
                if process.poll() not in (None, 0, LOST):
                    said = read_json(_report(self.folder, rank)) or {}
                    reason = said.get("error", f"it ended with exit code {process.returncode}")
                    return LabError(f"Rank {rank} failed: {reason} (its log: {_log(self.folder, rank)})")
            time.sleep(0.05)
        return error


@contextmanager
def started(context: RunContext, tree: dict[str, Any], *, size: int, threads: int, tokens: int) -> Iterator[Workers]:
    """Start the ranks 1, 2, ...; they are gone when the block ends.

    Args:
        context: the run.
        tree: its configuration, resolved.
        size: ranks in all.
        threads: CPU threads of each.
        tokens: of a micro-batch.
    """
    with tempfile.TemporaryDirectory(prefix="dpo_lab_ranks_") as temporary:
        place = Path(temporary) / "meeting"
        processes = []
        try:
            for rank in range(1, size):
                job = Path(temporary) / f"rank{rank}.json"
                facts = {"rank": rank, "size": size, "threads": threads, "tokens": tokens, "place": str(place)}
                facts |= {"run": str(context.folder.path.absolute()), "tree": tree, "parent": os.getpid()}
                job.write_text(json.dumps(facts), encoding="utf-8")
                _report(context.folder, rank).unlink(missing_ok=True)
                with open(_log(context.folder, rank), "wb") as output:
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, "-m", "dpo_lab.training.workers", str(job)],
                            stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
                            env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                        )
                    )  # fmt: skip
            yield Workers(size, place, context.folder, processes)
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(FAREWELL)
        finally:
            for process in processes:
                process.kill()
                process.wait()


class Resuming(lightning.Callback):
    """Puts the optimizer's state back; a rank beside the first does nothing else around its steps."""

    def __init__(self, resume: dict[str, Any] | None) -> None:
        self.resume = resume

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore the optimizer."""
        module: PreferenceModule = pl_module
        if self.resume is not None:
            module.restore_optimizer(self.resume)


def work(job: dict[str, Any]) -> None:
    """What a rank does: load, meet the others, train."""
    import torch

    config = Config.model_validate(job["tree"])
    folder, ranks = RunFolder(Path(job["run"])), Ranks(job["rank"], job["size"])
    context = RunContext(config, job["tree"], folder, Terminal(), Interrupt(folder.path / "not-for-ranks"))
    # With all threads, as the first rank: how many they are shows in the last bits of PiSSA's start.
    parts = load_parts(context, read_pairs(config.data, context.cache_dir), job["tokens"], rank=ranks.rank)
    torch.set_num_threads(job["threads"])
    _ready(Path(job["place"]), ranks.rank).touch()
    with ranks.meeting(Path(job["place"]), parts.device):
        done = ranks.from_first(0)
        resume = last_checkpoint(folder.checkpoints)[1] if done else None  # type: ignore[index] # the first rank read it
        fit(config, parts, folder, ranks=ranks, resume=resume, callback=Resuming(resume))


def main() -> None:
    """`python -m dpo_lab.training.workers JOB`, started by the first rank."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with_parent, args=(job["parent"],), daemon=True).start()
    log.info("rank %d of %d, process %d", job["rank"], job["size"], os.getpid())
    try:
        work(job)
    except LostTouch:  # somebody else failed
        log.exception("lost touch with the other ranks")
        sys.exit(LOST)
    except Exception as e:
        text = str(e) if isinstance(e, LabError) else f"{type(e).__name__}: {e}"
        report = _report(RunFolder(Path(job["run"])), job["rank"])
        report.write_text(json.dumps({"error": text.splitlines()[0] if text else type(e).__name__}), encoding="utf-8")
        raise


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _ready(place: Path, rank: int) -> Path:
    return place.with_name(f"rank{rank}.ready")


def _log(folder: RunFolder, rank: int) -> Path:
    return folder.path / f"rank{rank}.log"


def _report(folder: RunFolder, rank: int) -> Path:
    return folder.path / f"rank{rank}.json"


if __name__ == "__main__":
    main()
