"""`python -m dpo_lab` from outside: exit codes, isolation of a sweep's jobs, what is printed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Stands in for training: what happens depends on the seed.
SCRIPT = """
import sys, types
from dpo_lab.runtime.errors import DataError, Interrupted, ModelError

def train(config, tree, run_dir):
    assert run_dir.is_absolute() and run_dir.is_dir() and "hydra" not in tree
    sys.stdout.write(f"trained {config.seed} {config.data.path}\\n")
    errors = {1: ModelError("no such model"), 2: ValueError("a bug"), 3: MemoryError(), 4: DataError("bad pairs"),
              5: Interrupted("stopped", "asked to stop", 143), 6: KeyboardInterrupt()}
    if config.seed in errors:
        raise errors[config.seed]
    return {}

sys.modules["dpo_lab.training.run"] = types.SimpleNamespace(train=train)
from dpo_lab.__main__ import main
main()
"""


def lab(*words: str, cwd: Path, fake: bool = True) -> subprocess.CompletedProcess[str]:
    start = ["-c", SCRIPT] if fake else ["-m", "dpo_lab"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *start, f"cache_dir={cwd}/cache", *words]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("seed", "code", "said"),
    [(1, 1, "Error: no such model\n"), (4, 2, "Error: bad pairs\n"), (6, 130, "Stopped: interrupted\n")],
)
def test_a_single_run_ends_with_its_own_code_and_a_message_without_traceback(tmp_path, seed, code, said):
    done = lab(f"seed={seed}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, said)
    assert len(list((tmp_path / "outputs" / "runs").iterdir())) == 1


def test_failing_jobs_do_not_take_the_others_with_them_and_the_folder_is_found_again(tmp_path):
    words = ["-m", "seed=0,1,2,3,4,7"]
    done = lab(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["0", "1", "2", "3", "4", "7"]
    table = done.stderr[done.stderr.rindex("result") :]
    assert table.count("failed") == 4
    assert table.count("done") == 2
    assert "MemoryError" in table
    assert "Traceback" in done.stderr, "a bug of ours is shown in full"
    assert "ValueError: a bug" in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr
    sweeps = tmp_path / "outputs" / "sweeps"
    before = sorted(p.name for p in sweeps.glob("*/*"))
    assert lab("-m", "seed=0,7", "output_dir=" + str(tmp_path / "outputs"), cwd=tmp_path).returncode == 0
    assert sorted(p.name for p in sweeps.glob("*/*")) == before


def test_an_interruption_ends_the_sweep(tmp_path):
    done = lab("-m", "seed=0,5,7", cwd=tmp_path)
    assert done.returncode == 143
    assert "trained 7" not in done.stdout
    assert "stopped" in done.stderr


def test_an_odd_path_arrives(tmp_path):
    file = tmp_path / "张三 的" / "a=1,b (2).jsonl"
    file.parent.mkdir()
    file.touch()
    done = lab("data=file", f"data.path={file}", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"trained 0 {file}\n"


def test_nothing_is_written_when_the_command_line_is_refused(tmp_path):
    done = lab("optim.bta=1", "loss=sigmoid", cwd=tmp_path, fake=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 3
    assert not list(tmp_path.iterdir())


def test_help_lists_groups_and_keys_and_cfg_agrees_with_hydra(tmp_path):
    shown = lab("--help", cwd=tmp_path, fake=False).stdout
    assert "loss: dpo, ipo" in shown
    assert "collapse_nats: 10.0" in shown
    ours = lab("--cfg", "job", "loss=ipo", cwd=tmp_path, fake=False).stdout
    hydras = lab("--cfg", "job", "--package", "_global_", "loss=ipo", cwd=tmp_path, fake=False).stdout
    assert ours == hydras != ""
