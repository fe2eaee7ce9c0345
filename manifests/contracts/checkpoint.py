"""Checkpoints: located locally, or reported missing with the command that downloads them. No implicit downloads."""

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from openuni.manifests.errors import MissingRequirement, OpenUniError

MIRROR_VARIABLE = "OPENUNI_CHECKPOINTS"
FULL_SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHT_SUFFIXES = (".safetensors", ".onnx", ".torchscript")  # suffixes of weight files in hub repositories
# licences without an SPDX identifier that allow commercial use and prohibit listed uses
USE_RESTRICTED = ("LICENSEREF-SAM-LICENSE", "LICENSEREF-SAPIENS2-LICENSE")
NON_COMMERCIAL = ("LICENSEREF-S-LAB-LICENSE-1.0",)
SHORT_SHA256 = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # part of torchvision's file names

LicenceTerms = Literal["permissive", "non-commercial", "copyleft", "use-restricted", "unclear"]


@dataclass(frozen=True)
class Checkpoint:
    """Pretrained weights, given by path or by a name that is looked up in a local cache.

    `ref`: the path or name as the user wrote it. `store`: "path" for a file or folder; "hub" for a Hugging Face
    repository in its library's cache; "torchvision" for a torchvision file in torch's cache; "url" for any other single
    file, in `checkpoint_dir()`. Names of the last three kinds are first looked up as REF in the folder that the
    environment variable OPENUNI_CHECKPOINTS names, which serves as a mirror for machines without network access.
    """

    ref: str
    store: Literal["path", "hub", "torchvision", "url"]
    licence: str = ""  # SPDX identifier if one exists; empty: unknown
    url: str = ""  # download URL of a "torchvision" or "url" file
    sha256: str = ""  # SHA-256 of the single weight file, all 64 digits or a prefix; empty: unknown before the download
    size_mb: float = 0.0  # size of the weight files, 10^6 bytes; 0: unknown before the download
    only: tuple[str, ...] = ()  # glob patterns of the required files in a "hub" repository or folder; empty: all
    gated: bool = False  # the owner requires agreement to terms before the download

    def resolve(self) -> Path:
        """The local file or folder. Raises `MissingRequirement` with the command that downloads it."""
        found = self.find()
        if found is None:
            raise MissingRequirement(f'checkpoint "{self.ref}" not found locally. {self._download_hint()}')
        return found

    def find(self) -> Path | None:
        """The local file or folder, or None if it is missing."""
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
        """Download target of a "torchvision" or "url" file."""
        return (_torch_cache() if self.store == "torchvision" else checkpoint_dir()) / self.ref

    def digest(self) -> str:
        """SHA-256 over names and contents of the files, which detects other weights under the same name.

        Raises `OpenUniError` if a file does not match its published digest.
        """
        root = self.resolve()
        total = hashlib.sha256()
        for path, found in zip(*self._files(root), strict=True):
            self._check_digest(path, found)
            total.update(path.relative_to(root).as_posix().encode())
            total.update(bytes.fromhex(found))
        return total.hexdigest()

    def verify(self) -> bool:
        """Check the files against their published digests; return whether any digest is known.

        Raises `OpenUniError` if a file does not match.
        """
        files, found = self._files(self.resolve())
        return any([self._check_digest(path, digest) for path, digest in zip(files, found, strict=True)])

    @property
    def expected_sha256(self) -> str:
        """SHA-256 digits known before the download: all 64, a prefix, or none."""
        if self.sha256 or self.store != "torchvision":
            return self.sha256
        short = SHORT_SHA256.search(self.ref)
        return short[1] if short else ""

    @property
    def nbytes(self) -> int:
        """Size of the local files, bytes."""
        root = self.resolve()
        return sum(path.stat().st_size for path in self._files_of(root))

    @property
    def terms(self) -> LicenceTerms:
        """Kind of the licence; "unclear" if the licence is unknown."""
        return terms_of(self.licence)

    @property
    def requires_acceptance(self) -> bool:
        """Whether the user must accept the licence before a download. Never for files given by path."""
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
        """Return whether a digest of the file is published. Raises `OpenUniError` if `found` differs from it."""
        expected = self._expected_digest(path)
        if expected and not found.startswith(expected):
            raise OpenUniError(
                f'checkpoint "{self.ref}": {path} has SHA-256 {found}, but its publisher states {expected}. The file '
                "is damaged or has other contents. Delete it, then download it with: "
                f"openuni checkpoints get {self.ref}"
            )
        return bool(expected)

    def _expected_digest(self, path: Path) -> str:
        is_config = self.store == "hub" and path.suffix not in WEIGHT_SUFFIXES
        if self.expected_sha256 and not is_config:
            return self.expected_sha256  # takes precedence over the digest that the hub sent with the file
        if path.is_symlink():  # the hub cache stores large files under their SHA-256 and links to them
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
        return found if all((found / name).exists() for name in names) else None  # else only other files

    def _download_hint(self) -> str:
        if self.store == "path":
            return "Give the path of an existing file or folder."
        return f"Download it with: openuni checkpoints get {self.ref}"


def hub_or_path(ref: str, licence: str = "") -> Checkpoint:
    """Checkpoint of a local path (existing, or written like a path) or of a Hugging Face name `owner/name`."""
    looks_like_path = Path(ref).expanduser().exists() or ref.startswith((".", "/", "~")) or ref.count("/") != 1
    return Checkpoint(ref, "path" if looks_like_path else "hub", licence)


def published_or_path(ref: str, published: tuple[Checkpoint, ...]) -> Checkpoint:
    """The published checkpoint of that name, with its licence and digest; otherwise as `hub_or_path`."""
    return next((known for known in published if known.ref == ref), None) or hub_or_path(ref)


def terms_of(licence: str) -> LicenceTerms:
    """Licence terms of an SPDX expression (one identifier, or several joined by "AND"); the strictest part decides."""
    name = licence.upper()
    if not name:
        return "unclear"
    parts = [part.strip() for part in name.split(" AND ")]
    if any(part in NON_COMMERCIAL for part in parts):
        return "non-commercial"
    if "-NC" in name or "NONCOMMERCIAL" in name or "NON-COMMERCIAL" in name or "RESEARCH" in name:
        return "non-commercial"
    if "GPL" in name or re.search(r"-SA\b", name):
        return "copyleft"
    if "RAIL" in name or any(part in USE_RESTRICTED for part in parts):  # commercial use is allowed, listed uses not
        return "use-restricted"
    permissive = ("APACHE-2.0", "MIT", "BSD-2-CLAUSE", "BSD-3-CLAUSE", "CC-BY-4.0", "CC0-1.0", "ISC", "UNLICENSE")
    return "permissive" if all(part in permissive for part in parts) else "unclear"


def checkpoint_dir() -> Path:
    """Folder of single-file checkpoints: the mirror named by OPENUNI_CHECKPOINTS, else a folder in the user's cache."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    return Path(mirror).expanduser() if mirror else Path.home() / ".cache" / "openuni" / "checkpoints"


def _torch_cache() -> Path:
    """The folder of `torch.hub`; torch, which takes seconds to import, is asked only if it is loaded."""
    if "torch" in sys.modules:
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints"
    caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.environ.get("TORCH_HOME", f"{caches}/torch")).expanduser() / "hub" / "checkpoints"


@lru_cache(maxsize=1024)
def _sha256(path: str, nbytes: int, mtime_ns: int) -> str:
    """SHA-256 of a file; cached until its size or modification time changes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
