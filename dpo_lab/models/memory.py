"""How many bytes a token of a training step holds on to: sizes micro-batches and answers `plan=true`."""

from typing import Any

from dpo_lab.preference.logps import CHUNK_BYTES

CPU_ACTIVATIONS = 3 * 2**30  # bytes of activations that a micro-batch may hold on a CPU
GPU_SHARE = 0.5  # of the free memory of a GPU
MOST_TOKENS = 32768


def activation_bytes(model_config: Any, *, itemsize: int, trained: bool, checkpointing: bool) -> int:
    """Bytes kept for backward for each token that goes through the decoder.

    Per layer of a Llama-like decoder: what the norms, attention, the MLP, the residuals and the adapters' inputs keep,
    and what the allocator holds beyond it. The factors are fitted to the measured peak of the default run
    (benchmarks/results/default_run.json), not derived.

    Args:
        model_config: the transformers configuration.
        itemsize: bytes of an activation.
        trained: whether base weights are trained too.
        checkpointing: whether layers are recomputed in backward.
    """
    text = model_config.get_text_config()
    hidden, layers = text.hidden_size, text.num_hidden_layers
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    one_layer = (18 * hidden + 9 * inner) * itemsize
    if checkpointing:
        return layers * hidden * itemsize + one_layer
    return layers * one_layer if trained else layers * int(one_layer * 0.9)


def auto_microbatch(per_token: int, *, free_gpu: int | None) -> int:
    """Tokens of a micro-batch: on a CPU a function of the model alone, on a GPU of its free memory too."""
    budget = CPU_ACTIVATIONS if free_gpu is None else int(free_gpu * GPU_SHARE)
    return max(256, min(MOST_TOKENS, budget // per_token))


def peak_bytes(*, weights: int, trainable: int, tokens: int, per_token: int, vocabulary: int) -> int:
    """Estimated peak: weights, gradients and AdamW's two moments in fp32, activations, one chunk of logits."""
    state = trainable * 4 * 3
    chunk = 3 * max(CHUNK_BYTES, 16 * 4 * vocabulary)
    return weights + state + tokens * per_token + chunk + 2**30  # a GiB of Python and libraries
