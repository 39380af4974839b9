"""Which layers carry adapters, and which modules are trained as a whole: names from the configuration -> modules."""

import re
from collections.abc import Collection, Iterable
from typing import Any

from torch import nn

from dpo_lab.config.names import did_you_mean
from dpo_lab.config.rules.adapter import TARGET_KEYWORDS
from dpo_lab.runtime.errors import ConfigError


def target_modules(model: Any, wanted: str | list[str], saved: Collection[str] = ()) -> str | list[str]:
    """`lora.target_modules` as PEFT takes it, once every part of it is known to fit a layer.

    Args:
        model: the base, before any adapter.
        wanted: `all-linear` (but the LM head), `attention` (the projections of every attention block, whatever they are
            called), a list of names (`q_proj`, or more of the path: `self_attn.q_proj`), or a regular expression for
            the whole path of a layer. Every string that is no keyword is a regular expression.
        saved: modules that are trained as a whole, from `modules_to_save`; they carry no adapters.

    Raises:
        ConfigError: it fits no layer, something that is none, or names a layer that is trained as a whole.
    """
    if wanted == "all-linear":
        return wanted
    if wanted == "attention":
        return _attention(model)
    layers = {name: module for name, module in model.named_modules() if name}
    if isinstance(wanted, str):
        found = [name for name in layers if re.fullmatch(wanted, name)]
        if not found:
            raise ConfigError(
                f"lora.target_modules={wanted} fits no layer of this model{did_you_mean(wanted, TARGET_KEYWORDS)}. As a "
                f"regular expression it must fit the whole of a layer's path, for example {_example(model)}."
            )
    else:
        found = [name for one in wanted for name in _named(model, "lora.target_modules", one)]
        for name in found:
            if any(f".{one}." in f".{name}." for one in saved):
                raise ConfigError(
                    f"{name} is named twice: lora.modules_to_save trains it as a whole, and lora.target_modules gives it an "
                    "adapter. Leave it out of one of them."
                )
    for name in found:
        if not isinstance(layers[name], (*_linear_types(), nn.Embedding)):
            raise ConfigError(
                f"lora.target_modules names {name}, a {type(layers[name]).__name__}, but only linear layers and "
                f"embeddings carry adapters, for example {_example(model)}."
            )
    return wanted


def targeted(model: Any, wanted: str | list[str]) -> set[str]:
    """The paths of the layers that `lora.target_modules` means in a model without adapters."""
    fitting = target_modules(model, wanted)
    if fitting == "all-linear":
        head = model.get_output_embeddings()
        return {n for n, layer in model.named_modules() if isinstance(layer, _linear_types()) and layer is not head}
    names = [name for name, _ in model.named_modules()]
    if isinstance(fitting, str):
        return {name for name in names if re.fullmatch(fitting, name)}
    return {name for name in names if any(f".{name}".endswith(f".{one}") for one in fitting)}


def modules_to_save(model: Any, wanted: Iterable[str]) -> list[str]:
    """`lora.modules_to_save` such that PEFT finds these modules and no others.

    PEFT takes every module whose path ends in the text, so that `norm` would mean `input_layernorm` too. Where input
    embedding and LM head share their weight, either name stands for both, and PEFT keeps them one.

    Raises:
        ConfigError: there is no such module, it has no weights, or they are quantised.
    """
    names = [name for name, _ in model.named_modules()]
    tied = tied_embedding(model)
    found: list[str] = []
    for one in wanted:
        mine = _named(model, "lora.modules_to_save", one)
        for name in mine:
            parameters = list(model.get_submodule(name).parameters())
            if not parameters or not all(p.dtype.is_floating_point for p in parameters):
                what = "is quantised" if parameters else "has no weights"
                raise ConfigError(f"lora.modules_to_save={one}: {name} {what}, so it cannot be trained. Leave it out.")
        mine = [tied[0] if name in tied else name for name in mine]
        found += [one] if mine == [name for name in names if name.endswith(one)] and not set(mine) & {*tied} else mine
    return list(dict.fromkeys(found))


def tied_embedding(model: Any) -> list[str]:
    """The paths of input embedding and LM head where they share their weight, the embedding first."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embedding.weight:
        return []
    paths = {module: name for name, module in model.named_modules()}
    return [paths[embedding], paths[head]]


def _named(model: Any, key: str, wanted: str) -> list[str]:
    """The modules whose path is `wanted` or ends in `.wanted`."""
    names = [name for name, _ in model.named_modules() if name == wanted or name.endswith(f".{wanted}")]
    if not names:
        known = sorted({name.rpartition(".")[2] for name, _ in model.named_modules()} - {""})
        words = ", ".join(name for name in known if not name.isdigit())
        raise ConfigError(f"{key}: this model has no module {wanted}{did_you_mean(wanted, known)}. Names: {words}.")
    return names


def _attention(model: Any) -> list[str]:
    """The shortest names that fit the linear layers inside attention blocks and nothing else."""
    linear = [name for name, module in model.named_modules() if isinstance(module, _linear_types())]
    inside = [name for name in linear if re.search(r"attn|attention", name.rpartition(".")[0], re.IGNORECASE)]
    if not inside:
        raise ConfigError(
            "lora.target_modules=attention finds no attention block in this model. Give a list of layers, or a regular "
            f"expression for their paths, for example {_example(model)}."
        )
    others = {name.rpartition(".")[2] for name in linear if name not in set(inside)}
    # GPT-2 has a c_proj in the attention and one in the MLP: there the block's name is needed too.
    return sorted({".".join(n.split(".")[-2 if n.rpartition(".")[2] in others else -1 :]) for n in inside})


def _example(model: Any) -> str:
    linear = [name for name, module in model.named_modules() if isinstance(module, _linear_types())]
    return " or ".join(linear[:2])


def _linear_types() -> tuple[type[nn.Module], ...]:
    from transformers.pytorch_utils import Conv1D

    return nn.Linear, Conv1D
