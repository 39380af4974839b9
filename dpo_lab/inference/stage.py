"""One base in memory, and everything that speaks with it: the reference and each result."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import device as Device
from torch import nn

from dpo_lab.config.brought import REFERENCE, Subject
from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.templates import Template, load_template
from dpo_lab.inference import setup
from dpo_lab.inference.bases import is_base
from dpo_lab.inference.passes import Passes, choose_passes
from dpo_lab.inference.start import Start, find_start
from dpo_lab.models.load import load_model
from dpo_lab.models.locate import Located
from dpo_lab.models.lora import attach
from dpo_lab.models.precision import Precision, resolve_precision
from dpo_lab.models.quiet import quiet_running
from dpo_lab.models.rope import reach
from dpo_lab.models.tokenizer import load_tokenizer
from dpo_lab.preference.forward import causal_lm
from dpo_lab.runtime.errors import ModelError
from dpo_lab.runtime.files import read_json
from dpo_lab.runtime.terminal import Terminal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """What is loaded, in eval mode, nothing of it trainable.

    Attributes:
        config: what was asked, with what the results bring along.
        subjects: the results, in the order in which they were given.
        start: what the results were trained from: the reference.
        template: of all of them.
        precision: dtypes.
        device: where the weights are.
        model: the base; a PEFT model where there are adapters.
        wholes: models that were trained as a whole, by the name of their result.
        passes: how the models' log-probs are computed.
    """

    config: Config
    subjects: tuple[Subject, ...]
    start: Start
    template: Template
    precision: Precision
    device: Device
    model: Any
    wholes: dict[str, Any]
    passes: Passes

    @property
    def names(self) -> tuple[str, ...]:
        """REFERENCE, then each result's."""
        return REFERENCE, *(s.name for s in self.subjects)

    @property
    def context(self) -> int | None:
        """Tokens of a prompt and its answer that the model was made for, or made to reach; None where it does not say."""
        return reach(causal_lm(self.model).config)

    def adapter_of(self, name: str) -> str | None:
        """PEFT's name of the adapter that a name speaks with; None for the bare base.

        Raises:
            KeyError: a model that was trained as a whole has none, and an unknown name neither.
        """
        if name == REFERENCE:
            return REFERENCE if self.start.adapter is not None else None
        return f"result{[s.name for s in self.subjects if not s.whole].index(name)}"

    @contextmanager
    def speaking(self, name: str) -> Iterator[nn.Module]:
        """The model of a name while the context is open."""
        if name in self.wholes:
            yield self.wholes[name]
            return
        if name not in self.names:
            raise KeyError(name)
        adapter = self.adapter_of(name)
        if not hasattr(self.model, "peft_config"):
            yield self.model
        elif adapter is None:
            with self.model.disable_adapter():
                yield self.model
        else:
            self.model.base_model.set_adapter(adapter, inference_mode=True)
            yield self.model


def load_stage(config: Config, subjects: Sequence[Subject], terminal: Terminal) -> Stage:
    """The base, once, with every adapter on it.

    Args:
        config: with what the results bring along; see `config.brought.bring`.
        subjects: the results; none loads the reference alone.
        terminal: shows what is loaded.

    Raises:
        ModelError: a result is not of this base, or of a kind that the lab does not compute.
        ConfigError: what is asked does not go with the machine or the model, or an adapter is on the LM head.
    """
    cache_dir = expand(config.cache_dir)
    with terminal.working("loading the model") as say:
        quiet_running()
        accelerator, device = setup.choose_device(config.trainer.accelerator)
        precision = resolve_precision(config, accelerator)
        start = find_start(config, cache_dir, say)
        for subject in subjects:
            _check_base(config, subject, start, cache_dir)
        template = load_template(load_tokenizer(start.located, config.model), config.template)
        base = _load(config, start.located, precision, device)
        model = _with_adapters(base, start, [s for s in subjects if not s.whole])
        passes = choose_passes(config, model, precision.autocast)
        wholes = {}
        for subject in subjects:
            if subject.whole:
                located = Located(subject.result, subject.name)  # whose own configuration has the scaled positions
                wholes[subject.name] = _load(_unscaled(config), located, precision, device)
                choose_passes(config, wholes[subject.name], precision.autocast)
    return Stage(config, tuple(subjects), start, template, precision, device, model, wholes, passes)


def _load(config: Config, located: Located, precision: Precision, device: Device) -> Any:
    return load_model(located, config.model, config.quant, precision, device, max_length=config.data.max_length)


def _unscaled(config: Config) -> Config:
    rope = config.model.rope.model_copy(update={"type": "none", "factor": None})
    return config.model_copy(update={"model": config.model.model_copy(update={"rope": rope})})


def _with_adapters(base: Any, start: Start, results: Sequence[Subject]) -> Any:
    """A PEFT model with the start's adapter as REFERENCE and the results' as result0, result1, ...; or the bare base."""
    folders = {REFERENCE: start.adapter} if start.adapter is not None else {}
    folders |= {f"result{i}": s.result for i, s in enumerate(results)}
    model = base
    for name, folder in folders.items():
        model = attach(model, folder, name)
    return model.eval() if folders else base


def _check_base(config: Config, subject: Subject, start: Start, cache_dir: Path) -> None:
    """A result belongs to the base it was trained on; an adapter of elsewhere only says that base's name.

    Raises:
        ModelError: it is of another base; force=true lets a name pass.
    """
    trained_on = (subject.facts.get("model") or {}).get("base")
    if trained_on is not None:
        if trained_on != start.located.identity(cache_dir):
            raise ModelError(
                f"{subject.path} was trained on {subject.facts['model'].get('name')}, not on {start.located.name} as it is "
                f"in {start.located.path}. Drop model=, or give the model of the run."
            )
        return
    if subject.whole:
        return
    made_for = (read_json(subject.result / "adapter_config.json") or {}).get("base_model_name_or_path")
    same = is_base(made_for, start.located, config.model, cache_dir) if isinstance(made_for, str) and made_for else None
    if same is False and not config.force:
        raise ModelError(
            f"The adapter in {subject.path} was made for {made_for}, not for {start.located.name} in {start.located.path}. "
            "Give its own model with model=, or add force=true to go on all the same."
        )
    if same is not True and made_for:
        log.warning(
            "The adapter in %s was made for %s, and nothing shows that %s in %s is the same. Check it.",
            subject.path,
            made_for,
            start.located.name,
            start.located.path,
        )
