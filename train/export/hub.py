"""Requests to the Hugging Face Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.remote_errors import is_remote_error
from openuni.training.run_files import EXPORT_FILE

PATTERNS = (EXPORT_FILE, "*.safetensors", "*.safetensors.index.json", "config.json", "README.md")  # of a repository


@contextmanager
def hub_errors(what: str, advice: str) -> Iterator[None]:
    """Context that converts errors of the Hub, its client and the network to `OpenUniError`."""
    try:
        yield
    except OpenUniError:
        raise
    except Exception as error:
        if not (is_remote_error(error) or isinstance(error, OSError)):
            raise
        reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise OpenUniError(f"{what} failed: {reason}. {advice}") from error


def download(name: str, revision: str | None, token: str | None) -> Path:
    """The local folder of a model repository, downloaded if needed. Raises `OpenUniError`."""
    from huggingface_hub import snapshot_download

    with hub_errors(f'download of "{name}"', "Check the name and the connection, or pass a folder."):
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=list(PATTERNS)))


def upload(folder: Path, name: str, revision: str | None, token: str | None, *, private: bool) -> str:
    """Upload a folder as one commit to a model repository, created if missing; return its URL.

    Raises `OpenUniError`.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with hub_errors(f'upload to "{name}"', "Log in with a token that has write access: hf auth login"):
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=folder, revision=revision, commit_message="Upload model by OpenUni"
        )
    return str(done.commit_url)
