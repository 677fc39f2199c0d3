"""Fetches a repository from the Hugging Face hub: safetensors only, and no code that it may carry."""

from __future__ import annotations

from pathlib import Path

import requests
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from aimass_exporters.errors import SourceUnavailable
from aimass_exporters.progress import Progress

_WANTED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md"]
_OFFLINE_ADVICE = (
    "check the network, or fetch it elsewhere (hf download REPO --local-dir FOLDER) and name the folder"
)


def fetch_repository(repo_id: str, progress: Progress) -> Path:
    """Return the local folder of a hub repository, from the hub's own cache when it is there.

    Raises `SourceUnavailable` when the hub cannot be reached, or has no such repository.
    """
    progress.stage(f"fetch {repo_id} from the hub")
    try:
        return Path(snapshot_download(repo_id, allow_patterns=_WANTED, etag_timeout=10))
    except RepositoryNotFoundError as error:
        advice = "check the spelling, and log in with `hf auth login` if it is private or gated"
        raise SourceUnavailable(
            f"hub repository {repo_id}", detail="no such repository", advice=advice
        ) from error
    except (
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        requests.ConnectionError,
        requests.Timeout,
    ) as error:
        detail = "the hub cannot be reached and its cache does not have it"
        raise SourceUnavailable(f"hub repository {repo_id}", detail=detail, advice=_OFFLINE_ADVICE) from error
    except HfHubHTTPError as error:
        status = "an error" if error.response is None else str(error.response.status_code)
        raise SourceUnavailable(
            f"hub repository {repo_id}", detail=f"the hub answered {status}", advice=_OFFLINE_ADVICE
        ) from error
