"""From the table of operations and endpoints to Starlette's routes."""

from collections.abc import Callable, Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from service.api.auth import Endpoint
from service.api.openapi import Operation

Row = tuple[Operation, Endpoint]


class ModelRoute(Route):
    """A path whose `{model}` is one that we know. Any other is an unknown path: `GET /v1/job` is a 404, not a 405."""

    knows: Callable[[str], bool]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        if match is not Match.NONE and not self.knows(child["path_params"].get("model", "")):
            return Match.NONE, {}
        return match, child


def routes(rows: Iterable[Row], knows: Callable[[str], bool]) -> list[Route]:
    """One route a path, so that a 405 names every method that the path takes (RFC 9110, section 15.5.6)."""
    paths: dict[str, dict[str, Endpoint]] = {}
    for row, endpoint in rows:
        paths.setdefault(row.path, {})[row.method.upper()] = endpoint
    return [_route(path, endpoints, knows) for path, endpoints in paths.items()]


def _route(path: str, endpoints: dict[str, Endpoint], knows: Callable[[str], bool]) -> Route:
    if "{model" not in path:
        return Route(path, _by_method(endpoints), methods=list(endpoints))
    route = ModelRoute(path, _by_method(endpoints), methods=list(endpoints))
    route.knows = knows
    return route


def _by_method(endpoints: dict[str, Endpoint]) -> Endpoint:
    async def serve(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return serve
