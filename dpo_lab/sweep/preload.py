"""What the fork server imports before it forks: all that a trial would spend seconds on, and nothing that starts threads.

A trial that is forked from here finds its libraries loaded and is otherwise as fresh as a new process: no CUDA context,
no thread pool, no open file. The modules are named, not imported by statement: a sweep itself needs none of them.
"""

import contextlib
import importlib
import os

MODULES = (
    "hydra.main",
    "hydra.compose",
    "torch",
    "lightning",
    "peft",
    "transformers.generation",
    "transformers.optimization",
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_tokenizers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "plotly.graph_objects",
    "plotly.io",
    "dpo_lab.config.door",
    "dpo_lab.training.align",
    "dpo_lab.training.run",
)

os.setpgid(0, 0)  # a Ctrl-C at the terminal is the sweep's business
_threads = os.environ.get("OPENBLAS_NUM_THREADS")
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # numpy's starts its threads when it is loaded, and they do not survive a fork
for name in MODULES:
    with contextlib.suppress(ImportError):  # the trial will say what is missing
        importlib.import_module(name)
del os.environ["OPENBLAS_NUM_THREADS"]
if _threads is not None:
    os.environ["OPENBLAS_NUM_THREADS"] = _threads
