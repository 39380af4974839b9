"""Exports: loaded by transformers and PEFT alone, checked, never half there, never over something else."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from doors import door_of, quantised_run, whole_run
from safetensors.torch import load_file, save_file
from tiny import write_tiny_model

from dpo_lab.inference.export import export
from dpo_lab.inference.exports import disk, merged
from dpo_lab.inference.exports.hub import hub_token
from dpo_lab.runtime.errors import ConfigError, DiskFull, ModelError, OutputError
from dpo_lab.runtime.files import read_json

SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

def logps(kind, folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind == "adapter":
        from peft import PeftModel
        named = json.load(open(folder + "/adapter_config.json"))["base_model_name_or_path"]
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(named, dtype=torch.float32), folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    talk = [{"role": "user", "content": "Question: why?"}]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) + "Because of this."
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logps = model.eval()(input_ids=ids).logits.log_softmax(-1)
    return {"text": text, "logps": logps[0, :-1].gather(-1, ids[0, 1:, None])[:, 0].tolist()}
"""
BARE = """
answers = [logps(*one) for one in json.loads(sys.argv[1])]
assert not any(name.startswith("dpo_lab") for name in sys.modules)
print("\\n" + json.dumps(answers))
"""


def bare(tmp_path: Path, *asked: tuple[str, Path]) -> list[dict[str, Any]]:
    """Log-probs of one text under each folder, from a process that knows nothing of this project."""
    words = json.dumps([(kind, str(folder)) for kind, folder in asked])
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT + BARE, words], capture_output=True, text=True, cwd=tmp_path, env=env, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def plain(*asked: tuple[str, Path]) -> list[dict[str, Any]]:
    """The same code in this process, which has imported the libraries already."""
    names: dict[str, Any] = {}
    exec(SCRIPT, names)  # noqa: S102 - the script above
    return [names["logps"](kind, str(folder)) for kind, folder in asked]


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Mean difference per token; the texts must be the same."""
    assert one["text"] == other["text"]
    pairs = list(zip(one["logps"], other["logps"], strict=True))
    return sum(abs(a - b) for a, b in pairs) / len(pairs)


def exported(lab: Any, *words: str) -> tuple[Path, dict[str, float]]:
    config, tree, given = door_of("export", lab, *words)
    numbers = export(config, tree, Path(), given=given)
    return Path(str(config.output)), numbers


def run_of(lab: Any) -> str:
    return f"run={lab.runs[0]}"


@pytest.fixture(scope="module")
def made(lab, tmp_path_factory) -> dict[str, tuple[Path, dict[str, float]]]:
    """The first run as an adapter and as merged weights in three dtypes."""
    root = tmp_path_factory.mktemp("exports")
    kinds = {"adapter": ["format=adapter"]}
    kinds |= {dtype: ["format=merged", f"export.dtype={dtype}"] for dtype in ("float32", "float16", "bfloat16")}
    return {name: exported(lab, run_of(lab), f"output={root / name}", *words) for name, words in kinds.items()}


@pytest.fixture(scope="module")
def of_4_bit(lab, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    words = [f"run={quantised_run(lab)}", "format=merged", "export.dtype=float32"]
    return exported(lab, *words, f"output={tmp_path_factory.mktemp('bits') / 'merged'}")


@pytest.fixture(scope="module")
def of_whole(lab, tmp_path_factory) -> tuple[Path, dict[str, float]]:
    words = [f"run={whole_run(lab)}", "format=merged", "export.dtype=float32"]
    return exported(lab, *words, f"output={tmp_path_factory.mktemp('whole') / 'merged'}")


def test_exports_give_the_runs_log_probs_in_a_script_without_the_lab(lab, made, of_4_bit, of_whole, tmp_path):
    final = lab.runs[0] / "final"
    asked = [("adapter", final), ("merged", lab.model), ("adapter", made["adapter"][0])]
    asked += [("merged", made[dtype][0]) for dtype in ("float32", "float16", "bfloat16")]
    asked += [("adapter", quantised_run(lab) / "final"), ("merged", of_4_bit[0])]  # both on the unquantised base
    asked += [("merged", whole_run(lab) / "final"), ("merged", of_whole[0])]
    trained, base, adapter, full, half, brain, peft_4_bit, merged_4_bit, whole, merged_whole = bare(tmp_path, *asked)
    assert apart(trained, base) > 0.05, "training must have changed something"
    assert apart(trained, adapter) < 1e-6
    assert apart(trained, full) < 1e-5
    assert 1e-6 < apart(trained, half) < 1e-2
    assert apart(trained, half) < apart(trained, brain) < 6e-2
    assert apart(peft_4_bit, merged_4_bit) < 1e-5
    assert apart(whole, merged_whole) < 1e-6 < apart(whole, base)


def test_the_numbers_of_the_check_are_those_of_the_dtype(made):
    gaps = {name: numbers["export/gap"] for name, (_, numbers) in made.items()}
    assert gaps["adapter"] < 1e-5
    assert gaps["float32"] < 1e-5 < gaps["float16"] < gaps["bfloat16"]
    for name, (folder, numbers) in made.items():
        assert numbers["export/gap"] <= numbers["export/tolerance"], name
        assert numbers["export/bytes"] == pytest.approx(disk.folder_size(folder))
        assert read_json(folder / disk.RECORD)["numbers"]["export/gap"] == numbers["export/gap"]


def test_the_adapter_is_the_runs_own_with_its_base_and_its_card(lab, made):
    folder, final = made["adapter"][0], lab.runs[0] / "final"
    for name in ("adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (final / name).read_bytes()
    card = (folder / "README.md").read_text()
    assert card.startswith((final / "README.md").read_text().rstrip())
    assert "| check |" in card
    assert str(folder) not in card


def test_merged_weights_come_with_all_that_a_model_needs(lab, made):
    folder = made["float16"][0]
    assert read_json(folder / "config.json")["dtype"] == "float16"
    assert read_json(folder / "config.json")["use_cache"] is True
    assert read_json(folder / "generation_config.json")["eos_token_id"] == 2
    assert "preference-tuned" in (folder / "README.md").read_text()
    weights = load_file(folder / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float16}
    assert (folder / "chat_template.jinja").read_bytes() == (lab.runs[0] / "final" / "chat_template.jinja").read_bytes()


def test_shards_are_no_larger_than_asked_and_load_as_one(lab, made, tmp_path):
    words = ["format=merged", "export.dtype=float32", "export.shard_size=40KB"]
    folder, numbers = exported(lab, run_of(lab), f"output={tmp_path / 'shards'}", *words)
    files = sorted(folder.glob("model-*-of-*.safetensors"))
    assert len(files) > 1
    whole = load_file(made["float32"][0] / "model.safetensors")
    parts = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    assert numbers["export/gap"] < 1e-5


def test_a_run_in_4_bit_is_merged_into_the_unquantised_base(lab, of_4_bit, tmp_path):
    folder, numbers = of_4_bit
    assert numbers["export/gap"] < 1e-5, "from the adapter on the unquantised base"
    assert numbers["export/quantised_gap"] > 1e-3, "4 bits are not 32"
    assert "4-bit policy" in (folder / "README.md").read_text()
    _, same = exported(lab, f"run={quantised_run(lab)}", "format=adapter", f"output={tmp_path / 'a'}")
    assert same["export/gap"] < 1e-4, "the adapter alone is compared on the 4-bit base"


def test_a_model_that_was_trained_as_a_whole_has_no_adapter(lab, of_whole, tmp_path):
    assert of_whole[1]["export/gap"] < 1e-5
    with pytest.raises(ConfigError, match=r"trained as a whole.*format=merged"):
        exported(lab, f"run={whole_run(lab)}", "format=adapter", f"output={tmp_path / 'x'}")


ADAPTERS = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "embedding and head": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"k_proj": 3}},
    "biases": {"bias": "all"},
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_of_all_kinds_are_merged(lab, tmp_path, kind):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = lab.model
    if kind == "biases":
        base = write_tiny_model(tmp_path / "biased", "qwen2")
    torch.manual_seed(3)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **ADAPTERS[kind])
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    with torch.no_grad():
        for name, p in peft.named_parameters():
            if p.requires_grad and "lora_A" not in name:
                p.add_(0.05 * torch.randn_like(p))
    peft.save_pretrained(tmp_path / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, tmp_path / "adapter")
    words = [f"adapter={tmp_path / 'adapter'}", "model=hf", f"model.path={base}", "data=file", f"data.path={lab.data}"]
    folder, numbers = exported(lab, *words, "format=merged", "export.dtype=float32", f"output={tmp_path / 'out'}")
    with_adapter, mine, without = plain(("adapter", tmp_path / "adapter"), ("merged", folder), ("merged", base))
    assert apart(with_adapter, without) > 1e-2
    assert apart(with_adapter, mine) < 1e-5
    assert numbers["export/gap"] < 1e-5


def test_an_adapter_that_went_on_from_another_needs_no_other(lab, tmp_path):
    words = [f"lora.adapter={lab.runs[0]}", "optim.max_steps=2", "optim.lr=1e-2"]
    run = lab.train(*words).path
    folder, _ = exported(lab, f"run={run}", "format=merged", "export.dtype=float32", f"output={tmp_path / 'c'}")
    final = lab.runs[0] / "final"
    trained, former, mine = plain(("adapter", run / "final"), ("adapter", final), ("merged", folder))
    assert apart(trained, mine) < 1e-5
    assert apart(trained, former) > 1e-3


def test_an_adapter_of_elsewhere_gets_what_it_lacks(lab, tmp_path):
    source = tmp_path / "adapter"
    source.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(lab.runs[0] / "final" / name, source)
    words = [f"adapter={source}", "model=hf", f"model.path={lab.model}", "data=file", f"data.path={lab.data}"]
    folder, _ = exported(lab, *words, "format=adapter", f"output={tmp_path / 'out'}")
    assert {"tokenizer.json", "chat_template.jinja", "README.md"} <= {p.name for p in folder.iterdir()}
    one, other = plain(("adapter", folder), ("adapter", lab.runs[0] / "final"))
    assert apart(one, other) < 1e-6
    assert not (source / "README.md").exists(), "what is exported stays as it is"


def flipped(folder: Path, sign: float = -1.0) -> None:
    """Turn one tensor of the weights around, as a fault of a writer or a disk would."""
    [file] = folder.glob("*.safetensors")
    weights = load_file(file)
    name = next(n for n in sorted(weights) if "down_proj" in n)
    weights[name] = weights[name] * sign
    save_file(weights, file, metadata={"format": "pt"})


def test_damage_in_writing_is_found_and_nothing_is_left(lab, tmp_path, monkeypatch):
    real = merged.write_merged

    def spoiled(model, template, folder, **kwargs):
        real(model, template, folder, **kwargs)
        flipped(folder)

    monkeypatch.setattr(merged, "write_merged", spoiled)
    with pytest.raises(OutputError, match=r"does not hold what was written.*differ by"):
        exported(lab, run_of(lab), "format=merged", "export.tolerance=100.0", f"output={tmp_path / 'out'}")
    assert list(tmp_path.iterdir()) == []


def test_a_small_damage_within_the_rounding_of_the_dtype_is_found_too(lab, tmp_path, monkeypatch):
    real = merged.write_merged

    def spoiled(model, template, folder, **kwargs):
        real(model, template, folder, **kwargs)
        flipped(folder, 1.002)

    monkeypatch.setattr(merged, "write_merged", spoiled)
    with pytest.raises(OutputError, match=r"does not hold what was written"):
        exported(lab, run_of(lab), "format=merged", "export.dtype=float32", f"output={tmp_path / 'out'}")


def test_a_file_that_was_cut_is_found_and_nothing_is_left(lab, tmp_path, monkeypatch):
    real = merged.write_merged

    def spoiled(model, template, folder, **kwargs):
        real(model, template, folder, **kwargs)
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])

    monkeypatch.setattr(merged, "write_merged", spoiled)
    with pytest.raises(OutputError, match="could not be loaded back, and was removed"):
        exported(lab, run_of(lab), "format=merged", f"output={tmp_path / 'out'}")
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_was_damaged_in_copying_is_found(lab, tmp_path, monkeypatch):
    from dpo_lab.inference.exports import adapter

    real = adapter.write_adapter

    def spoiled(result, template, folder):
        real(result, template, folder)
        flipped(folder)

    monkeypatch.setattr(adapter, "write_adapter", spoiled)
    with pytest.raises(OutputError, match="is not the policy"):
        exported(lab, run_of(lab), "format=adapter", f"output={tmp_path / 'out'}")
    assert list(tmp_path.iterdir()) == []


def test_a_tolerance_that_rounding_exceeds_fails_and_says_what_to_do(lab, tmp_path):
    words = ["format=merged", "export.dtype=bfloat16", "export.tolerance=1e-7", f"output={tmp_path / 'out'}"]
    with pytest.raises(OutputError, match=r"is not the policy.*1e-07.*export.dtype=float32"):
        exported(lab, run_of(lab), *words)
    assert list(tmp_path.iterdir()) == []


def test_what_lies_at_the_output_is_never_deleted_unasked(lab, made, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(made["adapter"][0], output)
    words = [run_of(lab), "format=merged", f"output={output}"]
    with pytest.raises(ConfigError, match=r"not overwritten.*overwrite=true"):
        exported(lab, *words)
    assert (output / "adapter_config.json").is_file()
    exported(lab, *words, "overwrite=true")
    assert (output / "model.safetensors").is_file()
    assert not (output / "adapter_config.json").exists()
    (output / disk.RECORD).unlink()
    with pytest.raises(ConfigError, match="no earlier export"):
        exported(lab, *words, "overwrite=true")


def test_the_output_is_not_what_it_is_made_of(lab, made, tmp_path):
    for output in (lab.runs[0], lab.runs[0] / "final" / "x"):
        with pytest.raises(ConfigError, match=r"lies in the result itself|lie in one another"):
            exported(lab, run_of(lab), "format=merged", f"output={output}", "overwrite=true")
    base = Path(shutil.copytree(made["float32"][0], tmp_path / "base"))  # an earlier export, so it could be overwritten
    words = [f"adapter={shutil.copytree(lab.runs[0] / 'final', tmp_path / 'a')}", "model=hf", f"model.path={base}"]
    words += ["data=file", f"data.path={lab.data}", "format=merged", f"output={base}", "overwrite=true"]
    with pytest.raises(ConfigError, match="lie in one another"):
        exported(lab, *words)
    assert (base / "model.safetensors").is_file()


def test_where_an_export_may_go(tmp_path, monkeypatch):
    used = tmp_path / "run" / "final"
    used.mkdir(parents=True)
    for output in (used, used / "x", tmp_path / "run", tmp_path):
        with pytest.raises(ConfigError, match="lie in one another"):
            disk.check_output(output, overwrite=True, used=[used])
    (tmp_path / "full").mkdir()
    disk.check_output(tmp_path / "full", overwrite=False, used=[used])  # empty
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"exists already.*overwrite=true"):
        disk.check_output(tmp_path / "full", overwrite=False, used=[used])
    with pytest.raises(ConfigError, match="no earlier export"):
        disk.check_output(tmp_path / "full", overwrite=True, used=[used])
    (tmp_path / "full" / disk.RECORD).write_text("{}")
    disk.check_output(tmp_path / "full", overwrite=True, used=[used])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file is no folder.*output=FOLDER"):
        disk.check_output(tmp_path / "file" / "out", overwrite=False, used=[used])
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(OutputError, match=r"no permission.*output=FOLDER"):
        disk.check_output(tmp_path / "out", overwrite=False, used=[used])


def test_a_full_disk_is_told_and_leaves_nothing(lab, tmp_path):
    import resource
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"Cannot write output=.*File too large.*output=FOLDER"):
            exported(lab, run_of(lab), "format=merged", f"output={tmp_path / 'out'}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DiskFull, match=r"needs about .* GB, and .* are free"):
        disk.check_room(tmp_path / "out", 2**60)


def test_nothing_is_merged_into_a_quantised_base(lab, tmp_path):
    with pytest.raises(ConfigError, match=r"unquantised base.*quant=4bit is given"):
        exported(lab, f"run={quantised_run(lab)}", "quant=4bit", "format=merged", f"output={tmp_path / 'x'}")
    base = Path(shutil.copytree(lab.model, tmp_path / "gptq"))
    settings = read_json(base / "config.json") | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (base / "config.json").write_text(json.dumps(settings))
    words = [f"adapter={lab.runs[0] / 'final'}", "model=hf", f"model.path={base}", "data=file", f"data.path={lab.data}"]
    shutil.copytree(lab.runs[0] / "final", tmp_path / "adapter")  # of elsewhere: it names no base's identity
    words[0] = f"adapter={tmp_path / 'adapter'}"
    with pytest.raises(ModelError, match=r"quantised themselves \(gptq\).*format=adapter"):
        exported(lab, *words, "format=merged", f"output={tmp_path / 'out'}")


def test_one_result_at_a_time(lab, tmp_path):
    with pytest.raises(ConfigError, match=r"one result|One result"):
        exported(lab, f"run=[{lab.runs[0]},{lab.runs[1]}]", f"output={tmp_path / 'x'}")


def test_sizes_of_shards():
    assert [disk.size_of(t) for t in ("5GB", "1.5 kB", "2MiB", "700B")] == [5_000_000_000, 1500, 2 * 1024**2, 700]
    for text in ("big", "5", "GB", "0GB", "-1GB"):
        with pytest.raises(ConfigError, match="is no size"):
            disk.size_of(text)
    assert [disk.size(n) for n in (999, 1500, 2.5e6, 3e9)] == ["999 bytes", "1.5 kB", "2.5 MB", "3.00 GB"]


def test_what_is_shown_says_where_how_large_how_exact_and_what_next(lab, tmp_path, capsys):
    folder, numbers = exported(lab, run_of(lab), "format=adapter", f"output={tmp_path / 'shown'}")
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("Exported: adapter", "shown", "adapter_model.safetensors", "nats per token", "allowed 0.0001"):
        assert text in shown
    assert "from_pretrained" in shown
    assert "Next: python -m dpo_lab.chat adapter=" in shown
    assert f"{numbers['export/gap']:.2g}" in shown
    assert str(lab.model) in shown


# The hub


class Hub(BaseHTTPRequestHandler):
    """A hub that takes uploads of small files: their contents come with the commit."""

    files: dict[str, bytes]
    asked: list[tuple[str, str]]
    refuse = public = False

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.path, self.headers.get("Authorization") or ""))
        if self.refuse:
            return self.send(403, {"error": "no"})
        if self.path.endswith("/api/repos/create"):
            self.made = json.loads(body)
            type(self).created = self.made
            return self.send(200, {"url": f"http://{self.headers['Host']}/toys/mine"})
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return self.send(
                200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            )
        if "/commit/" in self.path:
            import base64

            for line in body.decode().splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    self.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            return self.send(
                200, {"commitUrl": f"http://{self.headers['Host']}/toys/mine/commit/1", "commitOid": "1" * 40}
            )
        return self.send(200, {"id": "toys/mine", "sha": "0" * 40, "siblings": [], "private": not self.public})

    def send(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub.constants

    handler: Any = type("ThisHub", (Hub,), {"files": {}, "asked": [], "created": None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


def test_an_export_is_uploaded_when_asked(lab, tmp_path, hub):
    folder, _ = exported(lab, run_of(lab), "format=adapter", "export.push_to_hub=toys/mine", f"output={tmp_path / 'p'}")
    assert (hub.created["name"], hub.created["organization"]) == ("mine", "toys")
    assert hub.created.get("visibility") == "private" or hub.created["private"] is True
    assert {authorization for _, authorization in hub.asked} == {"Bearer hf_secret"}
    assert hub.files == {p.name: p.read_bytes() for p in folder.iterdir()}
    assert "hf_secret" not in "".join(data.decode(errors="replace") for data in hub.files.values())
    assert '"toys/mine"' in hub.files["README.md"].decode()


def test_a_public_repository_gets_nothing_that_was_to_be_private(lab, tmp_path, hub):
    hub.public = True
    words = [run_of(lab), "format=adapter", "export.push_to_hub=toys/mine"]
    with pytest.raises(OutputError, match=r"nothing was uploaded: toys/mine exists and is public"):
        exported(lab, *words, f"output={tmp_path / 'p'}")
    assert (tmp_path / "p" / "adapter_model.safetensors").is_file()
    assert not hub.files
    exported(lab, *words, "export.private=false", f"output={tmp_path / 'q'}")
    assert "adapter_model.safetensors" in hub.files


def test_a_refused_upload_leaves_the_export_and_says_how_to_try_again(lab, tmp_path, hub):
    hub.refuse = True
    output = tmp_path / "p"
    with pytest.raises(OutputError, match=r"HF_TOKEN may not write there \(403\).*hf upload toys/mine"):
        exported(lab, run_of(lab), "format=adapter", "export.push_to_hub=toys/mine", f"output={output}")
    assert (output / "adapter_model.safetensors").is_file()


def test_an_upload_without_a_token_or_a_name_is_told_before_anything_is_written(lab, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    words = [run_of(lab), "format=adapter", f"output={tmp_path / 'p'}"]
    with pytest.raises(ConfigError, match="HF_TOKEN=hf_"):
        exported(lab, *words, "export.push_to_hub=toys/mine")
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        exported(lab, *words, "export.push_to_hub=mine")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("mine", "a/b/c", "no spaces/here", "toys/.."):
        with pytest.raises(ConfigError, match="give OWNER/NAME"):
            hub_token(name)
    assert hub_token("toys/mine") == "hf_secret"
    assert list(tmp_path.iterdir()) == []
