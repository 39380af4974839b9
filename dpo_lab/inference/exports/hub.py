"""Upload of an export to the hub, with the token in HF_TOKEN."""

import os
from pathlib import Path

from dpo_lab.runtime.errors import ConfigError, OutputError

TOKEN = "HF_TOKEN"  # noqa: S105 - the name of a variable


def hub_token(repository: str) -> str:
    """The token, once the repository's name is one.

    Raises:
        ConfigError: there is no token, or the name is none.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
        whole = repository.count("/") == 1
    except HFValidationError:
        whole = False
    if not whole:
        raise ConfigError(f"export.push_to_hub={repository} is no name of a repository: give OWNER/NAME.")
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise ConfigError(
            f"export.push_to_hub={repository} needs a token that may write there in the environment: {TOKEN}=hf_..."
        )
    return token


class _Public(Exception):
    """A repository that all can read."""


def push(folder: Path, repository: str, token: str, *, private: bool) -> str:
    """Upload a folder; the repository is made where there is none. Returns where it is.

    Raises:
        OutputError: the hub does not take it, cannot be reached, or has a public repository of the name where a private
            one is asked for; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.repo_info(repository).private:  # one that was there stays as it was
            raise _Public(repository)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by dpo_lab")
    except _Public as e:
        raise OutputError(
            f"The export is in {folder}, and nothing was uploaded: {repository} exists and is public. Choose another name, "
            "or export.private=false."
        ) from e
    except Exception as e:  # whatever the network does, the advice is the same
        response = getattr(e, "response", None) if isinstance(e, HfHubHTTPError) else None
        code = getattr(response, "status_code", None)
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200].rstrip(".")
        if code in (401, 403):
            reason = f"the token in {TOKEN} may not write there ({code})"
        raise OutputError(
            f"The export is in {folder}, but it could not be uploaded to {repository}: {reason}. To try again: "
            f"hf upload {repository} {folder}"
        ) from e
    return str(url)
