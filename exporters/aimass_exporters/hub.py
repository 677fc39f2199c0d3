"""Fetches a repository from the Hugging Face hub, safetensors only. Runs no code that a repository carries."""

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
_OFFLINE_ADVICE = "check the network, or fetch it on another machine (hf download REPO --local-dir FOLDER) and name the folder"


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
        detail = f"the hub answered {error.response.status_code if error.response is not None else 'with an error'}"
        raise SourceUnavailable(f"hub repository {repo_id}", detail=detail, advice=_OFFLINE_ADVICE) from error
