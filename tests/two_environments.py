"""Two environments that have two versions of one package, for the tests of operators that run in them."""

from pathlib import Path

VERSIONS = {"old": "1.1.1", "new": "2.0.0"}


def write_requirements(folder: Path) -> tuple[str, str]:
    """Requirements files of an environment with an old, and of one with a new version of iniconfig."""
    for name, version in VERSIONS.items():
        (folder / f"{name}.txt").write_text(f"-r {name}-nested.txt\n")
        (folder / f"{name}-nested.txt").write_text(f"iniconfig=={version}\n")
    return str(folder / "old.txt"), str(folder / "new.txt")
