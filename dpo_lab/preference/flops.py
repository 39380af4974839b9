"""The operations that preference training needs, counted from a model's shapes and the lengths of the pairs.

What the mathematics needs, whoever computes it: padding, prompts computed twice, logits of prompts and activations that
are recomputed in backward cost time and count as nothing. So a rate made of it can be compared between programs.

N multiply-adds a token in the decoder's linear layers, V vocabulary, d hidden size. A pair has p tokens of prompt and
R tokens of answers. Forward of a pair, two operations a multiply-add:

    2 N (p + R) + 2 V d R + A          A = 4 layers heads head_dim (visible pairs of tokens)

A prompt token sees the prompt up to itself, an answer token the prompt and its own answer up to itself. Backward costs
as much again for each product's gradient: one of its input and, where the weight is trained, one of the weight; of
attention two of two. So a training step of a pair is

    4 N (p + R) + 4 V d R + 3 A        with a frozen base and head (LoRA)
    6 N (p + R) + 6 V d R + 3 A        where all weights are trained

Left out: the adapters' own products (a share of about r / d), norms, activations, softmax, the optimizer. Sliding
windows count as full attention.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dpo_lab.preference.forward import causal_lm

# Of each prompt its tokens and those of each answer to it: (p, chosen, rejected), or more where pairs share a prompt.
Lengths = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """What a model's operations are counted from.

    Attributes:
        body: N, multiply-adds of one token in the decoder's linear layers; of experts those that a token goes through.
        head: V d, the same of the LM head.
        layers: of the decoder.
        heads: query heads of a layer.
        head_dim: of a head.
    """

    body: int
    head: int
    layers: int
    heads: int
    head_dim: int


def shape_of(model: nn.Module) -> Shape:
    """The shape of a transformers causal language model: adapters left out, quantised weights by their true size."""
    lm = causal_lm(model)
    config = lm.config.get_text_config()
    head = lm.get_output_embeddings().weight
    return Shape(
        body=sum(inner * outer * n for (inner, outer), n in linear_shapes(model).items()) + _expert_parameters(model),
        head=head.shape[0] * head.shape[1],
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    )


def linear_shapes(model: nn.Module) -> Counter[tuple[int, int]]:
    """(inputs, outputs) of the decoder's linear layers, each with how many there are; adapters left out."""
    from transformers.pytorch_utils import Conv1D

    found: Counter[tuple[int, int]] = Counter()
    for module in _base_modules(causal_lm(model).get_decoder()):
        if isinstance(module, nn.Linear):  # bitsandbytes packs the weight, so its own shape says nothing
            found[module.in_features, module.out_features] += 1
        elif isinstance(module, Conv1D):
            found[module.weight.shape[0], module.weight.shape[1]] += 1
    return found


def training_flops(shape: Shape, lengths: Lengths, *, frozen: bool = True) -> float:
    """Operations of a training step over pairs, forward and backward; `frozen` is a base that only carries adapters."""
    products = 4 if frozen else 6
    return _products(shape, lengths, products) + 3 * _attention(shape, lengths)


def reference_flops(shape: Shape, lengths: Lengths) -> float:
    """Operations of one forward pass over pairs."""
    return _products(shape, lengths, 2) + _attention(shape, lengths)


def _products(shape: Shape, lengths: Lengths, each: int) -> float:
    answers = sum(sum(sizes) for _, *sizes in lengths)
    prompts = sum(prompt for prompt, *_ in lengths)
    return float(each) * (shape.body * (prompts + answers) + shape.head * answers)


def _attention(shape: Shape, lengths: Lengths) -> float:
    """Forward: scores and their sums of values, two operations a multiply-add each."""
    visible = 0
    for prompt, *answers in lengths:
        visible += prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in answers)
    return 4.0 * shape.layers * shape.heads * shape.head_dim * visible


def _base_modules(decoder: nn.Module) -> Iterator[nn.Module]:
    """The decoder's modules but for adapters and the trained copies of whole modules."""
    for name, module in decoder.named_modules():
        parts = name.split(".")
        if not any(part.startswith("lora_") or part == "modules_to_save" for part in parts):
            yield module


def _expert_parameters(model: nn.Module) -> int:
    """Of stacked experts (E, ., .): the share that a token goes through."""
    lm: Any = causal_lm(model)
    active = getattr(lm.config.get_text_config(), "num_experts_per_tok", None)
    total = 0
    for module in _base_modules(lm.get_decoder()):
        if "Experts" in type(module).__name__:
            stacked = [p for p in module.parameters(recurse=False) if p.ndim == 3]
            total += sum(p.numel() // p.shape[0] * min(active or p.shape[0], p.shape[0]) for p in stacked)
    return total
