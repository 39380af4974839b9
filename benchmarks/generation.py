"""Answers of a trained adapter: transformers' own generate against dpo_lab's, and side-by-side chat against one model.

    python benchmarks/generation.py --run RUN [--rounds 5] [--tokens 64] [--threads 2]     RUN: a LoRA run of the lab

One process holds the base twice: as transformers and PEFT load it by themselves, and as the lab's chat, evaluation and
server do. Both answer the same prompts greedily in the same precision; what comes out must be the same tokens, or
nothing is written. The sides take turns, each round beginning with another; the first round is not counted. Three
questions:

- single: the policy answers one prompt. Seconds of transformers / seconds of dpo_lab; above 1 the lab is faster.
- batch: the policy answers 8 prompts of uneven length at once. The same ratio.
- side_by_side: reference and policy answer one prompt in one batch, as chat does, with the text streamed; seconds a
  token of that / seconds a token of the policy alone, and of the reference alone. A token of side by side is one of
  each. Once with the reading of the prompt, which two models do twice, and once from the first text on.

Writes benchmarks/results/generation.json.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from dpo_lab.config import resolvers
from dpo_lab.config.brought import REFERENCE, bring
from dpo_lab.config.overrides import read
from dpo_lab.config.paths import CONF_DIR
from dpo_lab.config.schema import Config
from dpo_lab.config.sources import Sources
from dpo_lab.runtime.facts import device_facts, git_commit, versions
from dpo_lab.runtime.files import write_json

RESULT = Path(__file__).parent / "results" / "generation.json"
QUESTIONS = (
    "Explain to a child, step by step, why the moon does not fall down on the earth.",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "How do I bake bread without yeast? List what I need and what I do.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take? Show each step of the calculation, please.",
    "What are the causes of the tides?",
    "Describe your day as if you were a cat that lives in a library and is not allowed to leave it.",
    "Name five uses of a paper clip, and say for each of them why it works.",
    "Read the text. Text: Anna has three brothers. Each of them has two sisters. Question: How many children are there? "
    "Explain how you know it, and then say in one sentence what makes this question harder than it looks.",
)
Tokens = list[list[int]]


@dataclass(frozen=True)
class Timed:
    """Seconds of one call, and what came."""

    seconds: float
    ids: Tokens
    first: float | None = None  # seconds to the first text, where it was streamed

    @property
    def steps(self) -> int:
        """Forward passes: tokens of the longest answer."""
        return max(map(len, self.ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a finished LoRA run of SmolLM2-135M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--result", type=Path, default=RESULT, help="where the summary is written")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    sides = Sides(options.run, options.tokens)
    cases = {
        "single": {"transformers": lambda: sides.theirs(1), "dpo_lab": lambda: sides.ours(1)},
        "batch": {"transformers": lambda: sides.theirs(8), "dpo_lab": lambda: sides.ours(8)},
        "side_by_side": {
            "policy": lambda: sides.talk([sides.policy]),
            "reference": lambda: sides.talk([REFERENCE]),
            "both": lambda: sides.talk([REFERENCE, sides.policy]),
        },
    }
    measured = {name: alternate(calls, options.rounds) for name, calls in cases.items()}
    for name in ("single", "batch"):
        check_same(name, measured[name])
    both, alone = measured["side_by_side"]["both"][0], [measured["side_by_side"][n][0] for n in ("reference", "policy")]
    if both.ids != [one.ids[0] for one in alone]:
        sys.exit("FAILED: side by side the answers are not those that each gives alone")
    summary = {name: compared(measured[name]) for name in ("single", "batch")}
    summary["side_by_side"] = beside(measured["side_by_side"])
    print(json.dumps(summary, indent=2))
    settings = {"rounds": options.rounds, "max_new_tokens": options.tokens, "threads": options.threads}
    facts = {"model": sides.stage.start.located.name, "precision": str(sides.stage.precision), **settings}
    write_json(
        options.result,
        {**facts, **summary, "machine": device_facts(), "versions": versions(), "commit": git_commit()},
    )


class Sides:
    """The same adapter twice: by itself, and on the lab's stage."""

    def __init__(self, run: str, max_new_tokens: int) -> None:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from dpo_lab.inference.sampler import Sampling
        from dpo_lab.inference.stage import load_stage
        from dpo_lab.runtime.terminal import Terminal

        words = [f"run={run}", "generation=greedy", f"generation.max_new_tokens={max_new_tokens}"]
        config, _, [subject] = bring(*composed(words))
        self.sampling, self.policy = Sampling.of(config.generation, seed=config.seed), subject.name
        self.stage = load_stage(config, [subject], Terminal())
        base = AutoModelForCausalLM.from_pretrained(self.stage.start.located.path, dtype=self.stage.precision.weights)
        self.model = PeftModel.from_pretrained(base, subject.result).eval().to(self.stage.device)
        self.tokenizer = AutoTokenizer.from_pretrained(subject.result, padding_side="left")
        self.messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
        self.ids = self.stage.template.prompt_ids(self.messages)  # type: ignore[arg-type]
        self.no_grad = torch.no_grad

    def theirs(self, n: int) -> Timed:
        """transformers and PEFT, as their documentation has it."""
        texts = self.tokenizer.apply_chat_template(self.messages[:n], tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        width = inputs["input_ids"].shape[1]
        begun = time.perf_counter()
        with self.no_grad():
            out = self.model.generate(
                **inputs.to(self.model.device),
                max_new_tokens=self.sampling.max_new_tokens,
                do_sample=False,
                repetition_penalty=self.sampling.repetition_penalty,  # else the one of the model's file, if it has one
            )
        seconds = time.perf_counter() - begun
        ends = self.model.generation_config.eos_token_id
        return Timed(
            seconds, [until(row, ends if isinstance(ends, list) else [ends]) for row in out[:, width:].tolist()]
        )

    def ours(self, n: int) -> Timed:
        """The lab."""
        from dpo_lab.inference.generate import Asked

        return self._timed([Asked(self.policy, ids) for ids in self.ids[:n]])

    def talk(self, names: Sequence[str]) -> Timed:
        """The lab, with the text handed on as it comes."""
        from dpo_lab.inference.generate import Asked

        return self._timed([Asked(name, self.ids[0]) for name in names], streamed=True)

    def _timed(self, asked: list[Any], *, streamed: bool = False) -> Timed:
        from dpo_lab.inference.generate import answers

        seen: list[float] = []
        begun = time.perf_counter()
        heard = (lambda place, text: seen.append(time.perf_counter() - begun)) if streamed else None
        found = answers(self.stage, asked, self.sampling, on_text=heard)
        seconds = time.perf_counter() - begun
        end = self.stage.template.end_of_turn[-1]
        return Timed(seconds, [[*one.ids, *([end] if one.ended else [])] for one in found], seen[0] if seen else None)


def until(row: list[int], ends: list[int]) -> list[int]:
    """The tokens up to and with the first that ends an answer."""
    place = next((i for i, token in enumerate(row) if token in ends), len(row))
    return row[: place + 1]


def composed(words: list[str]) -> tuple[Config, dict[str, Any], list[str]]:
    """What the door of chat would hand over for these words."""
    resolvers.register()
    sources = Sources((CONF_DIR,), "chat")
    given, problems = read(words, sources, multirun=False)
    if problems:
        sys.exit("\n".join(problems))
    tree = resolvers.plain(sources.compose([g.text for g in given]))
    return Config.model_validate(tree), tree, [g.key for g in given]


def alternate(calls: dict[str, Callable[[], Timed]], rounds: int) -> dict[str, list[Timed]]:
    """Each call once a round, in an order that turns; a round to warm up comes first."""
    names = list(calls)
    found: dict[str, list[Timed]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            timed = calls[name]()
            if turn:
                found[name].append(timed)
            print(f"round {turn}: {name} {timed.seconds:.2f} s, {timed.steps} steps", flush=True)
    return found


def check_same(name: str, sides: dict[str, list[Timed]]) -> None:
    """Every round of every side gave the same tokens."""
    if len({json.dumps(timed.ids) for runs in sides.values() for timed in runs}) != 1:
        sys.exit(f"FAILED: in {name} the two sides do not say the same")


def compared(sides: dict[str, list[Timed]]) -> dict[str, Any]:
    """Medians, and the ratio of the seconds in each round."""
    ratios = [a.seconds / b.seconds for a, b in zip(sides["transformers"], sides["dpo_lab"], strict=True)]
    result: dict[str, Any] = {}
    for name, runs in sides.items():
        seconds, tokens = median(r.seconds for r in runs), sum(map(len, runs[0].ids))
        result[name] = {"seconds": round(seconds, 3), "tokens_per_second": round(tokens / seconds, 2)}
    return result | {
        "prompts": len(sides["dpo_lab"][0].ids),
        "tokens": [len(ids) for ids in sides["dpo_lab"][0].ids],
        "ratio_of_medians": round(result["transformers"]["seconds"] / result["dpo_lab"]["seconds"], 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def beside(sides: dict[str, list[Timed]]) -> dict[str, Any]:
    """Seconds a token, and what two cost against one."""
    result: dict[str, Any] = {"steps": {name: runs[0].steps for name, runs in sides.items()}}
    for what, cost in (("with_the_prompt", whole), ("from_the_first_text", decoding)):
        each = {name: [cost(r) for r in runs] for name, runs in sides.items()}
        medians = {name: median(values) for name, values in each.items()}
        result[what] = {
            "seconds_per_token": {name: round(value, 4) for name, value in medians.items()},
            "ratio_to_policy": round(medians["both"] / medians["policy"], 3),
            "ratio_to_reference": round(medians["both"] / medians["reference"], 3),
            "ratios_to_policy": [round(a / b, 3) for a, b in zip(each["both"], each["policy"], strict=True)],
        }
    return result


def whole(run: Timed) -> float:
    """Seconds a token, the prompt's included."""
    return run.seconds / run.steps


def decoding(run: Timed) -> float:
    """Seconds of each token after the first."""
    assert run.first is not None
    return (run.seconds - run.first) / max(1, run.steps - 1)


if __name__ == "__main__":
    main()
