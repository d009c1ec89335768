# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face Hub, through huggingface_hub where it is installed (extra `hub`)."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sjepa_fast.errors import InputError
from sjepa_fast.extras import require
from sjepa_fast.runtime.manifest import WEIGHTS

FILES = ("config.json", WEIGHTS)
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_id(text: str) -> bool:
    """Whether text can be the name of a repository, owner/name."""
    return _ID.fullmatch(text) is not None


@contextmanager
def _asking(argument: str, repo_id: str) -> Iterator[None]:
    # Its exceptions are those of two HTTP libraries, and change with its versions.
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = "check the name, the network and `hf auth login`"
        raise InputError(argument, f"{repo_id}: the Hub says {reason}", fix) from error


def fetch_model(repo_id: str, revision: str | None) -> Path:
    """Bring a model from the Hub, or from its cache, and return its folder.

    Only the weights and their configuration are fetched. Raises InputError if huggingface_hub is
    not installed or the Hub has no such model.
    """
    require("model", f"{repo_id} is no folder here; as a name on the Hub it", "huggingface_hub")
    from huggingface_hub import snapshot_download

    with _asking("model", repo_id):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))


def push_folder(
    write: Callable[[Path], None], repo_id: str, *, private: bool, token: str | None, message: str
) -> str:
    """Let `write` fill a folder, upload it, and return the address of the repository.

    The repository is made if it does not exist. Raises InputError if the name is none, or as
    `fetch_model`.
    """
    if not is_hub_id(repo_id):
        raise InputError("repo_id", repo_id, "give owner/name")
    require("repo_id", f"push_to_hub({repo_id!r})", "huggingface_hub")
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write(folder)
        with _asking("repo_id", repo_id):
            api = HfApi(token=token)
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    return str(address)
