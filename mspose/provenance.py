"""Where results come from: versions, commit, machine, time."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("mspose", "torch", "torchvision", "numpy", "pandas", "timm")


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Collect versions, the commit of the code and whether it was changed since, machine, UTC time.

    device: the one that the results were computed on. `commit` and `dirty` are None where the
    package is not in a git repository; a package is None where it is not installed.
    """
    commit, dirty = _git_state(Path(__file__).resolve().parent)
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": commit,
        "dirty": dirty,
        "platform": platform.platform(),
        "device": device_name(torch.device(device)),
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(package: Path) -> tuple[str | None, bool | None]:
    """Read (commit, dirty) of the repository that tracks the package; (None, None) without one."""
    # inside a git hook GIT_DIR and the like name another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def commit_text(provenance: Mapping[str, Any]) -> str:
    """Format a provenance's commit: `0123456789ab`, `0123456789ab + changes` or `unknown`."""
    commit = str(provenance.get("commit") or "unknown")[:12]
    return f"{commit} + changes" if provenance.get("dirty") else commit


def device_name(device: torch.device) -> str:
    """Name of the GPU or processor, as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
