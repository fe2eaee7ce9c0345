"""Files with weights: found on this machine, or reported missing with the command for it. Never fetched silently."""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from manifests.errors import MissingPart


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights: a path, or a name whose file lies in its library's cache.

    `ref`: what the user wrote. `store`: "path" for a file or folder; "hub" for a Hugging Face repository that a
    previous `hf download` put into the cache; "torchvision" for a file name of torchvision's weights in torch's cache.
    """

    ref: str
    store: Literal["path", "hub", "torchvision"]
    licence: str = ""
    url: str = ""  # where a "torchvision" file comes from

    def resolve(self) -> Path:
        """The file or folder on this machine; raises `MissingPart` with the exact command that gets it."""
        found = {"path": self._at_path, "hub": self._in_hub_cache, "torchvision": self._in_torch_cache}[self.store]()
        if found is None:
            raise MissingPart(f'checkpoint "{self.ref}" is not on this machine. {self._how_to_get()}')
        return found

    def digest(self) -> str:
        """sha256 over the names and bytes of the files, so that other weights under the same name are noticed."""
        root = self.resolve()
        files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
        stamp = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        return _digest(str(root), stamp)

    def _at_path(self) -> Path | None:
        path = Path(self.ref).expanduser()
        return path if path.exists() else None

    def _in_hub_cache(self) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(self.ref, local_files_only=True))
        except LocalEntryNotFoundError:
            return None

    def _in_torch_cache(self) -> Path | None:
        path = _torch_cache() / self.ref
        return path if path.exists() else None

    def _how_to_get(self) -> str:
        if self.store == "path":
            return "Give the path of an existing file or folder."
        if self.store == "hub":
            return f"Get it with: hf download {self.ref}"
        return f"Get it with: curl --create-dirs -L {self.url} -o {_torch_cache() / self.ref}"


def hub_or_path(ref: str, licence: str = "") -> Checkpoint:
    """A checkpoint given as a local path (it exists, or looks like one) or as a Hugging Face name `owner/name`."""
    looks_like_path = Path(ref).expanduser().exists() or ref.startswith((".", "/", "~")) or ref.count("/") != 1
    return Checkpoint(ref, "path" if looks_like_path else "hub", licence)


def _torch_cache() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


@lru_cache(maxsize=64)
def _digest(root: str, stamp: tuple[tuple[str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, _, _ in stamp:
        total.update(Path(path).relative_to(root).as_posix().encode())
        with Path(path).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
