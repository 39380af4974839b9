"""What people install: the wheel and the sdist, used away from the checkout."""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {".py", ".json", ".jsonl", ".jinja", ".yaml", ".txt", ".md", ".html", ".css", ".js"}

pytestmark = pytest.mark.slow


def run(*words, cwd, **env):
    done = subprocess.run(
        [str(w) for w in words], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def build(what, source, out):
    run(sys.executable, "-m", "build", f"--{what}", "--no-isolation", "--outdir", out, source, cwd=out)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with the wheel unpacked as pip does it, and nothing else."""
    target = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(*pip, "--target", target, wheel, cwd=target)
    return target


def files_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_the_code_the_configuration_and_the_demo_data(wheel):
    expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / "dpo_lab").rglob("*") if p.suffix in SHIPPED}
    expected |= {f"dpo_lab/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "conf").rglob("*.yaml")}
    assert not expected - files_of(wheel)
    assert any(name.endswith(".jsonl") for name in expected), "the demo's pairs travel with the package"


def test_the_installed_wheel_composes_its_own_configuration(site, tmp_path):
    printed = run(sys.executable, "-m", "dpo_lab", "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(site))
    assert "beta:" in printed
    code = "from dpo_lab.config.paths import CONF_DIR; print(CONF_DIR)"
    conf = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site)).strip()
    assert Path(conf) == (site / "dpo_lab" / "conf").resolve()
    assert not list(tmp_path.iterdir()), "showing the configuration must leave nothing behind"


def test_the_console_script_runs(site, tmp_path):
    (entry,) = [
        entry
        for distribution in importlib.metadata.distributions(name="dpo-lab", path=[str(site)])
        for entry in distribution.entry_points.select(group="console_scripts")
    ]
    assert (entry.name, entry.value) == ("dpo-lab", "dpo_lab.__main__:main")
    printed = run(site / "bin" / "dpo-lab", "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(site))
    assert "beta:" in printed


def test_the_sdist_builds_the_same_wheel(wheel, tmp_path):
    (tmp_path / "sdist").mkdir()
    (tmp_path / "again").mkdir()
    with tarfile.open(build("sdist", ROOT, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("dpo_lab-*")
    assert files_of(build("wheel", unpacked, tmp_path / "again")) == files_of(wheel)
