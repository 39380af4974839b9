"""Rows with different adapters in one batch come out as each would alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FP32, FP64, load_tiny, write_tiny_model

from dpo_lab.models.lean import make_lean
from dpo_lab.models.mixed import mixes, rows
from dpo_lab.models.precision import Precision

NAMES = [None, "a", "b", "a", None]


def two_adapters(folder: Path, precision: Precision = FP64, *, bits: Any = None, **more: Any) -> Any:
    """Two adapters of other ranks and scales, b on fewer layers, both far from zero."""
    from peft import LoraConfig, get_peft_model

    a = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **more)
    b = LoraConfig(r=3, lora_alpha=30, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **more)
    model = get_peft_model(load_tiny(folder, precision, bits=bits), a, adapter_name="a")
    model.add_adapter("b", b)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1
    return model.eval().requires_grad_(False)


def alone(model: Any, name: str | None, ids: torch.Tensor) -> torch.Tensor:
    if name is None:
        with model.disable_adapter():
            return model(ids).logits
    model.base_model.set_adapter(name, inference_mode=True)
    return model(ids).logits


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("bits", [None, 4])
def test_rows_are_as_alone(tmp_path: Path, family: str, lean: bool, bits: int | None) -> None:
    model = two_adapters(write_tiny_model(tmp_path / "m", family), FP64 if bits is None else FP32, bits=bits)
    if lean:
        assert make_lean(model)
    assert mixes(model)
    ids = torch.randint(4, 250, (len(NAMES), 7), generator=torch.Generator().manual_seed(0))
    before = {name: vars(m).get("forward") for name, m in model.named_modules()}
    with torch.no_grad():
        each = torch.cat([alone(model, name, ids[i : i + 1]) for i, name in enumerate(NAMES)])
        with rows(model, NAMES):
            together = model.get_base_model()(ids).logits
        again = torch.cat([alone(model, name, ids[i : i + 1]) for i, name in enumerate(NAMES)])
    assert (each[1] - each[0]).abs().max() > 1e-3, "the adapters do nothing"
    torch.testing.assert_close(
        together, each, **({"rtol": 1e-9, "atol": 1e-9} if bits is None else {"rtol": 1e-3, "atol": 1e-3})
    )
    assert torch.equal(again, each)
    assert {name: vars(m).get("forward") for name, m in model.named_modules()} == before


@pytest.mark.parametrize("names", [[None, None], ["b", None], ["b", "b"]])
@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("bits", [None, 4])
def test_layers_that_no_row_has_an_adapter_on_are_the_bases(
    tmp_path: Path, names: list[str | None], lean: bool, bits: int | None
) -> None:
    model = two_adapters(write_tiny_model(tmp_path / "m"), FP64 if bits is None else FP32, bits=bits)
    if lean:
        assert make_lean(model)
    parts = {name for name, _ in model.named_modules()}
    ids = torch.randint(4, 250, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        each = torch.cat([alone(model, name, ids[i : i + 1]) for i, name in enumerate(names)])
        model.base_model.set_adapter("a", inference_mode=True)
        with rows(model, names):
            together = model.get_base_model()(ids).logits
    tolerance = 1e-9 if bits is None else 1e-3
    torch.testing.assert_close(together, each, rtol=tolerance, atol=tolerance)
    assert {name for name, _ in model.named_modules()} == parts


def test_dora_rows_are_not_mixed(tmp_path: Path) -> None:
    assert not mixes(two_adapters(write_tiny_model(tmp_path / "m"), use_dora=True))
