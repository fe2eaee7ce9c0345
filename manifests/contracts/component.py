"""The component contract: a part of the system that is its options. Operators, codecs and models are components.

A component is one file in its package; the file's name is the component's name. It holds one frozen dataclass whose
fields are its options, with defaults and documented by `Annotated[type, "meaning, unit"]`, with bounds behind the
meaning (`openuni.manifests.contracts.options`). Nothing is registered.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, get_type_hints

from openuni.manifests.contracts.checkpoint import Checkpoint
from openuni.manifests.contracts.discovery import component_name
from openuni.manifests.contracts.options import check_options, option_text, recorded, strip_annotation


class Option(NamedTuple):
    """One option of a component, as `openuni show` prints it."""

    name: str
    type: Any
    default: Any
    doc: str  # its meaning, and its bounds


@dataclass(frozen=True)
class Component:
    """Base: frozen dataclasses that are hashable, picklable and hold no weights."""

    gpus: ClassVar[float] = 0.0  # share of a GPU that one worker wants; 0 for what runs on the CPU
    revision: ClassVar[int] = 1  # raised whenever the code's results change, so that corpora recompute
    licence: ClassVar[str] = "Apache-2.0"  # of the method's code and default weights
    origin: ClassVar[str] = ""  # paper or project that defines the method

    def __post_init__(self) -> None:
        """Options are checked when they are set. A subclass that checks more calls this first."""
        check_options(self, self.name())

    def load(self, device: str) -> Any:
        """Build what the work needs (weights on `device`, such as "cpu" or "cuda"), once per worker."""
        return None

    def gpus_per_worker(self) -> float:
        """GPUs of one worker with these options: a share of one, or a whole number. Default: `gpus`."""
        return self.gpus

    def packages(self) -> Sequence[str]:
        """Optional packages that `load` imports with these options, by the name of their extra of openuni.

        Preflight checks that they are installed before any worker starts.
        """
        return ()

    def checkpoints(self) -> Sequence[Checkpoint]:
        """The files with weights that `load` will open; preflight checks them before any worker starts."""
        return ()

    @classmethod
    def published(cls) -> Sequence[Checkpoint]:
        """All weights by name that this can use, with their facts: what `openuni checkpoints` lists."""
        return ()

    @classmethod
    def name(cls) -> str:
        """The file's name for our own components; the entry point's, else the dotted path, for other packages'."""
        return component_name(cls)

    @classmethod
    def options(cls) -> list[Option]:
        """All options with type, default and meaning, in the order of definition."""
        hints = get_type_hints(cls, include_extras=True)
        return [
            Option(
                field.name,
                strip_annotation(hints[field.name]),
                field.default,
                option_text(hints[field.name]),
            )
            for field in dataclasses.fields(cls)
        ]

    def version(self) -> str:
        """16 hex digits over name, code revision, options and the digests of the weights.

        Two runs with equal versions give equal results; a changed version means that results must be recomputed.
        """
        return fingerprint(
            name=self.name(),
            revision=self.revision,
            options=recorded(self, version=True),
            weights=[checkpoint.digest() for checkpoint in self.checkpoints()],
        )


def missing_package(package: str) -> str:
    """The message for an optional package that is not installed."""
    return f"the package {package} is not installed. Install it with: pip install 'openuni[{package}]'"


def fingerprint(**facts: Any) -> str:
    """16 hex digits over JSON-able facts; equal facts in any order of keys give equal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
