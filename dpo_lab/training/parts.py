"""What a run is made of, and how it is loaded."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.doctor.findings import Report
from dpo_lab.data.doctor.gate import check_report, examine_data
from dpo_lab.data.doctor.page import write_page
from dpo_lab.data.module import count_steps
from dpo_lab.data.prepare import Prepared, Split, prepare
from dpo_lab.data.templates import Template, load_template
from dpo_lab.data.tokenize import warn_of_names
from dpo_lab.inference import references, setup
from dpo_lab.inference.passes import Passes, choose_passes
from dpo_lab.inference.references import Source
from dpo_lab.inference.start import Start, check_rope, find_reference, find_start
from dpo_lab.models.load import model_config, rope_facts
from dpo_lab.models.lora import parameter_counts
from dpo_lab.models.precision import Precision, resolve_precision
from dpo_lab.models.quiet import quiet_running
from dpo_lab.models.tokenizer import load_tokenizer
from dpo_lab.preference.forward import Forward, causal_lm
from dpo_lab.preference.ref_cache import RefCache
from dpo_lab.preference.reference import ModelContext, Reference
from dpo_lab.runtime.errors import ConfigError
from dpo_lab.runtime.facts import device_facts, git_commit, versions
from dpo_lab.runtime.files import write_json
from dpo_lab.runtime.terminal import Terminal
from dpo_lab.training.folder import RunFolder
from dpo_lab.training.interrupt import Interrupt
from dpo_lab.training.probe import find_microbatch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """What was asked, where it goes, and who may end it."""

    config: Config
    tree: dict[str, Any]
    folder: RunFolder
    terminal: Terminal
    interrupt: Interrupt

    @property
    def id(self) -> str:
        """The run's id, the name of its folder."""
        return self.folder.path.name

    @property
    def cache_dir(self) -> Path:
        """Where converted models and the reference's log-probs are kept."""
        return expand(self.config.cache_dir)


@dataclass
class Parts:
    """What a run is made of, once loaded."""

    start: Start
    template: Template
    data: Prepared
    report: Report | None  # of the examination of the data; None where a run goes on
    precision: Precision
    accelerator: str  # cpu, gpu or mps
    devices: int  # processes that train together
    device: torch.device
    policy: nn.Module
    forward: Forward
    passes: Passes  # of the policy
    source: Source  # the model that the reference is
    cache: RefCache
    reference: Reference
    ref_model: ModelContext  # the reference as a model; valid until the first update
    tokens: int  # of a training micro-batch: of the pack, or of padded rows
    steps: int
    facts: dict[str, Any]

    @property
    def has_kl(self) -> bool:
        """Whether the reference is in memory and speaks of the same vocabulary, so that the exact KL can be had."""
        if self.reference.model is None:
            return False
        with self.reference.model() as model:
            theirs, ours = (causal_lm(m).get_output_embeddings().weight.shape[0] for m in (model, self.policy))
        return theirs == ours


