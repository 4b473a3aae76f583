# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI description of the endpoints that read their bodies by hand."""

from __future__ import annotations

from typing import Any

from seqrec_fast.serving.limits import Limits

__all__ = ["components", "paths"]

_ID = {"oneOf": [{"type": "string"}, {"type": "integer"}], "description": "raw id, as in the log"}
_OBJECT = {"type": "string", "contentMediaType": "application/json", "description": "as in Ask"}
_ERRORS = {
    "400": "the body is not JSON",
    "413": "the body is larger than the limit",
    "422": "a field cannot be used; the message names it and the remedy",
    "503": "overloaded, loading or draining; Retry-After says when to ask again",
    "504": "the deadline passed while the request waited",
}


def components(limits: Limits) -> dict[str, Any]:
    """Schemas of bodies and answers by name."""
    ids = {"type": "array", "items": _ID}
    k = {"type": "integer", "minimum": 1, "maximum": limits.k, "default": 10}
    history = {**ids, "maxItems": limits.history, "description": "oldest first"}
    option = {
        "titles": {"type": "boolean", "default": False, "description": "give titles as well"},
        "deadline_ms": {
            **{"type": "number", "exclusiveMinimum": 0},
            "description": "after so long in the queue the request is dropped (504)",
        },
    }
    filters = {**ids, "type": ["array", "null"], "maxItems": limits.ids}
    answer = {
        "items": {**ids, "description": "best first; fewer than k where fewer are left"},
        "scores": {"type": "array", "items": {"type": "number"}, "description": "descending"},
        "unknown": {**ids, "description": "ids of the history that the model does not know"},
        "unknown_filters": {**ids, "description": "ids of allow and deny that it does not know"},
        "fallback": {
            "enum": ["popularity", None],
            "description": "popularity where no id of the history is known",
        },
        "titles": {"type": "array", "items": {"type": ["string", "null"]}},
    }
    version = {"type": ["string", "null"], "description": "of the bundle that answered"}
    required = ["items", "scores", "unknown", "unknown_filters", "fallback"]
    return {
        "Ask": _object(
            {
                "history": {**history, "description": "of one user, oldest first"},
                "histories": {
                    **{"type": "array", "items": history, "minItems": 1},
                    **{"maxItems": limits.users, "description": "instead of history: many users"},
                },
                "k": k,
                "exclude_seen": {"type": "boolean", "default": True},
                "allow": {**filters, "description": "rank these items only"},
                "deny": {**filters, "description": "never these; wins over allow"},
                "where": {
                    **{"type": ["object", "null"], "additionalProperties": True},
                    "description": "conditions by column of the item table; all have to hold",
                },
                "limit": {
                    **{"type": ["object", "null"]},
                    "additionalProperties": {"type": "integer", "minimum": 1},
                    "description": "most items of each category, by column of the item table",
                },
                "diversity": {
                    **{"type": "number", "minimum": 0, "default": 0},
                    "description": "of models of several interests: what an item gains by being "
                    "found by an interest that the list has little of",
                },
                **option,
            },
            [],
        )
        | {"oneOf": [{"required": ["history"]}, {"required": ["histories"]}]},
        "AskSimilar": _object({"item": _ID, "k": k, **option}, ["item"]),
        "Events": _object({"item": _ID, "items": history}, [])
        | {"oneOf": [{"required": ["item"]}, {"required": ["items"]}]},
        "Recommendation": _object(answer, required),
        "Answer": _object({**answer, "version": version}, [*required, "version"]),
        "Answers": _object(
            {"results": {"type": "array", "items": _to("Recommendation")}, "version": version},
            ["results", "version"],
        ),
        "Error": _object({"error": {"type": "string"}}, ["error"]),
    }


def paths(limits: Limits, *, sessions: bool, reload: bool) -> dict[str, Any]:
    """The paths that are served, each with its operations."""
    found: dict[str, Any] = {
        "/recommend": {
            "post": _operation(
                "Recommend items for one history, or for many",
                {"oneOf": [_to("Answer"), _to("Answers")]},
                body="Ask",
            )
        },
        "/similar": {
            "post": _operation(
                "Items whose vectors are most alike", _to("Answer"), body="AskSimilar"
            )
        },
    }
    if sessions:
        user = {"name": "user", "in": "path", "required": True, "schema": {"type": "string"}}
        query = [
            {"name": name, "in": "query", "schema": schema}
            for name, schema in (
                ("k", {"type": "integer", "minimum": 1, "maximum": limits.k, "default": 10}),
                ("exclude_seen", {"type": "boolean", "default": True}),
                *((name, _OBJECT) for name in ("where", "limit")),
                ("titles", {"type": "boolean", "default": False}),
                ("deadline_ms", {"type": "number", "exclusiveMinimum": 0}),
            )
        ]
        whole = {"type": "integer"}
        found |= {
            "/users/{user}/events": {
                "post": _operation(
                    "Advance a user's state by events",
                    _object(
                        {
                            "events": {**whole, "description": "in the request"},
                            "known": {**whole, "description": "of items that the model knows"},
                        },
                        ["events", "known"],
                    ),
                    body="Events",
                    parameters=[user],
                )
            },
            "/users/{user}/recommendations": {
                "get": _operation(
                    "Recommend from a user's state", _to("Answer"), parameters=[user, *query]
                )
            },
            "/users/{user}": {
                "delete": _operation(
                    "Drop a user's state",
                    _object({"forgotten": {"type": "boolean"}}, ["forgotten"]),
                    parameters=[user],
                )
            },
        }
    if reload:
        version = {"version": {"type": ["string", "null"]}}
        found["/admin/reload"] = {
            "post": _operation("Serve the bundle that is on the disk now", _object(version, []))
        }
    return found


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    made = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**made, "required": required} if required else made


def _to(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _operation(
    summary: str,
    answer: dict[str, Any],
    *,
    body: str | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary}
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, **_json(_to(body))}
    responses = {"200": {"description": "done", **_json(answer)}}
    for status, text in _ERRORS.items():
        responses[status] = {"description": text, **_json(_to("Error"))}
    return {**operation, "responses": responses}
