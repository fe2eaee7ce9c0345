"""The environment of a measurement: machine and package versions."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "diffusers", "opencv-python-headless", "av", "ray", "pyarrow", "duckdb", "numpy")


def machine_info() -> dict[str, Any]:
    """Processor, number of cores available to this process, memory, GPUs, operating system and load average."""
    import torch

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": round(_memory_bytes() / 1e9, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.machine()}",
        # of the last minute; above the number of cores, other processes were running
        "load_average": round(os.getloadavg()[0], 1),
    }


def package_versions() -> dict[str, str]:
    """Versions of openuni, Python and the main dependencies, by package name."""
    import openuni

    found = {"openuni": openuni.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # for example, OpenCV from another wheel
            found[name] = "not installed"
    return found


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
