"""A model's files from a hub, through the hub's own library. A copy on this machine is used without asking the hub."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from dpo_lab.config.schema import Model
from dpo_lab.runtime.errors import ModelError

TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
IGNORED = ("*.onnx", "*.gguf", "*.msgpack", "*.h5", "original/*", "onnx/*", "consolidated*")
HUB_SECONDS = 10  # how long a hub may take to answer at all
TITLES = {"hf": "the hub", "modelscope": "ModelScope", "openmind": "openMind"}

Say = Callable[[str], None]
# The folder of a hub's files that match the patterns, from this machine alone where `local`.
Snapshot = Callable[[list[str], bool], Path]


def from_hub(name: str, model: Model, whole: Callable[[Path], None], say: Say, *, weights: bool = True) -> Path:
    """The folder with a hub's model, fetched if it is not on this machine.

    Args:
        name: what the hub calls it.
        model: the hub, and the revision.
        whole: raises a ModelError where files are missing or damaged.
        say: told what takes time.
        weights: false fetches configuration and tokenizer alone.

    Raises:
        ModelError: the hub does not know it, does not give it, or cannot be reached.
    """
    fetch = {"hf": _hf, "modelscope": _modelscope, "openmind": _openmind}[model.hub]
    return fetch(name, model, whole, say, weights)


def _hf(name: str, model: Model, whole: Callable[[Path], None], say: Say, weights: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def snapshot(patterns: list[str], local: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=model.revision,
                allow_patterns=patterns,
                ignore_patterns=[*IGNORED],
                local_files_only=local,
            )
        )

    if (folder := _on_this_machine(snapshot, model, whole, weights)) is not None:
        return folder
    say(f"fetching {name} from the hub")
    try:
        # First a question with a time limit: snapshot_download's own has none, and a silent hub would hang it.
        HfApi().model_info(name, revision=model.revision, timeout=HUB_SECONDS)
        return _files(snapshot, model, weights, local=False)
    except GatedRepoError as e:
        raise ModelError(
            f"{name} is gated on the hub: accept its terms at https://huggingface.co/{name} and run 'hf auth login'."
        ) from e
    except RevisionNotFoundError as e:
        raise ModelError(f"{name} has no revision {model.revision!r} on the hub. Check model.revision.") from e
    except RepositoryNotFoundError as e:
        raise ModelError(_unknown(name, model)) from e
    except HFValidationError as e:
        raise ModelError(f"{name!r} is no name of a model on the hub (OWNER/NAME). For a folder use model.path.") from e
    except Exception as e:  # whatever the network does, the advice is the same
        cause = e.__cause__ if isinstance(e.__cause__, HfHubHTTPError) else e
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code == 404:  # a mirror that says no more
            raise ModelError(_unknown(name, model)) from e
        raise _unreachable(name, model, cause) from e


def _modelscope(name: str, model: Model, whole: Callable[[Path], None], say: Say, weights: bool) -> Path:
    _needs("modelscope_hub", model)
    import requests
    from modelscope_hub import HubApi  # pyright: ignore[reportMissingImports]
    from modelscope_hub.config import HubConfig  # pyright: ignore[reportMissingImports]
    from modelscope_hub.errors import (  # pyright: ignore[reportMissingImports]
        AuthenticationError,
        InvalidParameter,
        NotExistError,
        PermissionDeniedError,
    )

    api = HubApi()

    def snapshot(patterns: list[str], local: bool) -> Path:
        return Path(
            api.download_repo(
                name,
                "model",
                revision=model.revision,
                allow_patterns=patterns,
                ignore_patterns=[*IGNORED],
                local_files_only=local,
            )
        )

    _check_name(name, model)
    if (folder := _on_this_machine(snapshot, model, whole, weights)) is not None:
        return folder
    say(f"fetching {name} from ModelScope")
    try:
        requests.head(str(HubConfig().endpoint), timeout=HUB_SECONDS)  # the client itself asks a silent hub for minutes
        return _files(snapshot, model, weights, local=False)
    except (AuthenticationError, PermissionDeniedError) as e:
        raise ModelError(
            f"ModelScope does not give {name} to this user: accept its terms at https://modelscope.cn/models/{name} and "
            "run 'modelscope login', or set MODELSCOPE_API_TOKEN."
        ) from e
    except (NotExistError, InvalidParameter) as e:
        raise ModelError(_unknown(name, model)) from e
    except Exception as e:  # whatever the network does, the advice is the same
        raise _unreachable(name, model, e) from e


def _openmind(name: str, model: Model, whole: Callable[[Path], None], say: Say, weights: bool) -> Path:
    _needs("openmind_hub", model)
    try:
        import openmind_hub  # pyright: ignore[reportMissingImports]
    except ValueError as e:  # its own check of OPENMIND_HUB_ENDPOINT
        raise ModelError(f"openmind_hub does not start: {e} OPENMIND_HUB_ENDPOINT must begin with https://.") from e

    def snapshot(patterns: list[str], local: bool) -> Path:
        if local:
            return _openmind_copy(name, model.revision, Path(openmind_hub.OM_HUB_CACHE))
        return Path(
            openmind_hub.snapshot_download(
                name, revision=model.revision, allow_patterns=patterns, ignore_patterns=[*IGNORED]
            )
        )

    _check_name(name, model)
    if (folder := _on_this_machine(snapshot, model, whole, weights)) is not None:
        return folder
    say(f"fetching {name} from openMind")
    try:
        openmind_hub.model_info(
            name, revision=model.revision, timeout=HUB_SECONDS
        )  # the download repeats itself for long
        return _files(snapshot, model, weights, local=False)
    except openmind_hub.GatedRepoError as e:
        raise ModelError(f"{name} is gated on openMind: accept its terms at https://modelers.cn/models/{name}.") from e
    except openmind_hub.RevisionNotFoundError as e:
        raise ModelError(f"{name} has no revision {model.revision!r} on openMind. Check model.revision.") from e
    except (openmind_hub.RepositoryNotFoundError, openmind_hub.OMValidationError) as e:
        raise ModelError(_unknown(name, model)) from e
    except Exception as e:  # whatever the network does, the advice is the same
        raise _unreachable(name, model, e) from e


def _openmind_copy(name: str, revision: str | None, cache: Path) -> Path:
    """What openmind_hub kept; it asks the hub before it looks there itself, even with local_files_only."""
    kept = cache / f"models--{name.replace('/', '--')}"
    reference = kept / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    folder = kept / "snapshots" / (commit or "")
    if commit is None or not folder.is_dir():
        raise FileNotFoundError(folder)
    return folder


def _on_this_machine(snapshot: Snapshot, model: Model, whole: Callable[[Path], None], weights: bool) -> Path | None:
    try:
        folder = _files(snapshot, model, weights, local=True)
        whole(folder)
        return folder
    except Exception:  # not here, or not whole; each library has its own errors for it
        return None


def _files(snapshot: Snapshot, model: Model, weights: bool, *, local: bool) -> Path:
    """The folder of the hub's files; PyTorch's own format only where there are no safetensors."""
    base = [*TOKENIZER_FILES, *(["*.py"] if model.trust_remote_code else [])]
    if not weights:
        return snapshot(base, local)
    folder = snapshot([*base, "*.safetensors"], local)
    return folder if list(folder.glob("*.safetensors")) else snapshot([*base, "*.bin"], local)


def _needs(package: str, model: Model) -> None:
    if find_spec(package) is None:
        raise ModelError(
            f'model.hub={model.hub} needs the package {package}: pip install "dpo_lab[hubs]". Or use model.hub=hf.'
        )


def _check_name(name: str, model: Model) -> None:
    owner, _, rest = name.partition("/")
    if not owner or not rest or "/" in rest or any(c.isspace() for c in name):
        raise ModelError(
            f"{name!r} is no name of a model on {TITLES[model.hub]} (OWNER/NAME). For a folder use model.path."
        )


def _unknown(name: str, model: Model) -> str:
    revision = f", or no revision {model.revision!r} of it" if model.revision and model.hub == "modelscope" else ""
    return (
        f"There is no model {name!r} on {TITLES[model.hub]}{revision} (or it is private, or no longer there). Check "
        "model.name."
    )


def _unreachable(name: str, model: Model, e: BaseException) -> ModelError:
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
    other = " Another hub may have it: model.hub=hf|modelscope|openmind." if model.hub != "hf" else ""
    return ModelError(
        f"{name} is not on this machine and could not be fetched from {TITLES[model.hub]}: {reason[:200].rstrip('.')}. "
        f"Offline: download the model elsewhere, copy the folder here and use model.path=FOLDER; or use the default model, "
        f"model=smollm2_135m.{other}"
    )
