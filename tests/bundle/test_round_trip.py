# SPDX-License-Identifier: Apache-2.0
"""What is saved comes back, and what can't be saved is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from seqrec_fast import bundle as bundles
from seqrec_fast.bundle import Bundle
from seqrec_fast.data.items import ItemTable
from seqrec_fast.data.vocabulary import Vocabulary
from seqrec_fast.errors import BundleError, InputError


def assert_equal(left: Bundle, right: Bundle) -> None:
    assert left.config == right.config
    assert set(left.tensors) == set(right.tensors)
    for name, tensor in left.tensors.items():
        assert tensor.dtype == right.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensor, right.tensors[name])
    assert left.items == right.items
    assert right.popularity.dtype == np.int64
    np.testing.assert_array_equal(left.popularity, right.popularity)
    assert left.item_table == right.item_table
    assert left.metrics == right.metrics
    assert left.cleaning == right.cleaning
    assert left.training == right.training
    assert left.extra_files == right.extra_files


@pytest.mark.parametrize("verify", [True, False])
def test_all_contents_come_back(saved: Path, content: Bundle, verify: bool) -> None:
    assert_equal(content, bundles.load(saved, verify=verify))
    assert {path.name for path in saved.iterdir()} == {
        "manifest.json",
        "model.json",
        "weights.safetensors",
        "vocabulary.safetensors",
        "items.safetensors",
        "metrics.json",
        "cleaning.json",
        "training.json",
        "curve.png",
    }
    assert [path.name for path in saved.parent.iterdir()] == ["bundle"]


def test_integer_ids_no_table_no_extras_and_odd_shapes(tmp_path: Path, content: Bundle) -> None:
    small = Bundle(
        config={"model": "x", "num_items": 2},
        tensors={
            "scalar": np.array(2.5, np.float32),
            "empty": np.empty((0, 3), np.float32),
            "strided": np.arange(12, dtype=np.float32).reshape(3, 4).T,
        },
        items=Vocabulary.from_ids([7, -3]),
        popularity=np.array([1, 0], np.int32),
    )
    bundles.save(small, tmp_path / "b")
    loaded = bundles.load(tmp_path / "b")
    assert loaded.item_table is None
    assert loaded.extra_files == {}
    assert loaded.items.ids.tolist() == [7, -3]
    np.testing.assert_array_equal(loaded.tensors["strided"], small.tensors["strided"])
    assert loaded.tensors["scalar"].shape == ()
    assert loaded.tensors["empty"].shape == (0, 3)


def test_loaded_arrays_can_be_written_to(saved: Path) -> None:
    loaded = bundles.load(saved)
    loaded.tensors["item_embedding.weight"][0] = 1.0
    loaded.popularity[0] = 9


def test_the_safetensors_library_reads_our_files(saved: Path, content: Bundle) -> None:
    for name, tensor in load_file(saved / "weights.safetensors").items():
        np.testing.assert_array_equal(tensor, content.tensors[name])


def test_we_read_files_of_the_safetensors_library(saved: Path, content: Bundle) -> None:
    data = save(content.tensors, metadata={"made": "by the library"})
    (saved / "weights.safetensors").write_bytes(data)
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["weights.safetensors"]["size"] = len(data)
    (saved / "manifest.json").write_text(json.dumps(manifest))
    assert_equal(content, bundles.load(saved, verify=False))
    with pytest.raises(BundleError, match=r"manifest\.json: its checksum"):
        bundles.load(saved)


def test_info_describes_without_reading_the_weights(saved: Path, content: Bundle) -> None:
    found = bundles.info(saved)
    assert found["model"] == "gru"
    assert found["num_items"] == 30
    assert found["parameters"] == sum(t.size for t in content.tensors.values())
    assert found["metrics"] == content.metrics
    assert found["cleaning"] == content.cleaning
    assert found["training"] == content.training
    assert found["config"] == content.config
    assert found["format_version"] == 1
    assert found["files"]["curve.png"] == 260
    assert found["bytes"] == sum(found["files"].values())
    json.dumps(found)


def test_numpy_values_in_the_reports_become_plain_numbers(tmp_path: Path, content: Bundle) -> None:
    content.metrics = {"a": np.float32(0.5), "b": np.int64(3), "c": np.arange(3), "d": (1, 2)}
    bundles.save(content, tmp_path / "b")
    assert bundles.load(tmp_path / "b").metrics == {"a": 0.5, "b": 3, "c": [0, 1, 2], "d": [1, 2]}


def with_tensor(name: str, value: Any) -> dict[str, Any]:
    return {"tensors": {"item_embedding.weight": np.ones((30, 4), np.float32), name: value}}


NOT_SAVEABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"config": {"num_items": 30}}, "'model' must be"),
    "no items": ({"config": {"model": "gru"}}, "'num_items' must be"),
    "items true": ({"config": {"model": "gru", "num_items": True}}, "'num_items' must be"),
    "items too many": ({"config": {"model": "gru", "num_items": 2**40}}, "'num_items' must be"),
    "no weights": ({"tensors": {}}, "no weights"),
    "float64": (with_tensor("w", np.ones(3)), "'w' must be a float32 array, found float64"),
    "a list": (with_tensor("w", [1.0]), "'w' must be a float32 array, found list"),
    "NaN": (with_tensor("w", np.array([1, np.nan], np.float32)), "'w' holds nan at entry 1"),
    "infinite": (with_tensor("w", np.array([-np.inf], np.float32)), "'w' holds -inf at entry 0"),
    "rows": (with_tensor("output.weight", np.ones((29, 4), np.float32)), r"\(29, 4\).*30 items"),
    "vocabulary": ({"items": Vocabulary.from_ids(range(29))}, "29 ids, but .* 30 items"),
    "popularity shape": ({"popularity": np.ones(29, np.int64)}, "popularity must be"),
    "popularity type": ({"popularity": np.ones(30)}, "popularity must be int64"),
    "popularity sign": ({"popularity": np.arange(-1, 29)}, "popularity of item 0 is negative"),
    "table": ({"item_table": ItemTable({"t": ["x"]})}, "1 rows, but .* 30 items"),
    "NaN in JSON": ({"metrics": {"a": float("nan")}}, "metrics.json: the content can't be"),
    "object in JSON": ({"training": {"a": object()}}, "training.json.*object is not a JSON type"),
    "slash": ({"extra_files": {"a/b": b""}}, "'a/b' is not allowed"),
    "parent": ({"extra_files": {"..": b""}}, "'..' is not allowed"),
    "hidden": ({"extra_files": {".x": b""}}, "'.x' is not allowed"),
    "reserved": ({"extra_files": {"Manifest.json": b""}}, "belongs to the bundle itself"),
    "text": ({"extra_files": {"a.txt": "text"}}, "'a.txt' must be"),
}


@pytest.mark.parametrize("case", NOT_SAVEABLE)
def test_what_a_bundle_cannot_hold_is_refused(tmp_path: Path, content: Bundle, case: str) -> None:
    changes, message = NOT_SAVEABLE[case]
    with pytest.raises(InputError, match=message) as caught:
        bundles.save(dataclasses.replace(content, **changes), tmp_path / "b")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_deep_json_is_refused_when_saving(tmp_path: Path, content: Bundle) -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"a": deep}
    content.training = deep
    with pytest.raises(InputError, match=r"training\.json.*levels deep"):
        bundles.save(content, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_loading_needs_numpy_alone(saved: Path) -> None:
    code = """
        import sys
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {"torch", "duckdb", "pyarrow", "matplotlib", "tqdm"}:
                    raise ImportError(name + " is blocked")
        sys.meta_path.insert(0, Blocked())
        from seqrec_fast import bundle
        print(len(bundle.load(sys.argv[1]).items))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(saved)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(bundles.__file__).parents[2],
    )
    assert done.stdout.strip() == "30", done.stderr
