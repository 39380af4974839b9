"""How many bytes a token of a training step holds on to: sizes micro-batches and answers `plan=true`."""

from typing import Any

from dpo_lab.preference.logps import CHUNK_BYTES

NO_ROOM = (
    "The GPU is out of memory, with a single pair in a micro-batch. Set model.gradient_checkpointing=true, lower "
    "data.max_length, or use quant=4bit."
)
CPU_ACTIVATIONS = 3 * 2**30  # bytes of activations that a micro-batch may hold on a CPU
CPU_TOKENS = 384  # of a micro-batch there, at most: measured, more are no faster and take more memory
GPU_SHARE = 0.5  # of the free memory of a GPU, where it is estimated
MOST_TOKENS = 32768
FORWARD = 2  # on a CPU, a micro-batch without gradients is so many times as large


def activation_bytes(model_config: Any, *, itemsize: int, trained: bool, checkpointing: bool, lean: bool) -> int:
    """Bytes kept for backward for each token that goes through the decoder.

    Per layer of a Llama-like decoder: what the norms, attention, the MLP, the residuals and the adapters' inputs keep,
    and what the allocator holds beyond it. The factors are fitted to measured peaks of SmolLM2-135M in fp32, not derived.

    Args:
        model_config: the transformers configuration.
        itemsize: bytes of an activation.
        trained: whether base weights are trained too.
        checkpointing: whether layers are recomputed in backward.
        lean: whether the layers are the lab's own.
    """
    one_layer, hidden, layers = _layer_bytes(model_config, itemsize, lean=lean and not trained)
    if checkpointing:
        return layers * hidden * itemsize + one_layer
    return layers * one_layer if trained else layers * int(one_layer * 0.9)


def auto_microbatch(per_token: int, *, free_gpu: int | None) -> int:
    """Tokens of a micro-batch: on a CPU a function of the model alone, on a GPU of its free memory too."""
    if free_gpu is None:
        return max(256, min(CPU_TOKENS, CPU_ACTIVATIONS // per_token))
    return max(256, min(MOST_TOKENS, int(free_gpu * GPU_SHARE) // per_token))


def forward_microbatch(tokens: int, model_config: Any, *, itemsize: int, free_gpu: int | None) -> int:
    """Tokens of a micro-batch without gradients, of which one layer's activations are kept and no more.

    Args:
        tokens: of a micro-batch that is trained on.
        model_config: the transformers configuration.
        itemsize: bytes of an activation.
        free_gpu: bytes; None on a CPU.
    """
    if free_gpu is None:
        return FORWARD * tokens
    room = int(free_gpu * GPU_SHARE) // _layer_bytes(model_config, itemsize)[0]
    return max(tokens, min(2 * MOST_TOKENS, room))


def peak_bytes(*, weights: int, trainable: int, tokens: int, per_token: int, vocabulary: int) -> int:
    """Estimated peak: weights, gradients and AdamW's two moments in fp32, activations, one chunk of logits."""
    state = trainable * 4 * 3
    chunk = 3 * max(CHUNK_BYTES, 16 * 4 * vocabulary)
    return weights + state + tokens * per_token + chunk + 2**30  # a GiB of Python and libraries


def _layer_bytes(model_config: Any, itemsize: int, *, lean: bool = False) -> tuple[int, int, int]:
    """Bytes of one layer's activations for a token, the hidden size, the number of layers."""
    text = model_config.get_text_config()
    hidden = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * hidden
    kept = 11 * hidden + 3 * inner if lean else 18 * hidden + 9 * inner
    return kept * itemsize, hidden, text.num_hidden_layers
