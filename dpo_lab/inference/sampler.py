"""How the next token is chosen: the most probable one, or one that is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dpo_lab.config.schema import Generation
from dpo_lab.runtime.files import digest


@dataclass(frozen=True)
class Sampling:
    """What conf/generation comes to, and the seed.

    Attributes:
        max_new_tokens: where an answer is cut if it does not end before.
        temperature: of the softmax; 0 takes the most probable token.
        top_p: the most probable tokens that make up this much are drawn from; 1: all.
        top_k: so many of the most probable tokens are drawn from; 0: all.
        repetition_penalty: makes what was said before, in the prompt too, less probable; see `Repetition`. 1: none.
        seed: of the draws.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    @classmethod
    def of(cls, generation: Generation, *, seed: int) -> "Sampling":
        """From the configuration."""
        return cls(**generation.model_dump(), seed=seed)

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0.0


@dataclass(eq=False)
class Repetition:
    """A logits processor that divides the logits of what a row holds already (Keskar et al., arXiv:1909.05858).

    transformers' own takes padding for something that was said (at 5.17; at 5.23 no longer), and an answer would depend
    on its batch mates.

    Attributes:
        penalty: positive logits are divided by it, negative ones multiplied.
        padding: how many tokens before each row's prompt are none of it: (B,).
    """

    penalty: float
    padding: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T), (B, V) -> (B, V)."""
        first = self.padding[:, None]  # the first token of a row stands for its padding: twice is as once
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        said = torch.where(places < first, input_ids.gather(1, first), input_ids)
        logits = scores.gather(1, said)
        return scores.scatter(1, said, torch.where(logits < 0, logits * self.penalty, logits / self.penalty))


@dataclass(eq=False)
class Drawn:
    """A logits processor after which the largest logit is a draw from the tempered, cut distribution (Gumbel-max).

    Each row has a generator of its own, seeded by its seed and its prompt, so that an answer does not depend on the
    rows beside it, and policy and reference draw alike where they agree.

    Attributes:
        sampling: temperature and cuts; its seed is not looked at.
        prompts: token ids of each row.
        seeds: of each row.
    """

    sampling: Sampling
    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    generators: list[torch.Generator] = field(init=False)
    warpers: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        """Seed the generators."""
        from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

        s = self.sampling
        drawn = zip(self.seeds, self.prompts, strict=True)
        seeds = [int(digest(f"{seed} {list(prompt)}"), 16) % 2**63 for seed, prompt in drawn]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.warpers = [TemperatureLogitsWarper(s.temperature)]
        if s.top_k:
            self.warpers.append(TopKLogitsWarper(s.top_k))
        if s.top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(s.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, T), (B, V) -> (B, V)."""
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        noise = torch.stack([torch.rand(scores.shape[-1], generator=g) for g in self.generators])
        gumbel = -torch.log(-torch.log(noise.clamp_(1e-20, 1 - 1e-7)))
        return scores + gumbel.to(scores)
