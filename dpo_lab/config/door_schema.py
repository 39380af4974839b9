"""Types and ranges of the nodes that one door has and training has not."""

from typing import Annotated, Literal

from pydantic import Field

from dpo_lab.config.fields import Count, Group, Positive, PositiveReal, Text


class Preview(Group):
    """conf/preview: what `python -m dpo_lab.preview` shows."""

    show: Count
    first: Positive
    ids: bool
    full: bool
    page: bool
    page_pairs: Positive | None
    json_only: bool


class Bench(Group):
    """conf/bench: what `python -m dpo_lab.bench` measures."""

    steps: Positive
    warmup: Count
    profiled: Count
    peak_tflops: PositiveReal | None


class Evaluate(Group):
    """What `python -m dpo_lab.evaluate` does."""

    task: Literal["score", "predict", "duel", "harness"]
    split: Literal["heldout", "train", "all"]
    max_prompts: Positive | None
    batch_size: Positive
    resamples: Positive


class Judge(Group):
    """An OpenAI-compatible endpoint that says which of two answers is better."""

    base_url: Text | None
    model: Text | None
    api_key_env: Text
    timeout: PositiveReal
    retries: Count
    concurrency: Positive


class Chat(Group):
    """What `python -m dpo_lab.chat` begins with."""

    system: str | None
    only: Text | None
    load: Text | None
    json_only: bool


class Export(Group):
    """What `python -m dpo_lab.export` writes beside the weights."""

    dtype: Literal["float16", "bfloat16", "float32"]
    shard_size: Text
    gguf_type: Literal["f16", "bf16", "f32", "q8_0"]
    check_pairs: Positive
    tolerance: PositiveReal | None
    push_to_hub: Text | None
    private: bool


class Serve(Group):
    """Where `python -m dpo_lab.serve` listens."""

    host: Text
    port: Annotated[int, Field(ge=0, le=65535, strict=True)]
    api_key_env: Text
