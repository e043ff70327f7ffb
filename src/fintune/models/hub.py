"""Push a model's folder to the Hugging Face hub through huggingface_hub.

The token is the library's own (`HF_TOKEN`, or the one from `hf auth login`), and is never shown.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path

from fintune.errors import ConfigError, ModelError
from fintune.models import card, manifest
from fintune.models.source import check_model

SENT = (
    "*.safetensors *.safetensors.index.json *.gguf Modelfile.* adapter_config.json config.json "
    "generation_config.json tokenizer* special_tokens_map.json added_tokens.json vocab.* merges.txt "
    "chat_template.jinja fintune.json export.json"
).split()
"""File names to send besides the card. Results contain texts of the data, whose licences may forbid it."""


@dataclass(frozen=True)
class Upload:
    """The files that would be sent, and those of the folder that would not."""

    folder: Path
    card: str
    files: tuple[Path, ...]
    left_out: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files) + len(self.card.encode())


def plan(folder: str | Path) -> Upload:
    """Decide which files of a model's folder to send.

    Raises:
        ModelError: it holds no complete adapter and no export, or has no card.
    """
    folder = check_model(folder)
    files, left_out = [], []
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in SENT):
            files.append(path)
        elif path.name != "README.md":
            left_out.append(path.name)
    text = card.for_hub(folder, manifest.read_raw(folder))
    return Upload(folder, text, tuple(files), tuple(left_out))


def push(upload: Upload, repo: str, public: bool = False) -> str:
    """Create the repository if needed and send all files in one commit; return its address.

    Raises:
        ConfigError: `repo` is not a valid repository name.
        ModelError: the hub cannot be reached or refuses, or the repository is public and `public` is False.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    api = HfApi()
    operations = [CommitOperationAdd(path.name, path) for path in upload.files]
    operations.append(CommitOperationAdd("README.md", upload.card.encode()))
    try:
        url = api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.model_info(url.repo_id).private:
            raise ModelError(f"{repo} exists and is public: add --public to send it there, or name another.")
        api.create_commit(url.repo_id, operations, commit_message="Upload by fintune push")
    except HFValidationError as error:
        raise ConfigError(
            f"REPO is {repo}, which is not a repository name: write NAME or OWNER/NAME."
        ) from error
    except OfflineModeIsEnabled as error:
        raise ModelError("HF_HUB_OFFLINE is set, so nothing can be sent: unset it.") from error
    except LocalTokenNotFoundError as error:
        raise ModelError("There is no token for the hub: run  hf auth login, or set HF_TOKEN.") from error
    except HfHubHTTPError as error:
        raise ModelError(_refused(repo, error)) from None
    except Exception as error:
        if "httpx" not in type(error).__module__ and not isinstance(error, OSError):
            raise  # the client's HTTP library is httpx or its successor httpx2, depending on the version
        raise ModelError(f"The hub at {api.endpoint} cannot be reached: {type(error).__name__}.") from None
    return str(url)


def _refused(repo: str, error: Exception) -> str:
    """Why the hub refused, from its status code only: its texts may repeat what was sent."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    fix = {
        401: "the token is missing or no longer valid: run  hf auth login, or set HF_TOKEN",
        403: "the token may not write there: create one with write permission",
        404: "there is no such owner, or the token has no access to it",
        413: "a file is too large for it",
        429: "there were too many requests: try later",
    }.get(status or 0, "try again later")
    return f"The hub refused {repo} (status {status}): {fix}."