def load_parts(run: RunContext, split: Split, microbatch: int | None, *, rank: int = 0) -> Parts:
    """Data, model and reference; what can be wrong with the cheaper ones is found first.

    Args:
        run: what was asked.
        split: the pairs.
        microbatch: tokens of a micro-batch in the checkpoint that the run goes on from.
        rank: which of the processes that train together this one is.
    """
    config = run.config
    with run.terminal.working("loading the model") as say:
        quiet_running()
        accelerator, device = setup.choose_device(config.trainer.accelerator, rank)
        precision = resolve_precision(config, accelerator)
        start = find_start(config, run.cache_dir, say)
        named = find_reference(config, start, run.cache_dir, say)
        source = references.reference_source(config, start, named, precision, device)
        template = load_template(load_tokenizer(start.located, config.model), config.template)
        rope = rope_facts(start.located, config.model, config.data.max_length)
        for there in {start.identity: start, named.identity: named}.values():
            check_rope(there, rope)
        references.check_vocabulary(config, source, template.tokenizer)
    with run.interrupt.at_once():  # outside the spinner: tokenising has a bar of its own
        data = prepare(split, config.data, template, run.cache_dir)
    if rope is None:
        _warn_beyond(model_config(start.located, config.model), data)
    steps = _count_steps(config, len(data.train))
    log.info("data ready: %s; held out: %s", data.train_counts, data.heldout_counts)
    if not config.doctor.enabled:  # which says it too
        warn_of_names(data.train_counts)
    report = _examined(run, data, template) if rank == 0 and microbatch is None else None
    with run.terminal.working("loading the model"):
        torch.manual_seed(config.seed)
        policy = setup.load_policy(config, start, precision, device)
        log.info("model loaded: %s from %s", start.located.name, start.located.path)
        run.interrupt.check()
        forward = Forward(precision.autocast)
        passes = choose_passes(config, policy, precision.autocast)
        reference_id, reference_facts = references.reference_identity(config, source)
        cache = RefCache(run.cache_dir, reference_id, facts=reference_facts)
        reference, ref_model = references.build_reference(config, source, policy, cache)
        lm: Any = policy
        tokens = microbatch or find_microbatch(config, policy, forward, data.train, precision, device)
        if config.trainer.microbatch_tokens != "auto":
            tokens = config.trainer.microbatch_tokens
    trainable, total = parameter_counts(policy)
    facts = {
        "name": f"dpo_lab run {run.id}",
        "run_id": run.id,
        "versions": versions(),
        "commit": git_commit(),
        "device": device_facts(),
        "accelerator": accelerator,
        "devices": setup.count_devices(config, accelerator),
        "threads": torch.get_num_threads(),
        "precision": str(precision),
        "quant": f"{config.quant.bits}-bit" if config.quant.bits else "none",
        "model": {"name": start.located.name, "note": start.located.note, "identity": start.identity}
        | {"path": str(start.located.path), "base": start.located.identity(run.cache_dir), "start": start.what}
        | {"rope": rope, "load_with": _load_with(lm.config) if rope else {}},
        "template": config.template.name,
        "enable_thinking": config.template.enable_thinking,
        "reference": {"mode": reference.mode, "what": source.what if reference.present else "none"}
        | {"identity": reference_id if reference.present else None},
        "data": data.facts(),
        "trainable_parameters": trainable,
        "parameters": total,
        "forward": str(passes),
        "lean_layers": passes.lean,
        "microbatch_tokens": tokens,
        "config": run.tree,
        "loss": _node(config.loss.model_dump(by_alias=True)),
        "optim": _node(config.optim.model_dump(by_alias=True)),
        "steps": steps,
    }
    return Parts(
        start,
        template,
        data,
        report,
        precision,
        accelerator,
        setup.count_devices(config, accelerator),
        device,
        policy,
        forward,
        passes,
        source,
        cache,
        reference,
        ref_model,
        tokens,
        steps,
        facts,
    )


def _count_steps(config: Config, pairs: int) -> int:
    optim = config.optim
    steps = count_steps(pairs, batch_size=optim.batch_size, epochs=optim.epochs, max_steps=optim.max_steps)
    if steps < 1:
        raise ConfigError(
            f"{pairs} training pairs x optim.epochs={optim.epochs:g} make no step of "
            f"optim.batch_size={optim.batch_size} pairs. Lower optim.batch_size, or raise optim.epochs."
        )
    return steps


def _warn_beyond(model: Any, data: Prepared) -> None:
    """Say that there are pairs longer than the model was made for."""
    limit = getattr(model.get_text_config(), "max_position_embeddings", None)
    lengths = np.concatenate([data.train.lengths, data.heldout.lengths])
    beyond = int((lengths[:, 0] + lengths[:, 1:].max(axis=1) > limit).sum()) if limit else 0
    if beyond:
        log.warning(
            "%d pairs are longer than the %d positions that the model was made for: data.max_length=%d leaves them out, "
            "model.rope.type=yarn makes room.",
            *(beyond, limit, limit),
        )


def _examined(run: RunContext, data: Prepared, template: Template) -> Report | None:
    """What is wrong with the pairs, in the run folder too.

    Raises:
        Unfit: more than doctor.fail_on lets pass.
    """
    if not run.config.doctor.enabled:
        return None
    with run.terminal.working("examining the pairs"):
        report = examine_data(data, run.config, template)
    write_json(run.folder.doctor, report.to_json())
    write_page(
        run.folder.doctor.with_suffix(".html"),
        title=f"Data of run {run.id}",
        report=report,
        items=(),
        template=template,
    )
    check_report(report, run.config)
    return report


def _load_with(model_config: Any) -> dict[str, Any]:
    """What `from_pretrained` must be told so that the base has the same scaled positions."""
    text = model_config.get_text_config()
    return {"rope_parameters": text.rope_parameters, "max_position_embeddings": text.max_position_embeddings}


def _node(node: dict[str, Any]) -> str:
    name = node.pop("_target_").rsplit(".", 1)[-1]
    return f"{name}({', '.join(f'{k}={v}' for k, v in node.items() if v is not None)})"
