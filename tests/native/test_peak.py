# SPDX-License-Identifier: Apache-2.0
"""The probe of the processor: plausible on every instruction set, clear about bad arguments."""

from __future__ import annotations

import pytest

from seqrec_fast import _C, native
from seqrec_fast.errors import InputError

ISAS = native.build_info()["isa_supported"]


@pytest.fixture
def restored_isa():
    before = native.build_info()["isa"]
    yield
    _C.use_isa(before)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_peak_is_plausible(isa: str, threads: int, restored_isa: None) -> None:
    _C.use_isa(isa)
    found = native.measure_peak(threads, buffer_bytes=1 << 20)
    # from a machine twenty times slower than any in use to one a hundred times faster
    assert 0.2 < found.gflops < 1e5
    assert 0.2 < found.gigabytes < 1e5


def test_buffer_may_be_tiny() -> None:
    assert native.measure_peak(1, buffer_bytes=1).gigabytes > 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="threads"):
        native.measure_peak(0)
    with pytest.raises(InputError, match="buffer_bytes"):
        native.measure_peak(1, buffer_bytes=0)
    with pytest.raises(InputError, match="buffer_bytes"):
        native.measure_peak(1, buffer_bytes=2**61)
