"""`python -m dpo_lab` from outside: exit codes, what is printed, and multiruns by Hydra's own launcher."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Runs each command line in a fork of one process, which saves the imports. A stand-in for training does what the
# seed says.
SCRIPT = """
import json, os, sys, types
from pathlib import Path
from dpo_lab.runtime.errors import DataError, Interrupted, ModelError

def train(config, tree, run_dir):
    assert run_dir.is_absolute() and run_dir.is_dir() and "hydra" not in tree
    sys.stdout.write(f"trained {config.seed} {config.data.path}\\n")
    errors = {1: ModelError("no such model"), 2: ValueError("a bug"), 3: MemoryError(), 4: DataError("bad pairs"),
              5: Interrupted("stopped", "asked to stop", 143), 6: KeyboardInterrupt(),
              7: Interrupted("pruned", "worse than the others", 0)}
    if config.seed in errors:
        raise errors[config.seed]
    return {}

sys.modules["dpo_lab.training.run"] = types.SimpleNamespace(train=train)
from dpo_lab.__main__ import main

for name, words in json.loads(sys.argv[1]).items():
    Path(name).mkdir()
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        Path(f"{name}.code").write_text(str(code))
        continue
    for number, kind in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    os.chdir(name)
    sys.argv[1:] = words
    main()
"""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str
    folder: Path


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Every command line of this module, run once."""
    root = tmp_path_factory.mktemp("door")
    odd = root / "张三 的" / "a=1,b (2).jsonl"
    odd.parent.mkdir()
    odd.touch()
    commands = {
        "user error": ["seed=1"],
        "data error": ["seed=4"],
        "ctrl-c": ["seed=6"],
        "odd path": ["data=file", f"data.path={odd}"],
        "refused": ["optim.bta=1", "loss=sigmoid"],
        "sweep": ["-m", "hydra/launcher=basic", "seed=0,1,2,3,7,8", f"output_dir={root}/shared"],
        "again": ["-m", "hydra/launcher=basic", "seed=0,8", f"output_dir={root}/shared"],
        "stopped sweep": ["-m", "hydra/launcher=basic", "seed=0,5,8"],
        "help": ["--help"],
        "cfg": ["--cfg", "job", "loss=ipo"],
        "cfg by hydra": ["--cfg", "job", "--package", "_global_", "loss=ipo"],
    }
    commands = {name: [*words, f"cache_dir={root}/cache"] for name, words in commands.items()}
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", SCRIPT, json.dumps(commands)], cwd=root, env=env, check=True)
    read = {name: [(root / f"{name}.{kind}").read_text() for kind in ("code", "out", "err")] for name in commands}
    return {name: Ended(int(code), out, err, root / name) for name, (code, out, err) in read.items()}


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("user error", 1, "Error: no such model\n"),
        ("data error", 2, "Error: bad pairs\n"),
        ("ctrl-c", 130, "Stopped: interrupted\n"),
        ("odd path", 0, ""),
    ],
)
def test_a_single_run_ends_with_its_own_code_and_a_message_without_traceback(ended, name, code, said):
    assert (ended[name].code, ended[name].err) == (code, said)
    assert len(list((ended[name].folder / "outputs" / "runs").iterdir())) == 1


def test_an_odd_path_arrives(ended):
    assert ended["odd path"].out == f"trained 0 {ended['odd path'].folder.parent}/张三 的/a=1,b (2).jsonl\n"


def test_failing_jobs_do_not_take_the_others_with_them(ended):
    sweep = ended["sweep"]
    assert sweep.code == 1
    assert [line.split()[1] for line in sweep.out.splitlines()] == ["0", "1", "2", "3", "7", "8"]
    table = sweep.err[sweep.err.rindex("result") :]
    assert (table.count("failed"), table.count("done")) == (3, 2)
    assert "seed=3" in table
    assert "MemoryError" in table
    assert "pruned: worse than the others" in table
    assert "Traceback" in sweep.err, "a bug of ours is shown in full"
    assert "ValueError: a bug" in sweep.err
    assert "HYDRA_FULL_ERROR" not in sweep.err


def test_the_same_sweep_finds_its_folders_again(ended):
    assert ended["again"].code == 0
    folders = list((ended["again"].folder.parent / "shared" / "sweeps").glob("*/*/.hydra"))
    assert len(folders) == 6, "seeds 0 and 8 went into the folders that were there"


def test_an_interruption_ends_the_sweep(ended):
    stopped = ended["stopped sweep"]
    assert stopped.code == 143
    assert "trained 8" not in stopped.out
    assert "stopped: asked to stop" in stopped.err


def test_nothing_is_written_when_the_command_line_is_refused(ended):
    refused = ended["refused"]
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("Error: 2 problems, nothing was started.\n")
    assert not list(refused.folder.iterdir())


def test_help_lists_groups_and_keys(ended):
    assert "loss: aot, aot_unpaired" in ended["help"].out
    assert "collapse_nats: 10.0" in ended["help"].out


def test_what_cfg_job_shows_is_what_hydra_would_show(ended):
    assert ended["cfg"].out == ended["cfg by hydra"].out != ""


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "dpo_lab", "nonsense"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "Error: nonsense: an override has the form KEY=VALUE.\n")
