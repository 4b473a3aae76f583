# SPDX-License-Identifier: Apache-2.0
"""Finds a CUDA toolkit and compiles the kernels with it; for setup.py and for the tests.

By hand, one file for one architecture to a cubin, with its registers and spills on the way:
``python csrc/cuda/toolkit.py csrc/cuda/embedding.cu sm_90 embedding.cubin``
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache, cached_property
from pathlib import Path

CUDA = Path(__file__).resolve().parent
CSRC = CUDA.parent

#: Ampere (A100, RTX 30), Hopper, Blackwell (B200, RTX 50); PTX of the last runs on what comes later
ARCHITECTURES = ("80", "86", "90", "100", "120")
#: of nvcc: the first that knows all of ARCHITECTURES
LEAST_VERSION = (12, 8)
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden")

# where the parts of a toolkit are: its own layout, that of pip's wheels, that of cross compilers
TARGETS = ("targets/x86_64-linux", "targets/sbsa-linux")
NOT_FOUND = "no nvcc was found (CUDA_HOME, PATH, pip's wheels)"


class Toolkit:
    """A folder with ``bin/nvcc``, the headers and the static runtime."""

    def __init__(self, nvcc: Path) -> None:
        self.nvcc = nvcc

    @cached_property
    def home(self) -> Path:
        """Where the headers are: what nvcc itself says, as a wrapper may stand on the path."""
        words = run([str(self.nvcc), "-dryrun", "-c", "-x", "cu", "-"], check=False)
        found = re.search(r"^#\$ TOP=(.*)$", words, re.MULTILINE)
        return Path(found.group(1)).resolve() if found else self.nvcc.resolve().parent.parent

    def version(self) -> str:
        """For instance ``13.0``; ``unknown`` where nvcc does not say it."""
        found = re.search(r"release (\d+\.\d+)", self._told)
        return found.group(1) if found else "unknown"

    @cached_property
    def _told(self) -> str:
        try:
            return run([str(self.nvcc), "--version"], check=False)
        except OSError as error:
            return str(error)

    def why_not(self) -> str:
        """Why it cannot compile the kernels; empty where it can."""
        version = self.version()
        if version == "unknown":
            said = self._told.strip().splitlines() or ["nothing"]
            return f"{self.nvcc} does not work: asked for its version it says: {said[-1]}"
        if tuple(int(part) for part in version.split(".")) < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            return (
                f"nvcc {version} ({self.nvcc}) is too old: the kernels need {least} or newer, the "
                f"first that compiles for sm_{ARCHITECTURES[-1]}"
            )
        return ""

    def architectures(self) -> list[str]:
        """Those of this project; ``SEQREC_FAST_CUDA_ARCHS`` names others. The oldest first."""
        known = set(re.findall(r"compute_(\d+)", run([str(self.nvcc), "--list-gpu-arch"])))
        words = re.split(r"[\s,;]+", os.environ.get("SEQREC_FAST_CUDA_ARCHS", ""))
        wanted = {word.removeprefix("sm_") for word in words if word}
        if not wanted:
            return [name for name in ARCHITECTURES if name in known]
        least = int(ARCHITECTURES[0])
        usable = sorted((name for name in known if int(name) >= least), key=int)
        if unusable := sorted(wanted.difference(usable)):
            raise SystemExit(
                f"SEQREC_FAST_CUDA_ARCHS: nvcc {self.version()} cannot compile the kernels for "
                f"{', '.join(unusable)}; they need sm_{least} or newer: choose among "
                f"{', '.join(usable)}"
            )
        return sorted(wanted, key=int)

    def include(self) -> Path:
        """The folder of ``cuda_runtime_api.h``."""
        return self._folder("cuda_runtime_api.h", "include", *(f"{t}/include" for t in TARGETS))

    def library(self) -> Path:
        """The folder of the static runtime."""
        places = ("lib64", "lib", *(f"{target}/lib" for target in TARGETS))
        return self._folder("libcudart_static.a", *places)

    def _folder(self, file: str, *places: str) -> Path:
        for place in places:
            if (self.home / place / file).is_file():
                return self.home / place
        raise SystemExit(f"the CUDA toolkit in {self.home} has no {file}; install it whole")

    def object_command(
        self, source: str, target: str, architectures: list[str], threads: int = 1
    ) -> list[str]:
        """Compiles one file for all architectures, and to PTX of the newest."""
        code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        code.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
        made = ["-MD", "-MF", os.path.splitext(target)[0] + ".d", "-c", source, "-o", target]
        side_by_side = [f"--threads={threads}"] if threads > 1 else []
        return [str(self.nvcc), *FLAGS, *code, *side_by_side, f"-I{CSRC}", *made]

    def compile(self, source: Path, architecture: str, target: Path) -> str:
        """One file for one architecture (``sm_90``); what ptxas says of registers and spills.

        ``target`` ends in ``.cubin`` or ``.ptx`` and says what is made.
        """
        name = architecture.removeprefix("sm_")
        kind = target.suffix.removeprefix(".")
        code = f"compute_{name}" if kind == "ptx" else f"sm_{name}"
        command = [str(self.nvcc), *FLAGS, f"-gencode=arch=compute_{name},code={code}"]
        verbose = [] if kind == "ptx" else ["-Xptxas=-v"]
        made = [f"-{kind}", *verbose, f"-I{CSRC}", str(source), "-o", str(target)]
        return run([*command, *made])


@cache
def search() -> tuple[Toolkit | None, str]:
    """By ``CUDA_HOME``, on the path, or what pip installed; or None, and why not."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(variable):
            nvcc = Path(home) / "bin" / "nvcc"
            if not nvcc.is_file():
                return None, f"{variable}: there is no {nvcc}; correct the variable or unset it"
            break
    else:
        on_path = shutil.which("nvcc")
        places = [Path(on_path)] if on_path is not None else from_wheels()
        if not places:
            return None, NOT_FOUND
        nvcc = places[0]
    reason = Toolkit(nvcc).why_not()
    return (None, reason) if reason else (Toolkit(nvcc), "")


def find() -> Toolkit | None:
    """As :func:`search`, without the reason."""
    return search()[0]


def from_wheels() -> list[Path]:
    """The compilers that pip installed in this environment, the newest first."""
    folders = [Path(folder or ".") for folder in sys.path]
    return [p for f in folders for p in sorted(f.glob("nvidia/cu*/bin/nvcc"), reverse=True)]


def units() -> list[Path]:
    """The files with kernels."""
    return sorted(CUDA.glob("*.cu"))


def bindings() -> list[Path]:
    """The files of the Python module."""
    return sorted((CUDA / "binding").glob("*.cpp"))


def macros(module: str, version: str, architectures: list[str]) -> list[tuple[str, str]]:
    """What the files of the Python module are told."""
    operations = [path.stem for path in bindings() if path.stem != "module"]
    return [
        ("SEQREC_CUDA_MODULE", module),
        ("SEQREC_VERSION", f'"{version}"'),
        ("SEQREC_CUDA_ARCHS", '"' + " ".join(f"sm_{name}" for name in architectures) + '"'),
        ("SEQREC_CUDA_OPERATIONS(DO)", " ".join(f"DO({name})" for name in operations)),
    ]


def run(command: list[str], *, check: bool = True) -> str:
    """What a command writes; an error with all of it where it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-6000:]}")
    return done.stdout


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    chosen, missing = search()
    if chosen is None:
        raise SystemExit(missing)
    sys.stdout.write(chosen.compile(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
