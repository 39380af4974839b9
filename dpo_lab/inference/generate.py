"""Answers to prompts, in batches."""

from typing import Any

import torch
from torch import nn

from dpo_lab.data.templates import Template
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.preference.forward import causal_lm


@torch.no_grad()
def greedy_answers(
    model: nn.Module, prompts: list[list[int]], template: Template, *, max_new_tokens: int, precision: Any
) -> list[str]:
    """The most probable continuation of each prompt, one batch for all.

    Args:
        model: policy or reference, in eval mode.
        prompts: token ids with the generation prompt.
        template: says what ends an answer.
        max_new_tokens: where an answer is cut if it does not end before.
        precision: dtypes of the run.
    """
    tokenizer, lm = template.tokenizer, causal_lm(model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else template.end_of_turn[-1]
    width = max(len(p) for p in prompts)
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=lm.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=lm.device)
    stops = {template.end_of_turn[-1]} | ({tokenizer.eos_token_id} - {None})
    autocast = precision.autocast
    with quiet_loading(), torch.autocast(lm.device.type, dtype=autocast, enabled=autocast is not None):
        out = lm.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=sorted(stops),
            pad_token_id=pad,
            use_cache=True,
        )
    return [tokenizer.decode(row, skip_special_tokens=True).strip() for row in out[:, width:]]
