"""Models and tokenizers by their hub id: fetched into the pod's cache, then used like a directory.

Only weights as safetensors and what goes with them are fetched, never code. The hub is that of HF_ENDPOINT, the token
that of HF_TOKEN. Workers of one pod share the cache; each pod has its own, unless HF_HOME names a volume. Limit: a
branch may move between the fetches of two members, so the guarantee of equal weights needs a commit (ORG/NAME@COMMIT).
"""

from __future__ import annotations

import os
from typing import Final

from llmtrain_operator.contract import names, uris
from llmtrain_trainer.config import local_path
from llmtrain_trainer.errors import ConfigError, TrainerError

TOKENIZER_FILES: Final = ("tokenizer*.json", "special_tokens_map.json", "chat_template.jinja")
MODEL_FILES: Final = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json")
_HUB: Final = "https://huggingface.co"


def local_directory(place: str, field: str, files: tuple[str, ...]) -> str:
    """Where the place of `field` lies in this pod, fetched from the hub if it is a hub id.

    `files`: globs of those that are needed. Raises `TrainerError`: StorageUnreachable if the hub does not answer, which
    may pass; InvalidConfig if there is no such thing or no right to it.
    """
    found = uris.hub_id(place)
    return _fetch(*found, field, files) if found else local_path(place, field)


def _fetch(repository: str, revision: str | None, field: str, files: tuple[str, ...]) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    hub = os.environ.get("HF_ENDPOINT") or _HUB
    try:
        return str(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except GatedRepoError as error:
        raise ConfigError(
            f"{field}: {repository} on {hub} is gated: accept its terms there and give the members a token of yours in "
            "HF_TOKEN, from a secret (spec.template)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{field}: {hub} shows no {repository}: it does not exist, or HF_TOKEN is missing or lacks the right to it"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{field}: {repository} on {hub} has no branch, tag or commit {revision}") from error
    except (HfHubHTTPError, OSError) as error:
        raise TrainerError(
            names.REASON_STORAGE_UNREACHABLE,
            f"{field}: {repository} cannot be fetched from {hub}: {_words(error)}. Let the members reach it (proxy, "
            "network policy; HF_ENDPOINT names a mirror), or put the model into a claim: pvc://claim/path",
        ) from error


def _words(error: BaseException) -> str:
    """The cause, which the library wraps in advice for people at their own machine."""
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}"
