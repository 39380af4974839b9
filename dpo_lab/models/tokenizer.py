"""The tokenizer of a model folder."""

from typing import Any

from dpo_lab.config.schema import Model
from dpo_lab.models.locate import Located
from dpo_lab.models.quiet import quiet_loading
from dpo_lab.runtime.errors import ModelError


def load_tokenizer(located: Located, model: Model) -> Any:
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(located.path, trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ModelError(
            f"The tokenizer in {located.path} could not be read: {(str(e).strip().splitlines() or [type(e).__name__])[0][:300].rstrip('.')}."
        ) from e
