"""Files with weights: found on this machine, or reported missing with the command for it. Never fetched silently."""

import hashlib
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from openuni.manifests.errors import MissingRequirement, OpenUniError

MIRROR_VARIABLE = "OPENUNI_CHECKPOINTS"
FULL_SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".torchscript")  # endings of files in repositories that hold weights
SHORT_SHA256 = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # in the names that torchvision gives its files

LicenceTerms = Literal["permissive", "non-commercial", "copyleft", "use-restricted", "unclear"]


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights: a path, or a name whose file lies in its library's cache.

    `ref`: what the user wrote. `store`: "path" for a file or folder; "hub" for a Hugging Face repository in the cache
    of its library; "torchvision" for a file of torchvision's in torch's cache; "url" for any other single file, in the
    folder `checkpoint_folder()`. Names of the last three are first looked for in the folder that the environment
    variable OPENUNI_CHECKPOINTS names, as REF or REF/: a mirror for machines without a network.
    """

    ref: str
    store: Literal["path", "hub", "torchvision", "url"]
    licence: str = ""  # SPDX name where there is one; empty: not known
    url: str = ""  # where a "torchvision" or "url" file comes from
    sha256: str = ""  # of the one file with weights: all 64 digits, or the first ones; empty: not known beforehand
    size_mb: float = 0.0  # of the files with weights, 10^6 bytes; 0: not known before they are here
    only: tuple[str, ...] = ()  # of a "hub" repository or a folder: the files that are needed, as patterns; empty: all
    gated: bool = False  # its owner asks for agreement to terms before the download

    def resolve(self) -> Path:
        """The file or folder on this machine; raises `MissingRequirement` with the exact command that gets it."""
        found = self.find()
        if found is None:
            raise MissingRequirement(f'checkpoint "{self.ref}" is not on this machine. {self._download_hint()}')
        return found

    def find(self) -> Path | None:
        """The file or folder on this machine, None when it is not there."""
        if self.store == "path":
            path = Path(self.ref).expanduser()
            return path if path.exists() else None
        mirror = os.environ.get(MIRROR_VARIABLE)
        if mirror and (Path(mirror).expanduser() / self.ref).exists():
            return Path(mirror).expanduser() / self.ref
        if self.store == "hub":
            return self._in_hub_cache()
        path = self.download_path()
        return path if path.exists() else None

    def download_path(self) -> Path:
        """Where a "torchvision" or "url" file is put when it is fetched."""
        return (_torch_cache() if self.store == "torchvision" else checkpoint_dir()) / self.ref

    def digest(self) -> str:
        """sha256 over the names and bytes of the files, so that other weights under the same name are noticed.

        Raises `OpenUniError` when a file is not what its publisher says it is.
        """
        root = self.resolve()
        total = hashlib.sha256()
        for path, found in zip(*self._files(root), strict=True):
            self._check_digest(path, found)
            total.update(path.relative_to(root).as_posix().encode())
            total.update(bytes.fromhex(found))
        return total.hexdigest()

    def verify(self) -> bool:
        """Whether there was a digest to hold the files against; raises `OpenUniError` when one differs."""
        files, found = self._files(self.resolve())
        return any([self._check_digest(path, digest) for path, digest in zip(files, found, strict=True)])

    @property
    def expected_sha256(self) -> str:
        """Digits that are known before the file is here: all 64, the first ones, or none."""
        if self.sha256 or self.store != "torchvision":
            return self.sha256
        short = SHORT_SHA256.search(self.ref)
        return short[1] if short else ""

    @property
    def nbytes(self) -> int:
        """Size of the files that are here, bytes."""
        root = self.resolve()
        return sum(path.stat().st_size for path in self._files_of(root))

    @property
    def terms(self) -> LicenceTerms:
        """What kind of licence it is; "unclear" where none is known."""
        return terms_of(self.licence)

    @property
    def requires_acceptance(self) -> bool:
        """Whether the user must say that the licence fits. Files given by path are the user's own business."""
        return self.store != "path" and (self.gated or self.terms in ("non-commercial", "copyleft", "use-restricted"))

    def _files_of(self, root: Path) -> list[Path]:
        if not root.is_dir():
            return [root]
        files = sorted(path for path in root.rglob("*") if path.is_file())
        patterns = self.only or ("*",)
        return [path for path in files if any(path.relative_to(root).match(pattern) for pattern in patterns)]

    def _files(self, root: Path) -> tuple[list[Path], list[str]]:
        files = self._files_of(root)
        return files, [_sha256(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]

    def _check_digest(self, path: Path, found: str) -> bool:
        """Raise when `found` is not the digest that the publisher states; whether one is stated."""
        stated = self._expected_digest(path)
        if stated and not found.startswith(stated):
            raise OpenUniError(
                f'checkpoint "{self.ref}": {path} has sha256 {found}, its publisher states {stated}. It is damaged or '
                f"another file. Delete it, then get it again with: openuni checkpoints get {self.ref}"
            )
        return bool(stated)

    def _expected_digest(self, path: Path) -> str:
        beside = self.store == "hub" and path.suffix not in WEIGHT_SUFFIXES  # configuration
        if self.expected_sha256 and not beside:
            return self.expected_sha256  # before what the hub said when it sent the file
        if path.is_symlink():  # the hub's cache keeps large files under their sha256 and links to them
            blob = path.resolve().name
            return blob if FULL_SHA256.fullmatch(blob) else ""
        return ""

    def _in_hub_cache(self) -> Path | None:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            found = Path(snapshot_download(self.ref, allow_patterns=list(self.only) or None, local_files_only=True))
        except LocalEntryNotFoundError:
            return None
        names = [name for name in self.only if not set(name) & set("*?[")]
        return found if all((found / name).exists() for name in names) else None  # another part of it may be here

    def _download_hint(self) -> str:
        if self.store == "path":
            return "Give the path of an existing file or folder."
        return f"Get it with: openuni checkpoints get {self.ref}"


def hub_or_path(ref: str, licence: str = "") -> Checkpoint:
    """A checkpoint given as a local path (it exists, or looks like one) or as a Hugging Face name `owner/name`."""
    looks_like_path = Path(ref).expanduser().exists() or ref.startswith((".", "/", "~")) or ref.count("/") != 1
    return Checkpoint(ref, "path" if looks_like_path else "hub", licence)


def published_or_path(ref: str, published: tuple[Checkpoint, ...]) -> Checkpoint:
    """The published checkpoint of that name, with its facts; else as `hub_or_path`."""
    return next((known for known in published if known.ref == ref), None) or hub_or_path(ref)


def terms_of(licence: str) -> LicenceTerms:
    """What an SPDX name (or an "A AND B" of them) lets one do; the strictest part decides."""
    name = licence.upper()
    if not name:
        return "unclear"
    if "-NC" in name or "NONCOMMERCIAL" in name or "NON-COMMERCIAL" in name or "RESEARCH" in name:
        return "non-commercial"
    if "GPL" in name or "-SA" in name:
        return "copyleft"
    if "RAIL" in name:  # commercial use is allowed, a list of uses is not
        return "use-restricted"
    permissive = ("APACHE-2.0", "MIT", "BSD-2-CLAUSE", "BSD-3-CLAUSE", "CC-BY-4.0", "CC0-1.0", "ISC", "UNLICENSE")
    parts = [part.strip() for part in name.split(" AND ")]
    return "permissive" if all(part in permissive for part in parts) else "unclear"


def checkpoint_dir() -> Path:
    """Where single files are kept: the mirror that OPENUNI_CHECKPOINTS names, else a folder in the user's cache."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    return Path(mirror).expanduser() if mirror else Path.home() / ".cache" / "openuni" / "checkpoints"


def _torch_cache() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


@lru_cache(maxsize=1024)
def _sha256(path: str, nbytes: int, mtime_ns: int) -> str:
    """Of a file's bytes; read once as long as size and time of change stay."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
