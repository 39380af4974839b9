"""`plan=true`: what a run would do, need and take, without loading weights."""

import time
from typing import Any

import torch

from dpo_lab.config.paths import expand
from dpo_lab.config.schema import Config
from dpo_lab.data.module import count_steps
from dpo_lab.data.prepare import Prepared, Split, prepare
from dpo_lab.data.templates import load_template
from dpo_lab.data.tokens import Examples
from dpo_lab.inference import setup
from dpo_lab.inference.references import reference_mode
from dpo_lab.inference.start import find_start
from dpo_lab.models.lora import new_adapter, parameter_counts
from dpo_lab.models.memory import peak_bytes
from dpo_lab.models.precision import Precision, resolve_precision
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.models.tokenizer import load_tokenizer
from dpo_lab.preference.forward import causal_lm
from dpo_lab.preference.sharing import obstacle
from dpo_lab.runtime.facts import device_facts
from dpo_lab.runtime.terminal import Terminal, duration

# Share of the measured matmul rate that training reaches on this code path (see benchmarks/results/default_run.json).
EFFICIENCY = 0.6


def show_plan(config: Config, split: Split, terminal: Terminal) -> dict[str, float]:
    """Print pairs, steps, parameters and estimates of memory and time; returns them as numbers."""
    accelerator, device = setup.choose_device(config.trainer.accelerator)
    precision = resolve_precision(config, accelerator)
    with terminal.working("counting tokens") as say:
        start = find_start(config, expand(config.cache_dir), say)
        template = load_template(load_tokenizer(start.located, config.model), config.template)
        data = prepare(split, config.data, template, expand(config.cache_dir))
        skeleton = skeleton_policy(config, start.located.path)
    trainable, total = parameter_counts(skeleton)
    optim = config.optim
    steps = count_steps(len(data.train), batch_size=optim.batch_size, epochs=optim.epochs, max_steps=optim.max_steps)
    tokens = setup.microbatch_tokens(config, skeleton.config, precision, device)
    shared = config.trainer.forward != "padded" and obstacle(causal_lm(skeleton), config.data.max_length) is None
    lengths = data.train.lengths  # (N, 3)
    longest = lengths.sum(axis=1) if shared else 2 * (lengths[:, 0] + lengths[:, 1:].max(axis=1))
    tokens = max(tokens, int(longest.max()))
    memory = peak_bytes(
        weights=weight_bytes(config, precision, total),
        trainable=trainable,
        tokens=min(tokens, optim.batch_size * int(longest.max())),
        per_token=setup.bytes_per_token(config, skeleton.config, precision),
        vocabulary=skeleton.config.get_text_config().vocab_size,
    )
    processes = setup.count_devices(config, accelerator) if device.type == "cpu" else 1
    memory *= processes
    seconds = seconds_needed(config, data, total, steps, precision, device, shared=shared)
    available = available_bytes(device)
    fits = "fits" if memory < 0.9 * available else "does NOT fit: lower trainer.microbatch_tokens or data.max_length"
    terminal.header(
        "plan (nothing is trained)",
        {
            "model": f"{start.located.name}, {precision} on {device.type}",
            "data": f"{data.format}: {data.train_counts}; held out: {data.heldout_counts}",
            "steps": f"{steps} of {optim.batch_size} pairs",
            "trained": f"{trainable:,} of {total:,} parameters ({trainable / total:.1%})",
            "memory": f"about {memory / 2**30:.1f} GiB at its peak, of {available / 2**30:.1f} GiB: {fits}",
            "time": f"about {duration(seconds['training'])} of training, {_reference(seconds['reference'])}, "
            f"{duration(seconds['evaluation'])} for each evaluation",
        },
    )
    return {"steps": steps, "trainable": trainable, "memory_bytes": memory} | {
        f"{k}_seconds": v for k, v in seconds.items()
    }


def _reference(seconds: float) -> str:
    return f"{duration(seconds)} for the reference if it is not cached" if seconds else "none for a reference"


def skeleton_policy(config: Config, path: Any) -> Any:
    """The policy without weights: on the meta device, where tensors have shapes only."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_loading(), torch.device("meta"):
        model_config = AutoConfig.from_pretrained(path, trust_remote_code=config.model.trust_remote_code)
        model = AutoModelForCausalLM.from_config(model_config)
        if config.lora.r is None:
            return model
        model.requires_grad_(False)
        return new_adapter(model, config.lora, seed=config.seed)


def weight_bytes(config: Config, precision: Precision, parameters: int) -> int:
    """Bytes of the weights in memory, and of a second copy for a reference that has a model of its own."""
    size = {4: 0.6, 8: 1.1}.get(config.quant.bits or 0, float(precision.weights.itemsize))
    second = config.reference.mode == "frozen" or config.reference.path is not None
    return int(parameters * size * (2 if second else 1))


def seconds_needed(
    config: Config,
    data: Prepared,
    parameters: int,
    steps: int,
    precision: Precision,
    device: torch.device,
    *,
    shared: bool,
) -> dict[str, float]:
    """Time from the tokens to be computed and the machine's own matmul rate, measured here for a moment.

    A token costs 2 N operations forward and, with a frozen base, 2 N backward (4 N when the base is trained).
    """
    rate = EFFICIENCY * matmul_rate(precision.autocast or precision.weights, device)
    backward = 2 if config.lora.r is not None else 4
    per_pair = _tokens(data.train, shared=shared) / len(data.train)
    trained = steps * config.optim.batch_size * per_pair
    heldout = _tokens(data.heldout, shared=shared)
    recompute = 2 if config.model.gradient_checkpointing else 0
    return {
        "training": trained * parameters * (2 + backward + recompute) / rate,
        "reference": 0.0
        if reference_mode(config) == "none"
        else (_tokens(data.train, shared=shared) + heldout) * parameters * 2 / rate,
        "evaluation": heldout * parameters * 2 / rate,
    }


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a square matrix product, over about 0.3 s."""
    n = 1024 if device.type == "cpu" else 4096
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    _ = a @ b
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < 0.3:
        _ = a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        done += 1
    return done * 2 * n**3 / (time.perf_counter() - begun)


def available_bytes(device: torch.device) -> int:
    """Memory that the run may use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(device_facts()["cpu"]["memory_gib"] * 2**30)


def _tokens(examples: Examples, *, shared: bool) -> int:
    """Of both answers of each pair, and of its prompt, which is computed once or with each of them."""
    return int(examples.lengths.sum()) + (0 if shared else int(examples.lengths[:, 0].sum()))
