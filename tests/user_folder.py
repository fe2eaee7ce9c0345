"""A user's folder full of names that ours could be mistaken for: whatever is imported from it leaves a mark."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import openuni

CHECKOUT = Path(openuni.__file__).resolve().parent.parent
SOURCE = ("openuni", "manifests", "annotators", "filters", "train", "src", "pyproject.toml", "README.md", "LICENSE")
BIN = Path(sys.executable).parent
LIBRARIES = ("numpy.py", "typer.py", "torch.py")

MARK = """
import os, traceback
with open({file!r}, "a") as mark:
    mark.write(f"pid {{os.getpid()}}\\n" + "".join(traceback.format_stack()))
"""
RECIPE = """
[work]
short_side_px = 32
[filters.luminance]
[annotators.dis]
preset = "ultrafast"
"""
EDGES = '''
"""A filter of the user's own."""

from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from openuni.manifests.contracts.decoded_clip import DecodedClip
from openuni.manifests.contracts.operator import Filter


class Scores(NamedTuple):
    """What it measures."""

    strength: Annotated[float, "mean step between neighbouring pixels"]


@dataclass(frozen=True)
class Edges(Filter):
    """Measures how many edges a clip has."""

    origin = "a user's lab"

    def run(self, model: Any, clip: DecodedClip) -> Scores:
        """Mean over all frames."""
        return Scores(float(abs(clip.frames[:, :, 1:].astype(float) - clip.frames[:, :, :-1]).mean()))
'''
# What a script, a notebook cell and a test of the user do.
USE = """
import openuni
import openuni.annotators, openuni.filters, openuni.manifests, openuni.training
from openuni.manifests.contracts.operator import Filter
from openuni.training.run import Run

for package in (openuni.annotators, openuni.filters, openuni.manifests, openuni.training):
    assert package.__file__.startswith(openuni.__path__[0]), package
corpus = openuni.run("corpus.toml", "raw/*.mp4", out="corpus/")
assert openuni.open_corpus("corpus/").summary().ok == corpus.summary().ok == 2
print("all of it works")
"""


@dataclass(frozen=True)
class UserFolder:
    """Lies at `path`; marks lie outside, in `marks_folder`."""

    path: Path
    marks_folder: Path

    @classmethod
    def make(cls, root: Path, clips: Path) -> "UserFolder":
        """With the user's own code, data and two clips, under names that we use too."""
        folder = cls(root / "work", root / "marks")
        for path in (folder.path, folder.marks_folder):
            path.mkdir(parents=True)
        folder.write("train.py", folder.mark("train.py") + "raise SystemExit(9)\n")
        for name in ("sitecustomize.py", "tensorflow.py"):
            folder.write(name, folder.mark(name))
        for name in ("filters", "manifests", "annotators"):
            folder.write(f"{name}/__init__.py", folder.mark(name))
        for name in ("train_data/clips.csv", "training/notes.txt", "training/run.json", "models/readme.txt"):
            folder.write(name, "{}")
        folder.write("lab/__init__.py", folder.mark("lab"))
        folder.write("lab/edges.py", EDGES)
        folder.write("corpus.toml", RECIPE)
        (folder.path / "raw").symlink_to(clips)
        return folder

    def mark(self, name: str) -> str:
        """Code that leaves the mark `name`, with the stack that led to it."""
        return MARK.format(file=str(self.marks_folder / name))

    def marks(self) -> dict[str, str]:
        """What was imported from the folder, and by whom."""
        return {path.name: path.read_text() for path in self.marks_folder.iterdir()}

    def shadow(self) -> None:
        """From here on the folder also holds modules with names of libraries that we need."""
        for name in LIBRARIES:
            self.write(name, self.mark(name) + "raise SystemExit(9)\n")

    def write(self, name: str, text: str) -> Path:
        """A file of the folder."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, *command: object, code: int = 0, cwd: Path | None = None, **environment: str) -> str:
        """Output and errors of a command that is run in the folder; it must end with this exit code."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
        settings = str(self.marks_folder.parent / "settings")  # of notebooks: none of the account that runs the tests
        kept |= dict.fromkeys(("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"), settings)
        words = [str(word) for word in command]
        done = subprocess.run(words, cwd=cwd or self.path, env=kept | environment, capture_output=True, text=True)
        assert done.returncode == code, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def openuni(self, *arguments: object, code: int = 0, **environment: str) -> str:
        """The same of the console script of the environment in which the tests run."""
        return self.run(BIN / "openuni", *arguments, code=code, **environment)


def bare_python(folder: Path) -> Path:
    """An interpreter that sees what openuni needs, and no openuni: the packages of ours are a plain folder on its path.

    Files with the suffix .pth, such as that of an editable install, count in an interpreter's own folder only.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = (folder / "lib").glob("python*/site-packages")
    needed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "needed.pth").write_text("\n".join(needed))
    return folder / "bin" / "python"


def entry_point_package(folder: Path, name: str, points: str, **modules: str) -> Path:
    """A folder that holds an installed package, modules and entry points, as an installer would leave it."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)
    for module, text in modules.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / f"{module}.py").write_text(text)
    return folder
