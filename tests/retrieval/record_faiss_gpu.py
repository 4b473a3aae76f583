# SPDX-License-Identifier: Apache-2.0
"""Prints as JSON what a faiss built for GPUs offers of what the code uses; needs no GPU.

Run it with a Python that has such a build, and put what it prints into ``faiss_gpu_names.json``
under ``builds``, by the name that it gives as ``build``.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import faiss

DIM = 16


def attributes(made: Any, wanted: tuple[str, ...]) -> list[str]:
    return [name for name in wanted if hasattr(made, name)]


def outcome(make: Any) -> str:
    try:
        make()
    except RuntimeError as error:
        return "no GPU" if "getNumDevices" in str(error) else f"RuntimeError: {error}"
    except Exception as error:
        return type(error).__name__
    return "made"


def main() -> None:
    path = Path(__file__).with_name("fake_faiss_gpu.py")
    spec = importlib.util.spec_from_file_location("fake_faiss_gpu", path)
    assert spec is not None
    assert spec.loader is not None
    stand_in = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    names = [
        f"{one.metadata['Name']} {one.version}"
        for one in metadata.distributions()
        if (one.metadata["Name"] or "").lower().startswith("faiss")
    ]
    resources = faiss.StandardGpuResources()
    metric = faiss.METRIC_INNER_PRODUCT

    def index(name: str, *before: int) -> Any:
        config = name.replace("FlatIP", "Flat") + "Config"
        return lambda: getattr(faiss, name)(resources, DIM, *before, getattr(faiss, config)())

    makers: dict[str, Any] = {
        "StandardGpuResources": faiss.StandardGpuResources,
        "GpuIndexFlatIP": index("GpuIndexFlatIP"),
        "GpuIndexIVFFlat": index("GpuIndexIVFFlat", 4, metric),
        "GpuIndexIVFPQ": index("GpuIndexIVFPQ", 4, 8, 8, metric),
        "GpuIndexCagra": index("GpuIndexCagra", metric),
        "SearchParametersCagra": lambda: faiss.SearchParametersCagra(itopk_size=64),
    }
    found: dict[str, Any] = {
        "build": " and ".join(sorted(names)),
        "gpus": faiss.get_num_gpus(),
        "attributes": {},
        "constructor": {},
        "functions": [name for name in stand_in.FUNCTIONS if hasattr(faiss, name)],
    }
    for name, wanted in stand_in.ATTRIBUTES.items():
        if hasattr(faiss, name):
            # fields of a config can be seen on an object, those of an index on its class
            source = getattr(faiss, name)
            found["attributes"][name] = attributes(source, wanted)
            found["constructor"][name] = outcome(makers.get(name, source))
    found["refuses"] = {
        "too many arguments": outcome(
            lambda: faiss.GpuIndexFlatIP(resources, DIM, DIM, faiss.GpuIndexFlatConfig())
        ),
        "no GPU": "RuntimeError" if outcome(makers["GpuIndexFlatIP"]) == "no GPU" else "a GPU",
    }
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
