"""Everything but the hot path: models, health, and the OpenAPI description with a page to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata, resources
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from penstock.errors import Invalid, PenstockError, RequestError
from penstock.run import Principal
from penstock.server.auth import Auth, demand
from penstock.server.batch import DESCRIPTION
from penstock.server.endpoints import Catalog, listed, model_row
from penstock.server.project_pages import FACTS
from penstock.server.wire import answer_of

if TYPE_CHECKING:
    from penstock.server.endpoints import Tools

Authorization = Annotated[str | None, Header(description="Bearer token, when the server has tokens")]


def pages(catalog: Catalog, tools: Tools, auth: Auth, *, ready: Callable[[], bool]) -> FastAPI:
    """The FastAPI application for these pages."""
    app = FastAPI(
        title="Penstock",
        version=metadata.version("penstock"),
        summary="LLM work through one executor contract, over the OpenAI API.",
        docs_url=None,
        redoc_url=None,
        exception_handlers={PenstockError: _failed, HTTPException: _refused, RequestValidationError: _unfit},
        telemetry={"tracing": False, "metrics": False, "logs": False},  # else each health probe is four spans
    )

    admit = partial(_admitted, auth)

    @app.get("/models", include_in_schema=False)
    @app.get("/v1/models", tags=["models"], summary="List the models")
    async def list_models(authorization: Authorization = None) -> dict[str, Any]:
        admit(authorization)
        return {"object": "list", "data": [model_row(model) for model in await catalog.models()]}

    @app.get("/models/{model:path}", include_in_schema=False)
    @app.get("/v1/models/{model:path}", tags=["models"], summary="One model")
    async def one_model(model: str, authorization: Authorization = None) -> dict[str, Any]:
        admit(authorization)
        return model_row(await catalog.model(model))

    @app.get("/tools", include_in_schema=False)
    @app.get("/v1/tools", tags=["tools"], summary="List the tools you may call")
    async def list_tools(authorization: Authorization = None) -> dict[str, Any]:
        return {"object": "list", "data": listed(tools, admit(authorization, "tools"))}

    @app.get("/health", tags=["health"], summary="Is the process alive?")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", tags=["health"], summary="Does it take new requests?")
    async def readiness() -> JSONResponse:
        return JSONResponse({"status": "ready"}) if ready() else JSONResponse({"status": "draining"}, 503)

    @app.get("/", include_in_schema=False)
    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(resources.files("penstock.server").joinpath("docs.html").read_text("utf-8"))

    app.openapi_schema = None
    plain = app.openapi
    app.openapi = lambda: _with_runs(plain())  # type: ignore[method-assign]
    return app


def _admitted(auth: Auth, authorization: str | None, scope: str = "chat") -> Principal:
    """Who asks for a page; raises `RequestError` for one who may not."""
    principal = auth.principal(authorization.encode() if authorization else None)
    demand(principal, scope)
    return principal


async def _failed(request: Request, error: Exception) -> Response:
    request.scope.setdefault(FACTS, {})["error"] = type(error).__name__
    told = answer_of(error)
    body = msgspec.json.encode(told.body)
    headers = {name.decode(): value.decode() for name, value in told.headers(len(body))}
    return Response(body, told.status, headers)


async def _unfit(request: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": ("",), "msg": str(error)}
    param = str(first["loc"][-1])
    return await _failed(request, Invalid(f"{param}: {first['msg']}", param=param, code="invalid_value"))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers: Mapping[str, str] | None = error.headers if isinstance(error, HTTPException) else None
    text = f"{request.method} {request.url.path} is not served here: see /docs"
    code = "method_not_allowed" if status == 405 else "not_found"
    return JSONResponse(answer_of(RequestError(text, code=code)).body, status, headers)


def _with_runs(schema: dict[str, Any]) -> dict[str, Any]:
    """The description with the endpoints that FastAPI does not serve."""
    schema["paths"] |= {"/v1/chat/completions": _CHAT, "/v1/tools/{name}": _TOOL, "/v1/batch": _BATCH}
    return schema


_TEXT: dict[str, Any] = {"type": "string"}
_ERROR = {
    "description": "An error in OpenAI's shape",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": _TEXT,
                            "type": _TEXT,
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    }
                },
            }
        }
    },
}
_CHAT: dict[str, Any] = {
    "post": {
        "tags": ["chat"],
        "summary": "Create a chat completion",
        "description": (
            "OpenAI's chat completion: every field is forwarded to the model's service. With `stream: true` the answer "
            "is a stream of server-sent events that ends with `data: [DONE]`, or with an error event when it broke."
        ),
        "parameters": [
            {
                "name": "X-Disconnect-Policy",
                "in": "header",
                "description": "What happens to the run when the client leaves",
                "schema": {"type": "string", "enum": ["cancel", "finish"], "default": "cancel"},
            },
            {"name": "traceparent", "in": "header", "description": "W3C trace context", "schema": _TEXT},
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["model", "messages"],
                        "properties": {
                            "model": _TEXT,
                            "messages": {"type": "array", "minItems": 1, "items": {"type": "object"}},
                            "stream": {"type": "boolean", "default": False},
                            "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
                            "tools": {"type": "array", "items": {"type": "object"}},
                            "response_format": {"type": "object"},
                            "temperature": {"type": "number"},
                            "max_tokens": {"type": "integer"},
                        },
                        "additionalProperties": True,
                        "example": {"model": "penstock-demo", "messages": [{"role": "user", "content": "Hello"}]},
                    }
                }
            },
        },
        "responses": {
            "200": {
                "description": "The completion, or its stream",
                "content": {"application/json": {}, "text/event-stream": {}},
            },
            "4XX": _ERROR,
            "5XX": _ERROR,
        },
    }
}
_BATCH: dict[str, Any] = {
    "post": {
        **DESCRIPTION,
        "parameters": _CHAT["post"]["parameters"],
        "responses": {**DESCRIPTION["responses"], "4XX": _ERROR, "5XX": _ERROR},
    }
}
_TOOL: dict[str, Any] = {
    "post": {
        "tags": ["tools"],
        "summary": "Call a tool",
        "description": "The body is the tool's arguments, a JSON object; `GET /v1/tools` tells their schema.",
        "parameters": [
            {"name": "name", "in": "path", "required": True, "schema": _TEXT},
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "For a tool that keeps a ledger: calls under one key run at most once",
                "schema": {**_TEXT, "maxLength": 255},
            },
            *_CHAT["post"]["parameters"],
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": {
            "200": {
                "description": "The tool's value",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "required": ["id", "object", "tool", "content", "latency_s", "warnings"],
                            "properties": {
                                "id": _TEXT,
                                "object": {"const": "tool.result"},
                                "tool": _TEXT,
                                "content": {},
                                "latency_s": {"type": "number"},
                                "warnings": {"type": "array", "items": _TEXT},
                            },
                        }
                    }
                },
            },
            "4XX": _ERROR,
            "5XX": _ERROR,
        },
    }
}
