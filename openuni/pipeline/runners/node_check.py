"""What a node of a cluster lacks for a run: another openuni, a corpus it cannot see, missing checkpoints."""

import hashlib
import os
import platform
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import openuni
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.component import Component
from openuni.manifests.corpus.layout import CORPUS_RECORD
from openuni.manifests.errors import OpenUniError
from openuni.manifests.storage.store import Store
from openuni.manifests.video.source_file import BYTE_RANGE

ANSWER_TIMEOUT_S = 120.0  # of one node: it imports openuni and the operators, from a cold disk


class NodeRequest(NamedTuple):
    """What every node must have."""

    code: str  # `code_version()` of the driver
    folder: str  # the driver's current folder, where relative paths start
    checkpoints: tuple[tuple[str, Checkpoint], ...]  # with the names of the components that open them
    gpu_memory: bool  # whether to report it: that takes the import of torch
    files: tuple[str, ...]  # of the driver's file system: a sample of the sources
    corpus: str = ""  # URL; empty: there is none yet
    corpus_file: str = ""  # a file of the corpus
    corpus_digest: str = ""  # its SHA-256, as the driver reads it


class NodeReport(NamedTuple):
    """What one node answered."""

    name: str  # host name
    python: str
    version: str  # of openuni
    gpu_memory_gb: tuple[float, ...]  # per GPU
    problems: tuple[str, ...]  # why it cannot take part


@cache
def code_version() -> str:
    """The version of openuni and 12 hex digits over its source files."""
    digest = hashlib.sha256()
    root = Path(openuni.__file__).parent
    for path in sorted(_python_files(root)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{openuni.__version__} ({digest.hexdigest()[:12]})"


def check_node(request: NodeRequest) -> NodeReport:
    """Run on the node itself."""
    if Path(request.folder).is_dir():
        os.chdir(request.folder)
    problems = list(_problems(request))
    memory_gb = gpu_memory_gb() if request.gpu_memory else ()
    return NodeReport(platform.node(), platform.python_version(), code_version(), memory_gb, tuple(problems))


def node_request(components: Sequence[Component], sources: Sequence[str] = (), corpus: str = "") -> NodeRequest:
    """The request of a run in this process.

    `sources`: as given or as recorded; the first and the last local one are looked for. `corpus`: URL, if there is one.
    """
    local = [BYTE_RANGE.sub("", name) for name in sources if "://" not in name]
    sample = tuple(dict.fromkeys(str(Path(name).absolute()) for name in (*local[:1], *local[-1:])))
    file, digest = _corpus_probe(corpus)
    return NodeRequest(
        code=code_version(),
        folder=str(Path.cwd()),
        checkpoints=checkpoints_of(components),
        gpu_memory=any(component.gpus for component in components),
        files=sample,
        corpus=corpus,
        corpus_file=file,
        corpus_digest=digest,
    )


def checkpoints_of(components: Sequence[Component]) -> tuple[tuple[str, Checkpoint], ...]:
    """The checkpoints of components, with the component's name."""
    return tuple((component.name(), checkpoint) for component in components for checkpoint in component.checkpoints())


def _problems(request: NodeRequest) -> Iterator[str]:
    if code_version() != request.code:
        yield f"has openuni {code_version()}, the driver has {request.code}. Install the same version on all nodes"
    yield from _corpus_problems(request)
    for file in request.files:
        if not Path(file).exists():
            yield f"cannot see {file}. Mount the footage there under the same path, or give it by s3:// URLs"
    for name, checkpoint in request.checkpoints:
        try:
            checkpoint.resolve()
        except OpenUniError as error:
            yield f"{name}: {error}"


def _corpus_problems(request: NodeRequest) -> Iterator[str]:
    if not request.corpus_file:
        return
    try:
        digest = hashlib.sha256(Store(request.corpus).read(request.corpus_file)).hexdigest()
    except (OSError, OpenUniError):
        yield f"cannot read {request.corpus}. Mount it there under the same path, or use a corpus on s3://"
    else:
        if digest != request.corpus_digest:
            yield f"has another corpus at {request.corpus}. Mount the same file system on all nodes"


def _corpus_probe(corpus: str) -> tuple[str, str]:
    store = Store(corpus) if corpus else None
    if store is None or not store.exists(CORPUS_RECORD):
        return "", ""
    return CORPUS_RECORD, hashlib.sha256(store.read(CORPUS_RECORD)).hexdigest()


def _python_files(root: Path) -> list[Path]:
    # the rooms of the project beside this package are links in a checkout
    found: list[Path] = []
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return found


def gpu_memory_gb() -> tuple[float, ...]:
    """Memory of each GPU of this machine, 10^9 bytes."""
    import torch

    count = torch.cuda.device_count()
    return tuple(round(torch.cuda.get_device_properties(index).total_memory / 1e9, 1) for index in range(count))
