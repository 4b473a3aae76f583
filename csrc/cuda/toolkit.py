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
from functools import cache
from pathlib import Path

CUDA = Path(__file__).resolve().parent
CSRC = CUDA.parent

#: Ampere (A100, RTX 30), Hopper, Blackwell (B200, RTX 50); PTX of the last runs on what comes later
ARCHITECTURES = ("80", "86", "90", "100", "120")
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden")


class Toolkit:
    """A folder with ``bin/nvcc``, the headers and the static runtime."""

    def __init__(self, nvcc: Path) -> None:
        self.nvcc = nvcc

    @property
    def home(self) -> Path:
        """Where the headers are: what nvcc itself says, as a wrapper may stand on the path."""
        words = run([str(self.nvcc), "-dryrun", "-c", "-x", "cu", "-"], check=False)
        found = re.search(r"^#\$ TOP=(.*)$", words, re.MULTILINE)
        return Path(found.group(1)).resolve() if found else self.nvcc.resolve().parent.parent

    def version(self) -> str:
        """For instance ``13.0``."""
        found = re.search(r"release (\d+\.\d+)", run([str(self.nvcc), "--version"]))
        return found.group(1) if found else "unknown"

    def architectures(self) -> list[str]:
        """Those of this project that this nvcc knows; ``SEQREC_FAST_CUDA_ARCHS`` narrows them."""
        wanted = os.environ.get("SEQREC_FAST_CUDA_ARCHS", "").replace(",", " ").split()
        chosen = [name.removeprefix("sm_") for name in wanted] or list(ARCHITECTURES)
        known = set(re.findall(r"compute_(\d+)", run([str(self.nvcc), "--list-gpu-arch"])))
        unknown = [name for name in chosen if name not in known]
        if wanted and unknown:
            raise SystemExit(
                f"SEQREC_FAST_CUDA_ARCHS: nvcc {self.version()} does not know "
                f"{', '.join(unknown)}; it knows {', '.join(sorted(known, key=int))}"
            )
        return [name for name in chosen if name in known]

    def include(self) -> Path:
        """The folder of ``cuda_runtime_api.h``."""
        return self._folder("cuda_runtime_api.h", "include", "targets/x86_64-linux/include")

    def library(self) -> Path:
        """The folder of the static runtime."""
        places = ("lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib")
        return self._folder("libcudart_static.a", *places)

    def _folder(self, file: str, *places: str) -> Path:
        for place in places:
            if (self.home / place / file).is_file():
                return self.home / place
        raise SystemExit(f"the CUDA toolkit in {self.home} has no {file}; install it whole")

    def object_command(self, source: str, target: str, architectures: list[str]) -> list[str]:
        """Compiles one file for all architectures, and to PTX of the newest."""
        code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
        code.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
        made = ["-MD", "-MF", os.path.splitext(target)[0] + ".d", "-c", source, "-o", target]
        return [str(self.nvcc), *FLAGS, *code, f"-I{CSRC}", *made]

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
def find() -> Toolkit | None:
    """By ``CUDA_HOME``, on the path, or what pip installed; None where there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        nvcc = Path(home) / "bin" / "nvcc"
        if not nvcc.is_file():
            raise SystemExit(f"CUDA_HOME: there is no {nvcc}; correct the variable or unset it")
        return Toolkit(nvcc)
    on_path = shutil.which("nvcc")
    if on_path is not None:
        return Toolkit(Path(on_path))
    for folder in sys.path:
        for nvcc in sorted(Path(folder or ".").glob("nvidia/cu*/bin/nvcc"), reverse=True):
            return Toolkit(nvcc)
    return None


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
    toolkit = find()
    if toolkit is None or len(sys.argv) != 4:
        raise SystemExit(__doc__ if toolkit is not None else "no nvcc was found")
    sys.stdout.write(toolkit.compile(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
