"""Messages of libraries that no user can act on, kept off the terminal while a known call runs."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars and no advice from transformers while a model or tokenizer is read; errors still raise."""
    from transformers.utils import logging as hf

    level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # bitsandbytes scripts its optimisers at import, with an interface that torch deprecates.
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
            # peft asks transformers models by a name that transformers has renamed.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            yield
    finally:
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()


def quiet_running() -> None:
    """Silence, by their exact texts, messages that repeat at each step and that the lab has dealt with."""
    for message in (
        "MatMul8bitLt: inputs will be cast",  # bitsandbytes: 8-bit products take 16-bit inputs
        ".*does not have many workers.*",  # lightning: steps are laid out faster than they are trained
        ".*module.*in eval mode at the start of training.*",  # lightning: the lab sets the modes itself
        ".*`_get_pg_default_device` will be deprecated.*",
        ".*The `srun` command is available.*",
        ".*isinstance\\(treespec, LeafSpec\\).*",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
