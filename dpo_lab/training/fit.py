"""The optimizer steps of a run, in this process: alone, or as one rank of several."""

import logging
from typing import Any

import lightning
import torch

from dpo_lab.config.schema import Config
from dpo_lab.data.module import PreferenceData, Steps
from dpo_lab.inference.setup import build_objective
from dpo_lab.models.memory import NO_ROOM
from dpo_lab.runtime.errors import NoRoom
from dpo_lab.runtime.files import write_json
from dpo_lab.training.compile import choose, compiled
from dpo_lab.training.folder import RunFolder
from dpo_lab.training.module import PreferenceModule
from dpo_lab.training.parts import Parts
from dpo_lab.training.ranks import Ranks

log = logging.getLogger(__name__)
# Processes that lay out the steps to come on a GPU. On a CPU none: laying out takes a few thousandths of a step, and the
# cores are taken.
WORKERS = 2


def fit(
    config: Config,
    parts: Parts,
    folder: RunFolder,
    *,
    ranks: Ranks,
    resume: dict[str, Any] | None,
    callback: lightning.Callback,
) -> None:
    """The optimizer steps that are left.

    Args:
        config: of the run.
        parts: model, data and reference on this rank's device.
        folder: the run's.
        ranks: this process among those that train.
        resume: the checkpoint to go on from.
        callback: what happens around a step.

    Raises:
        NoRoom: the GPU's memory is too small.
    """
    done = resume["step"] if resume else 0
    steps = Steps(
        parts.data.train,
        start=done,
        end=parts.steps,
        batch_size=config.optim.batch_size,
        seed=config.data.seed,
        tokens=parts.tokens,
        shared=parts.forward.shares(parts.policy),
        rank=ranks.rank,
        ranks=ranks.size,
    )
    module = PreferenceModule(
        parts.policy,
        parts.reference,
        parts.forward,
        build_objective(config),
        config.optim,
        total_steps=parts.steps,
        seed=config.seed,
        ranks=ranks,
        log_every=config.trainer.log_every,
        tokens=parts.tokens,
        cut=steps.cut,
    )
    if resume is not None:
        module.restore_trained(resume)
    if done == parts.steps:
        return
    trainer = lightning.Trainer(
        accelerator=parts.accelerator,
        devices=[parts.device.index or 0] if parts.device.type == "cuda" else 1,
        precision=parts.precision.lightning,  # type: ignore[arg-type]
        max_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder.path,
        callbacks=[callback],
    )
    gpu = parts.device.type == "cuda"
    choice = choose(
        config.trainer.compile,
        steps=parts.steps - done,
        device=parts.device.type,
        lean=bool(parts.facts.get("lean_layers")),
    )
    log.info("compiling the layers: %s (%s)", "on" if choice.on else "off", choice.why)
    if ranks.rank == 0:
        parts.facts["compile"] = {"on": choice.on, "why": choice.why}
        write_json(folder.facts, parts.facts)
    try:
        with compiled(parts.policy, choice):
            trainer.fit(module, datamodule=PreferenceData(steps, workers=WORKERS if gpu else 0, pinned=gpu))
    except torch.OutOfMemoryError as e:  # not in a micro-batch, which would have been cut smaller
        raise NoRoom(NO_ROOM) from e
    finally:
        parts.tokens = module.accumulation.tokens or parts.tokens
