"""`python -m dpo_lab.preview` as a user runs it: what it prints, writes and exits with."""

import base64
import gzip
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.folder / "doctor.json").read_text(encoding="utf-8"))

    @property
    def page(self) -> dict[str, Any]:
        """What the page holds."""
        text = (self.folder / "preview.html").read_text(encoding="utf-8")
        packed = max(re.findall(r">\s*([A-Za-z0-9+/=\s]{200,}?)\s*</script>", text), key=len)
        return json.loads(gzip.decompress(base64.b64decode(packed)))


def preview(tmp_path: Path, model: Path, data: Path, *words: str) -> Said:
    command = [
        *(sys.executable, "-m", "dpo_lab.preview", "model=hf", f"model.path={model}", "data=file", f"data.path={data}"),
        *(f"output_dir={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}", *words),
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    folders = [*(tmp_path / "out" / "previews").glob("*")] or [tmp_path]
    return Said(ran.returncode, ran.stdout, ran.stderr, folders[0])


def write(path: Path, n: int = 120, **changes: str) -> Path:
    words = ("red", "blue", "green", "small", "large", "round", "old", "new", "warm", "cold", "near")
    rows = []
    for i in range(n):
        pick = [words[(i * k + k * k) % len(words)] for k in (1, 3, 5, 7)]
        rows.append(
            {
                "prompt": f"Which is the {i}th thing on the {pick[0]} list of {pick[1]} things?",
                "chosen": f"It is {pick[2]}, number {i * 7}.",
                "rejected": f"Maybe {pick[3]}, number {i * 5} it is.",
            }
            | changes
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Said:
    """A model folder without weights is enough."""
    tmp_path = tmp_path_factory.mktemp("preview")
    bare = tmp_path / "model"
    bare.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix == ".json" or file.suffix == ".jinja":
            (bare / file.name).write_bytes(file.read_bytes())
    return preview(tmp_path, bare, write(tmp_path / "pairs.jsonl"), "data.eval_fraction=0.5", "preview.ids=true")


def test_it_shows_pairs_as_the_model_sees_them_and_what_was_found(plain: Said) -> None:
    assert plain.err == ""
    assert plain.code == 0
    assert plain.out.count("<|im_start|>") == 6
    assert plain.out.count("<|im_end|>") == 9
    assert "pairs.jsonl row" in plain.out
    assert "preview.html" in plain.out
    assert plain.report["worst"] != "error"


def test_the_page_holds_every_pair_with_its_row_as_it_stands_in_the_file(plain: Said) -> None:
    page = plain.page
    text = json.dumps(page)
    assert "Which is the 119th thing" in text
    assert len(page["items"]) == 120
    assert all("Which is the" in item["r"] for item in page["items"])


def test_findings_decide_the_exit_code(tmp_path: Path, tiny_model: Path) -> None:
    rows = write(tmp_path / "a.jsonl").read_text(encoding="utf-8")
    (tmp_path / "same.jsonl").write_text(rows * 2, encoding="utf-8")
    words = ("data.eval_path=" + str(tmp_path / "a.jsonl"), "preview.page=false", "preview.show=0")
    leaking = preview(tmp_path, tiny_model, tmp_path / "same.jsonl", *words, "doctor.fail_on=warning")
    assert leaking.code == 2
    assert "No pair is left to train on" in leaking.err
    few = ("data.eval_fraction=0.05", "preview.page=false", "preview.show=0")
    for fail_on, code in (("warning", 1), ("error", 0)):
        said = preview(tmp_path / fail_on, tiny_model, tmp_path / "a.jsonl", *few, f"doctor.fail_on={fail_on}")
        assert said.code == code
        assert ("doctor.fail_on=warning stops here" in said.err) == bool(code)
        assert said.report["worst"] == "warning"
        assert not (said.folder / "preview.html").exists()


def test_with_json_only_the_report_is_all_that_is_printed(tmp_path: Path, tiny_model: Path) -> None:
    said = preview(tmp_path, tiny_model, write(tmp_path / "a.jsonl"), "preview.json_only=true", "preview.page=false")
    assert json.loads(said.out) == said.report
    assert said.report["sizes"]["train"] > 90


def test_faulty_data_is_told_in_a_line_with_exit_code_2(tmp_path: Path, tiny_model: Path) -> None:
    said = preview(tmp_path, tiny_model, write(tmp_path / "a.jsonl", chosen=""))
    assert said.code == 2
    assert "Traceback" not in said.err
    assert re.match(r"Error: No pair is left to train on \(.*dropped \(empty answer, first in row 1\)", said.err)
    wrong = preview(tmp_path, tiny_model, tmp_path / "a.jsonl", "preview.shows=1", "data.fromat=trl")
    assert wrong.code == 2
    assert "preview.show?" in wrong.err
    assert "data.format?" in wrong.err


def test_a_page_of_the_first_pairs_says_so(tmp_path: Path, tiny_model: Path) -> None:
    said = preview(tmp_path, tiny_model, write(tmp_path / "a.jsonl"), "preview.page_pairs=20", "preview.show=0")
    assert re.search(r"the first 20 of\s+120 pairs", said.out)
    assert len(said.page["items"]) == 20
