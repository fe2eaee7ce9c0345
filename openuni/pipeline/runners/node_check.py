"""What a node of a cluster has and lacks for a run: versions, corpus, checkpoints, disk, GPUs, decoders, clock."""

import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import openuni
from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.component import Component
from openuni.manifests.corpus.layout import CORPUS_RECORD
from openuni.manifests.corpus.writer import spool_dir
from openuni.manifests.errors import OpenUniError
from openuni.manifests.hosting.environment import ReadyEnvironment, check_on_this_node
from openuni.manifests.storage.store import Store
from openuni.manifests.video.source_file import BYTE_RANGE

CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4")
COMPARED_PACKAGES = ("av", "numpy", "opencv-python-headless", "pyarrow", "ray", "torch")
MIN_FREE_BYTES = 1024**3
MAX_CLOCK_S = 5.0  # difference to the driver's clock
ANSWER_TIMEOUT_S = 120.0  # of one node: it imports openuni and the operators, from a cold disk


class NodeRequest(NamedTuple):
    """What every node must have."""

    code: str  # `code_version()` of the driver
    folder: str  # the driver's current folder, where relative paths start
    checkpoints: tuple[tuple[str, Checkpoint], ...]  # with the names of the components that open them
    gpu_memory: bool  # whether to report GPUs: that takes the import of torch
    files: tuple[str, ...]  # of the driver's file system: a sample of the sources
    corpus: str = ""  # URL; empty: there is none yet
    corpus_file: str = ""  # a file of the corpus
    corpus_digest: str = ""  # its SHA-256, as the driver reads it
    out: str = ""  # URL or absolute path of the corpus, whether it exists or not; empty: do not look at disks
    environments: tuple[tuple[str, ReadyEnvironment], ...] = ()  # with the names of the operators that run in them


class NodeReport(NamedTuple):
    """What one node answered."""

    name: str  # host name
    python: str
    version: str  # of openuni
    gpu_memory_gb: tuple[float, ...]  # per GPU, 10^9 bytes
    problems: tuple[str, ...]  # why it cannot take part
    gpu_names: tuple[str, ...] = ()
    versions: Mapping[str, str] = {}  # of `COMPARED_PACKAGES`, and "ffmpeg": of the libraries in PyAV
    missing_codecs: tuple[str, ...] = ()  # of `CODECS`
    corpus_free_bytes: int | None = None  # on the disk of the corpus; None: an object store
    spool_free_bytes: int | None = None  # on the disk where parts of an object store are written first
    clock_s: float | None = None  # at least so far ahead of the driver (behind: negative); None: not asked


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
    corpus_free, spool_free = _free_bytes(request.out)
    for where, free in (("the corpus", corpus_free), ("the spool of the corpus (OPENUNI_SPOOL)", spool_free)):
        if free is not None and free < MIN_FREE_BYTES:
            problems.append(f"has {free / 1024**3:.1f} GiB free for {where}; 1 GiB is required. Free some space there")
    return NodeReport(
        name=platform.node(),
        python=platform.python_version(),
        version=code_version(),
        gpu_memory_gb=gpu_memory_gb() if request.gpu_memory else (),
        problems=tuple(problems),
        gpu_names=_gpu_names() if request.gpu_memory else (),
        versions=installed_versions(),
        missing_codecs=missing_codecs(),
        corpus_free_bytes=corpus_free,
        spool_free_bytes=spool_free,
    )


def differences(report: NodeReport, python: str, versions: Mapping[str, str]) -> list[str]:
    """Where a node differs from the driver so that results could: versions, decoders, the clock."""
    found = [f"Python {report.python}, the driver has {python}"] if report.python != python else []
    found += [
        f"{name} {report.versions[name]}, the driver has {version}"
        for name, version in versions.items()
        if report.versions.get(name, version) != version
    ]
    if report.missing_codecs:
        found.append(f"no decoder for {', '.join(report.missing_codecs)}")
    if report.clock_s is not None and abs(report.clock_s) > MAX_CLOCK_S:
        way = "ahead of" if report.clock_s > 0 else "behind"
        found.append(
            f"its clock is {abs(report.clock_s):.0f} s {way} the driver's (at most {MAX_CLOCK_S:.0f} s): synchronize it"
        )
    return found


def installed_versions() -> dict[str, str]:
    """Versions of the packages whose results could differ, and of the FFmpeg in PyAV."""
    import av

    found = {}
    for name in COMPARED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    return found | {"ffmpeg": str(av.ffmpeg_version_info)}


def missing_codecs() -> tuple[str, ...]:
    """Those of `CODECS` that this machine cannot decode."""
    import av

    return tuple(name for name in CODECS if name not in av.codecs_available)


def read_clock() -> float:
    """Seconds since the epoch. Run on the node itself."""
    return time.time()


def clock_difference(node_s: float, asked_s: float, answered_s: float) -> float:
    """How far a node's clock is ahead of the driver's at least, seconds; negative: behind; 0: within the time it took.

    `node_s`: what the node's clock said between `asked_s` and `answered_s` of the driver's.
    """
    return max(node_s - answered_s, 0.0) + min(node_s - asked_s, 0.0)


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
        out=corpus if "://" in corpus or not corpus else str(Path(corpus).absolute()),
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
    for name, environment in request.environments:
        try:
            check_on_this_node(environment)
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


def _free_bytes(out: str) -> tuple[int | None, int | None]:
    """Free bytes for the corpus and, if it is on an object store, for its spool."""
    if not out:
        return None, None
    store = Store(out)
    return (store.free_bytes(), None) if store.is_local else (None, Store(str(spool_dir(store))).free_bytes())


def _gpu_names() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def gpu_memory_gb() -> tuple[float, ...]:
    """Memory of each GPU of this machine, 10^9 bytes."""
    import torch

    count = torch.cuda.device_count()
    return tuple(round(torch.cuda.get_device_properties(index).total_memory / 1e9, 1) for index in range(count))
