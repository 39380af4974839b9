"""What benchmarks/against_trl.py compares on: models and pairs, laid out alike for both sides."""

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dpo_lab.runtime.files import digest, fingerprint, write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "dpo_lab" / "data" / "demo" / "demo_train.jsonl"
Row = dict[str, Any]

QWEN = {  # Qwen2.5-0.5B's shape
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
TINY = QWEN | {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
    "initializer_range": 0.2,
}  # fmt: skip
SHAPES = {"qwen05b": QWEN, "tiny": TINY}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
WORDS = ["ample", "bring", "cloud", "dance", "eight", "field", "grain", "house", "inner", "jolly"]


@dataclass(frozen=True)
class Case:
    """A model, pairs and settings that every side has alike.

    Attributes:
        model: smollm2_135m (real weights), a name in SHAPES (random ones, a token a byte), or qwen_tokens: Qwen2.5-0.5B's
            shape with random weights and Qwen's own tokenizer, from --qwen FOLDER.
        source: en, zh (LLaMA-Factory's demo sets in --data FOLDER) or demo; or (prompt, answer): synthetic pairs of so
            many tokens.
        pairs: of the repeated rounds.
        large: of the single round; more than `pairs`.
        batch_size: pairs per optimizer step.
        batches: TRL's batches of which the best counts.
    """

    name: str
    device: str
    model: str
    source: str | tuple[int, int]
    max_length: int
    pairs: int = 16
    large: int = 64
    batch_size: int = 8
    batches: tuple[int, ...] = (1, 2, 4, 8)
    rank: int = 8
    lr: float = 1e-4
    beta: float = 0.1
    seed: int = 0

    @property
    def precision(self) -> str:
        """Of the products on both sides: a CPU without bf16 units is slow in it, so fp32 favours TRL there."""
        return "bf16" if self.device == "cuda" else "32"

    def counts(self, pairs: int | None, large: int | None) -> "Case":
        """The case with other numbers of pairs, where they are given."""
        given = {name: n for name, n in (("pairs", pairs), ("large", large)) if n is not None}
        case = replace(self, **given)
        for name, n in (("pairs", case.pairs), ("large", case.large)):
            if n % case.batch_size:
                raise SystemExit(
                    f"--{name} {n} is no multiple of {case.batch_size}, the pairs per step of {self.name}."
                )
        return case


def on_gpu(name: str, source: str | tuple[int, int], max_length: int, model: str = "qwen05b") -> Case:
    """More pairs than on a CPU, else the first step is all there is; each size that divides a step is tried."""
    batches = (1, 2, 4, 8, 16, 32)
    return Case(name, "cuda", model, source, max_length, 128, 512, batch_size=32, batches=batches, rank=16)


CASES = {
    case.name: case
    for case in (
        Case("smollm2_512", "cpu", "smollm2_135m", "en", 512),
        Case("smollm2_1024", "cpu", "smollm2_135m", "en", 1024),
        Case("demo", "cpu", "smollm2_135m", "demo", 256),
        on_gpu("qwen_64_64", (64, 64), 128),
        on_gpu("qwen_256_256", (256, 256), 512),
        on_gpu("qwen_512_128", (512, 128), 640),
        on_gpu("qwen_1024_256", (1024, 256), 1280),
        replace(on_gpu("qwen_en", "en", 1024, "qwen_tokens"), large=192),  # of 207 that fit
        replace(on_gpu("qwen_zh", "zh", 1024, "qwen_tokens"), large=192),
    )
}
TINY_CASE = Case("tiny", "cpu", "tiny", (48, 32), 128, pairs=8, large=16, batch_size=4, batches=(2,), rank=4, lr=1e-2)


@dataclass(frozen=True)
class Sources:
    """Where the files of the real cases are."""

    data: Path
    qwen: Path

    def file(self, case: Case) -> Path | None:
        """The pairs' file; None for synthetic ones."""
        if not isinstance(case.source, str):
            return None
        return DEMO if case.source == "demo" else self.data / f"dpo_{case.source}_demo.json"

    def missing(self, case: Case) -> str | None:
        """What a case lacks on this machine."""
        file = self.file(case)
        if file is not None and not file.is_file():
            return f"{file} is not there (--data FOLDER)"
        if case.model == "qwen_tokens" and not (self.qwen / "tokenizer.json").is_file():
            return f"{self.qwen} holds no tokenizer.json (--qwen FOLDER)"
        return None

    def fingerprint(self, case: Case) -> str:
        """What a case measures: its settings and its pairs, however many of them are taken."""
        settings = {k: v for k, v in asdict(case).items() if k not in ("pairs", "large", "batches")}
        file = self.file(case)
        return digest(json.dumps(settings), fingerprint(file) if file else "synthetic")


def overrides(case: Case, model: Path, pairs: Path) -> list[str]:
    """The command line of dpo_lab's side: the product as it is, without what TRL's side does not do either."""
    return [
        "model=hf", f"model.path={model}", f"lora=r{case.rank}" if case.rank in (8, 16) else f"lora.r={case.rank}",
        "data=file", f"data.path={pairs}", "data.format=trl", "data.eval_fraction=0", f"data.max_length={case.max_length}",
        f"loss.beta={case.beta}", f"optim.lr={case.lr}", "optim.schedule=constant", "optim.warmup_ratio=0",
        f"optim.batch_size={case.batch_size}", f"seed={case.seed}", f"trainer={'gpu' if case.device == 'cuda' else 'cpu'}",
        f"trainer.precision={case.precision}", "trainer.eval_every=0", "trainer.checkpoint_every=0", "trainer.kl_pairs=0",
        "prompts=none", "logger=none", "doctor.enabled=false",
    ]  # fmt: skip


def compose(words: list[str]) -> tuple[Any, dict[str, Any]]:
    """The validated configuration of a command line, and the same as plain containers."""
    from dpo_lab.config import resolvers
    from dpo_lab.config.overrides import read
    from dpo_lab.config.schema import Config
    from dpo_lab.config.sources import Sources as Options

    resolvers.register()
    options = Options()
    given, problems = read(words, options, multirun=False)
    assert not problems, problems
    tree = resolvers.plain(options.compose([g.text for g in given]))
    return Config.model_validate(tree), tree


# Models


def model_folder(case: Case, sources: Sources, scratch: Path) -> Path:
    """The folder that both sides load; random weights are written once a call."""
    if case.model == "smollm2_135m":
        return _smollm2()
    folder = scratch / "models" / case.model
    if not (folder / "config.json").is_file():
        _write_random(folder, SHAPES.get(case.model, QWEN), half=case.precision == "bf16")
        if case.model == "qwen_tokens":
            for file in sources.qwen.iterdir():
                if "token" in file.name or file.suffix == ".jinja":
                    (folder / file.name).write_bytes(file.read_bytes())
        else:
            _byte_tokenizer().save_pretrained(folder)
    return folder


def _smollm2() -> Path:
    from dpo_lab.config.paths import expand
    from dpo_lab.models.locate import locate

    config, _ = compose(["model=smollm2_135m"])
    return locate(config.model, expand(config.cache_dir), print).path


def _write_random(folder: Path, shape: dict[str, Any], *, half: bool) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = AutoConfig.for_model(**shape, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if half else torch.float32
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*SPECIAL, *alphabet])}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    bytewise.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    pad, start, end = SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, eos_token=end, pad_token=pad, additional_special_tokens=[start]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


