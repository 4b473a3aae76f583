# SPDX-License-Identifier: Apache-2.0
"""Pictures as PNG, drawn by matplotlib where it is installed, without its global state."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from seqrec_fast.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure", "png"]


def new_figure(what: str, width: float, height: float) -> Figure:
    """An empty figure of so many inches.

    Args:
        what: names the picture in the message.
        width: in inches.
        height: in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            f"matplotlib is not installed, {what} needs it; pip install 'seqrec-fast[train]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
