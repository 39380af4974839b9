"""The examination before training: where its report goes, what it stops, what it costs, and that it changes no number."""

import json
from pathlib import Path

import pytest
from runs import Lab, weights

from dpo_lab.data.doctor.findings import Report
from dpo_lab.runtime.errors import Unfit
from dpo_lab.runtime.files import read_json

SHORT = ("optim.max_steps=2", "prompts=none", "trainer.eval_every=0", "trainer.kl_pairs=0")


def test_the_report_is_in_the_run_folder_on_the_screen_and_in_wandb(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = lab.train(*SHORT, "logger=wandb")
    report = Report.from_json(read_json(run.doctor))
    assert [f.check for f in report.findings if f.severity == "warning"]
    assert f"Data of run {run.path.name}" in run.doctor.with_suffix(".html").read_text(encoding="utf-8")
    said = " ".join(capsys.readouterr().out.split())
    assert report.summary() in said
    [table] = run.path.glob("wandb/offline-run-*/files/media/table/doctor/findings_*.json")
    logged = json.loads(table.read_text(encoding="utf-8"))["data"]
    assert [row[:3] for row in logged] == [[f.severity, f.check, f.message] for f in report.findings]
    [table] = run.path.glob("wandb/offline-run-*/files/media/table/doctor/numbers_*.json")
    assert dict(json.loads(table.read_text(encoding="utf-8"))["data"]) == pytest.approx(
        dict(report.numbers), nan_ok=True
    )


def test_a_finding_that_does_not_pass_ends_the_run_before_the_model_loads(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the model must not load")

    monkeypatch.setattr("dpo_lab.inference.setup.load_policy", never)
    with pytest.raises(Unfit, match=r"doctor\.fail_on=warning stops here\. First: .* pairs"):
        lab.train(*SHORT, "doctor.fail_on=warning")
    [folder] = (lab.output / "runs").iterdir()
    assert read_json(folder / "status.json")["status"] == "failed"
    assert Report.from_json(read_json(folder / "doctor.json")).failed("warning")
    assert (folder / "doctor.html").is_file()


def test_the_same_run_is_found_again_whatever_the_doctor_is_asked(lab: Lab) -> None:
    first = lab.train(*SHORT)
    assert lab.train(*SHORT, "doctor.enabled=false", "doctor.seconds=9", "doctor.pairs=3").path == first.path


def test_the_doctor_changes_no_number(lab: Lab, tmp_path: Path) -> None:
    options = (*SHORT, "lora.dropout=0.2", "lora.init=gaussian")
    runs = [
        Lab(lab.root, lab.model, lab.data, output=tmp_path / name).train(*options, f"doctor.enabled={name}")
        for name in ("true", "false")
    ]
    first, second = (weights(run) for run in runs)
    assert first == second


def test_within_its_time_the_doctor_looks_at_fewer_pairs(lab: Lab) -> None:
    spent = read_json(lab.train(*SHORT, "doctor.seconds=0.001").doctor)
    assert spent["skipped"]
    assert spent["seconds"] < 1


def test_pairs_beyond_the_models_positions_are_told(lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": f"Q{i}?", "chosen": "yes " * (150 if i % 2 else 5), "rejected": "no"} for i in range(8)]
    data = tmp_path / "long.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Lab(lab.root, lab.model, data).train(*SHORT, "data.max_length=2000", "data.eval_fraction=0")
    assert "4 pairs are longer than the 512 positions that the model was made for" in caplog.text
