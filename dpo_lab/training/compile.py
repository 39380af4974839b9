"""`trainer.compile`: torch.compile of the decoder's layers while the run trains.

Each layer is compiled in place, for any length (`dynamic=True`): the layers share one compiled graph, the policy's
parameters keep their names, and what has to stay outside (embeddings, head, attention over a pack) does. Switching the
adapter off for a reference, or evaluating, compiles a second graph once.

CUDA graphs are not used: a graph replays fixed shapes at fixed addresses, and no two packs have the same length.
Padding them to a few lengths would bring back the work that packing saves, for launches that a step of many thousand
tokens hides anyway.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from dpo_lab.preference import attention
from dpo_lab.preference.forward import causal_lm

# Steps from which on compiling pays. On a CPU: 438 s for SmolLM2-135M's 30 layers on two cores, for 13 % of a step, so
# a step of 7 s (8 pairs of 120 tokens) has to come 500 times to make up for it and 5000 times to gain a tenth. On a
# GPU one to two minutes and about as large a share of a step of a second or less.
PAYS = {"cpu": 5000, "cuda": 1000}


@dataclass(frozen=True)
class Choice:
    """Whether the layers are compiled, and why."""

    on: bool
    why: str


def choose(asked: bool | Literal["auto"], *, steps: int, device: str, lean: bool) -> Choice:
    """What `trainer.compile` comes to.

    Args:
        asked: the key.
        steps: optimizer steps that are left.
        device: its type.
        lean: whether layers have passes of the lab's own, which leave to compiling nothing that pays for it.
    """
    if asked != "auto":
        return Choice(asked, f"trainer.compile={str(asked).lower()}")
    if lean:
        return Choice(False, "the lean layers already have what it would bring")
    if device not in PAYS:
        return Choice(False, f"untested on {device}")
    least = PAYS[device]
    more = "of the {} from which on it pays here, or more" if steps >= least else "and it pays from {} on here"
    return Choice(steps >= least, f"{steps} steps are left, {more.format(least)}")


@contextmanager
def compiled(policy: nn.Module, choice: Choice) -> Iterator[None]:
    """The policy's decoder layers compiled while the block runs, if they should be."""
    if not choice.on:
        yield
        return
    layers: list[Any] = list(causal_lm(policy).get_decoder().layers)
    # Traced, it would be compiled anew for each way in which pairs lie in a pack.
    of_packs, attention.packed_attention = (
        attention.packed_attention,
        torch.compiler.disable(attention.packed_attention),
    )
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        attention.packed_attention = of_packs
        for layer in layers:  # generation that follows would compile anew for each length of its cache
            layer._compiled_call_impl = None
