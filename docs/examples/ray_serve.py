# SPDX-License-Identifier: Apache-2.0
"""A bundle as a Ray Serve application.

``serve run ray_serve:build bundle=/path/to/bundle`` starts it; then

    curl localhost:8000/ -d '{"history": ["318", "296"], "k": 5}'

Other deployments ask by handle, without HTTP: ``await handle.recommend.remote(["318"], k=5)``.
Each replica groups its own requests, so that Ray's batching is not needed.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import JSONResponse

from seqrec_fast import InputError, Recommender
from seqrec_fast.serving import AsyncRecommender, DeadlineExceeded, Overloaded


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Recommendations:
    """One replica: a recommender and its queue."""

    def __init__(self, bundle: str, threads: int = 1) -> None:
        """Loads the bundle; ``threads`` are the cores that one call may use."""
        self._engine = AsyncRecommender(Recommender.load(bundle, threads=threads), workers=1)

    async def recommend(
        self, history: list[Any], k: int = 10, deadline: float | None = None
    ) -> dict[str, Any]:
        """Items and scores for one history."""
        found = await self._engine.recommend(history, k, deadline=deadline)
        return {
            "items": found.items.tolist(),
            "scores": found.scores.tolist(),
            "unknown": list(found.unknown),
            "fallback": found.fallback,
        }

    async def __call__(self, request: Request) -> JSONResponse:
        """The same over HTTP."""
        try:
            body = await request.json()
            answer = await self.recommend(body["history"], body.get("k", 10))
        except (InputError, KeyError, TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 422)
        except Overloaded as error:
            return JSONResponse({"error": str(error)}, 503, {"retry-after": "1"})
        except DeadlineExceeded as error:
            return JSONResponse({"error": str(error)}, 504)
        return JSONResponse(answer)


def build(arguments: dict[str, str]) -> Application:
    """The application; ``arguments`` come from the command line or the configuration file."""
    threads = int(arguments.get("threads", "1"))
    application: Application = Recommendations.bind(arguments["bundle"], threads)
    return application
