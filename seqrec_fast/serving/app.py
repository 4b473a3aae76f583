# SPDX-License-Identifier: Apache-2.0
"""The HTTP app: recommendations, live users, health, metrics, and a page to try it.

The endpoints with traffic are bare ASGI routes (:mod:`seqrec_fast.serving.endpoints`) that stand
first in the app's router; FastAPI does the rest and publishes one OpenAPI description of all.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from seqrec_fast import __version__
from seqrec_fast.engine.recommender import Recommender
from seqrec_fast.errors import InputError, MissingExtraError
from seqrec_fast.serving.limits import Limits

try:
    import orjson  # noqa: F401
    import prometheus_client  # noqa: F401
    from fastapi import FastAPI, Request
    from fastapi.openapi.utils import get_openapi
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.exceptions import HTTPException
    from starlette.routing import Route
except ImportError as error:
    raise MissingExtraError(
        f"serving over HTTP needs {error.name}; install it with: pip install 'seqrec-fast[serve]'"
    ) from error

from seqrec_fast.serving import endpoints, schema
from seqrec_fast.serving.metrics import CONTENT_TYPE_LATEST
from seqrec_fast.serving.service import Service

__all__ = ["create_app"]

# The page runs its own script and style, and nothing from anywhere else.
_POLICY = (
    "default-src 'none'; img-src data:; connect-src 'self'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)


class _App(FastAPI):
    """FastAPI whose traffic goes straight to its endpoints where nothing stands between.

    The layers of the framework (telemetry, errors, exit stack, router) cost a quarter of the time
    of a request. They are passed through as soon as there is a middleware of the caller's.
    """

    straight: dict[tuple[str, str], endpoints.Endpoint]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not self.user_middleware:
            endpoint = self.straight.get((scope["method"], scope["path"]))
            if endpoint is not None:
                await endpoint(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


def create_app(
    served: Recommender | str | os.PathLike[str],
    *,
    threads: int | None = None,
    window: float = 0.001,
    max_batch: int = 64,
    max_queue: int = 1024,
    workers: int = 2,
    limits: Limits | None = None,
    sessions: int | None = None,
    ttl: float | None = None,
    deadline: float | None = None,
    reload: bool = False,
    path: str | os.PathLike[str] | None = None,
) -> FastAPI:
    """Makes the app; its ``state.service`` is the :class:`~seqrec_fast.serving.service.Service`.

    Args:
        served: a recommender, or the folder of a bundle, which is then loaded after the start
            (``/readyz`` answers 503 meanwhile).
        threads: cores that one native call may use, where a folder is given.
        window: see :class:`~seqrec_fast.serving.AsyncRecommender`; likewise ``max_batch``,
            ``max_queue`` and ``workers``.
        max_batch: histories of one batch at most.
        max_queue: histories that may wait.
        workers: batches at work at once.
        limits: bounds of a request.
        sessions: number of live users whose state is kept, or None for no ``/users`` endpoints.
        ttl: seconds after which the state of a silent user is dropped.
        deadline: seconds in the queue after which a request that names no deadline is dropped.
        reload: offer ``POST /admin/reload``; let nobody from outside reach it.
        path: folder that a recommender was loaded from, to be read again on reload.

    Raises:
        InputError: an impossible option.
        MissingExtraError: a package of the extra ``serve`` is not installed.
    """
    if deadline is not None and not deadline > 0:
        raise InputError(f"deadline: must be seconds above 0, found {deadline!r}")
    batching: dict[str, Any] = {
        **{"window": window, "max_batch": max_batch, "max_queue": max_queue, "workers": workers}
    }
    limits = limits or Limits()
    service = Service(
        served,
        limits=limits,
        threads=threads,
        sessions=sessions,
        ttl=ttl,
        deadline=deadline,
        reload=reload,
        path=path,
        batching=batching,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = _App(
        title="seqrec-fast", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    routes = _routes(service)
    app.router.routes[:0] = routes
    app.straight = {
        (method, route.path): route.endpoint
        for route in routes
        for method in route.methods or ()
        if "{" not in route.path and isinstance(route.endpoint, endpoints.Endpoint)
    }
    _add_small_ones(app, service)
    app.add_exception_handler(HTTPException, _plain_error)

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            made["paths"] |= schema.paths(limits, sessions=sessions is not None, reload=reload)
            made.setdefault("components", {})["schemas"] = schema.components(limits)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]
    return app


def _routes(service: Service) -> list[Route]:
    found = [
        Route("/recommend", endpoints.Recommend(service), methods=["POST"]),
        Route("/similar", endpoints.Similar(service), methods=["POST"]),
    ]
    if service.keeps_sessions:
        user = "/users/{user}"
        found += [
            Route(f"{user}/events", endpoints.Events(service), methods=["POST"]),
            Route(f"{user}/recommendations", endpoints.UserRecommend(service), methods=["GET"]),
            Route(user, endpoints.Forget(service), methods=["DELETE"]),
        ]
    if service.may_reload:
        found.append(Route("/admin/reload", endpoints.Reload(service), methods=["POST"]))
    return found


def _add_small_ones(app: FastAPI, service: Service) -> None:
    """Health, metrics and the page."""
    page = files("seqrec_fast.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/healthz", summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/readyz", summary="Whether new traffic is welcome")
    async def readyz() -> JSONResponse:
        told = {"status": service.state, **service.about()}
        if service.failure is not None:
            told["error"] = service.failure
        return JSONResponse(told, status_code=200 if service.ready else 503)

    @app.get("/metrics", summary="Metrics in the text format of Prometheus")
    async def metrics() -> Response:
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    @app.get("/", include_in_schema=False)
    async def try_it() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": _POLICY})


async def _plain_error(_: Request, error: Exception) -> JSONResponse:
    """Unknown paths and methods in the form of all other errors."""
    assert isinstance(error, HTTPException)
    told = {"error": f"{error.detail}; GET /openapi.json lists what is served"}
    return JSONResponse(told, status_code=error.status_code, headers=error.headers)