# Pairs


def _row(prompt: list[dict[str, str]], chosen: str, rejected: str) -> Row:
    answers = {"chosen": chosen, "rejected": rejected}
    return {"prompt": prompt} | {side: [{"role": "assistant", "content": text}] for side, text in answers.items()}


def _synthetic(prompt: int, answer: int, n: int) -> list[Row]:
    """Random text of a token a byte, in ChatML."""
    rng = random.Random(0)
    around = (
        len("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n") - 2 * len("<|im_start|>") - len("<|im_end|>") + 3
    )

    def text(size: int) -> str:
        return " ".join(rng.choices(WORDS, k=size // 6 + 1))[:size].ljust(size, ".").replace(" ", "-")

    return [
        _row([{"role": "user", "content": text(prompt - around)}], text(answer - 1), text(answer - 1)) for _ in range(n)
    ]


def candidates(case: Case, sources: Sources) -> list[Row]:
    """Every pair of a case, as rows of TRL's conversational format, before those that are too long are left out."""
    if not isinstance(case.source, str):
        return _synthetic(*case.source, n=max(case.pairs, case.large))
    from dpo_lab.data.files import read_file
    from dpo_lab.data.formats import to_pairs
    from dpo_lab.data.types import Reading

    file = sources.file(case)
    assert file is not None
    pairs, _ = to_pairs(read_file(file), Reading(), where=str(file))
    return [_row([{"role": m["role"], "content": m["content"]} for m in p.prompt], p.chosen, p.rejected) for p in pairs]


def tokenised(case: Case, file: Path, model: Path, cache: Path) -> Any:
    """dpo_lab's examples of a file of rows."""
    from dpo_lab.data.prepare import prepare, read_pairs
    from dpo_lab.data.templates import load_template
    from dpo_lab.models.locate import Located
    from dpo_lab.models.tokenizer import load_tokenizer

    config, _ = compose(overrides(case, model, file))
    template = load_template(load_tokenizer(Located(model, case.model), config.model), config.template)
    return prepare(read_pairs(config.data, cache), config.data, template, cache).train


def lay_out(case: Case, n: int, sources: Sources, scratch: Path) -> Path:
    """A folder with what the cells of a case with n pairs read; made once a call.

    The first n pairs that fit are sorted by length, which favours TRL: its batches are padded. The file for dpo_lab is
    written so that its own order of the training pairs comes to the same, so both sides have the same pairs in the same
    step. TRL gets dpo_lab's token ids: its own have one more token an answer, the line break after the end of turn.

    Returns:
        A folder with pairs.jsonl, and spec.json: ids in the order of training, lengths, model folder, settings.
    """
    from dpo_lab.data.module import epoch_order

    folder = scratch / f"{case.name}-{n}"
    if (folder / "spec.json").is_file():
        return folder
    model, rows = model_folder(case, sources, scratch), candidates(case, sources)
    folder.mkdir(parents=True)
    write_jsonl(folder / "all.jsonl", rows)
    examples = tokenised(case, folder / "all.jsonl", model, scratch / "cache")
    first = [examples[i] for i in range(min(n, len(examples)))]
    if len(first) < n:
        raise SystemExit(f"{case.name} has {len(first)} pairs of at most {case.max_length} tokens, not {n}.")
    first.sort(key=lambda e: (e.lengths[0] + max(e.lengths[1:]), e.pair.row))
    order = epoch_order(n, seed=0, epoch=0)
    written: list[Row] = [{}] * n
    for place, example in zip(order, first, strict=True):
        prompt = [{"role": m["role"], "content": m["content"]} for m in example.pair.prompt]
        written[place] = _row(prompt, example.pair.chosen, example.pair.rejected)
    write_jsonl(folder / "pairs.jsonl", written)
    spec = {
        "case": asdict(case) | {"precision": case.precision},
        "model": str(model),
        "words": overrides(case, model, folder / "pairs.jsonl"),
        "order": order,
        "ids": [[e.prompt_ids, e.chosen_ids, e.rejected_ids] for e in first],
        "lengths": [list(e.lengths) for e in first],
    }
    write_json(folder / "spec.json", spec)
    return folder
