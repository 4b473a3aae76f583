# SPDX-License-Identifier: Apache-2.0
"""Running the app under uvicorn, and stopping without losing a request.

On SIGTERM or SIGINT the server first tells that it is not ready and closes each connection with its
next answer, while it goes on serving: whoever sends traffic has time to notice. After that grace no
connection is taken any more, what is under way is answered, and the process ends with code 0. A
second signal ends the grace. SIGHUP loads the bundle again.
"""

from __future__ import annotations

import asyncio
import copy
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from seqrec_fast.errors import InputError
from seqrec_fast.serving.service import Service

__all__ = ["serve"]


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, service: Service, grace: float, started: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service, self._grace, self._announce = service, grace, started
        self._running: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._running = asyncio.get_running_loop()
        await super().startup(sockets)
        if hasattr(signal, "SIGHUP"):
            self._running.add_signal_handler(signal.SIGHUP, self._service.reload_soon)
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # The signal is not noted for raising it again: stopping as asked is success.
        if self._running is None or self._service.draining:
            self.should_exit = True
        else:
            self._running.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        self._service.draining = True
        assert self._running is not None
        self._running.call_later(self._grace, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def serve(
    app: Any,
    *,
    host: str,
    port: int,
    grace: float,
    log_level: str,
    started: Callable[[str], None],
) -> None:
    """Serves until a signal.

    Args:
        app: from :func:`~seqrec_fast.serving.app.create_app`.
        host: address to listen at.
        port: port to listen at; 0 takes a free one.
        grace: seconds between the signal and the end of listening.
        log_level: of uvicorn; at ``debug`` every request is logged.
        started: is told the address once requests are taken.

    Raises:
        InputError: the address cannot be had.
    """
    listener = _listen(host, port)
    bound = listener.getsockname()
    shown = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    config = uvicorn.Config(
        app,
        log_level=log_level,
        log_config=_log_config(),
        access_log=log_level in ("debug", "trace"),
        lifespan="on",
        ws="none",
        server_header=False,
        proxy_headers=False,  # nothing here asks where a request came from
    )
    server = _Server(
        config, app.state.service, grace, lambda: started(f"http://{shown}:{bound[1]}")
    )
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()


def _log_config() -> dict[str, Any]:
    """That of uvicorn, with the log of requests on standard error beside all others.

    Standard output belongs to the address alone, which a program may read from there.
    """
    config = copy.deepcopy(LOGGING_CONFIG)
    config["handlers"]["access"]["stream"] = "ext://sys.stderr"
    return config


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"port: {host}:{port} cannot be listened at, {reason.lower()}; give another"
        ) from None
