# SPDX-License-Identifier: Apache-2.0
"""A small log on disk and a bundle trained on it, made once for all tests of the command line."""

from __future__ import annotations

import pytest

from tests.cli.support import ITEMS, TINY, World, run, write_log


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    log, items, bundle = folder / "log.csv", folder / "items.csv", folder / "bundle"
    write_log(log)
    rows = [f'i{number},"Title, number {number}"' for number in range(ITEMS)]
    items.write_text("item_id,title\n" + "\n".join(rows) + "\n", encoding="utf-8")
    done = run("train", log, "--items", items, "--out", bundle, "--json", *TINY)
    assert done.code == 0, done.err
    return World(log, items, bundle, done.out)
