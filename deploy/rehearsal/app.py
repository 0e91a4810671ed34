"""The composition root: the provider's routes, the image URLs, and the back door for tests and operators.

The back door: `GET, POST /_control`, `GET /_ledger`, `POST /_finish`, `POST /_reset`, `GET /_health`.
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deploy.rehearsal.callbacks import RETRY_AFTER_S, Courier
from deploy.rehearsal.control import Control
from deploy.rehearsal.flux import Flux
from deploy.rehearsal.gallery import Gallery
from deploy.rehearsal.journal import Journal
from deploy.rehearsal.knobs import BadKnobError
from deploy.rehearsal.life import Lives
from deploy.rehearsal.replies import Json
from deploy.rehearsal.tasks import Clock, Desk

BASES = ("/flux/v1", "/v1")
"""CometAPI's path and Black Forest Labs' own."""
LEDGER_FILTERS = ("id", "prompt", "model")


class BackDoor:
    def __init__(self, desk: Desk, lives: Lives) -> None:
        self._desk, self._lives = desk, lives

    async def control(self, request: Request) -> Response:
        """The knobs; a POST turns those it names, all or nothing, for whatever is submitted from now on."""
        if request.method == "POST":
            try:
                self._desk.control = self._desk.control.turned(_changes(await request.body()))
            except BadKnobError as wrong:
                detail = {"type": "knob", "loc": ["body", wrong.knob], "msg": wrong.why, "input": wrong.value}
                return Json({"detail": [detail]}, 422)
        return Json(self._desk.control.values())

    async def ledger(self, request: Request) -> Response:
        wanted = {name: request.query_params[name] for name in LEDGER_FILTERS if name in request.query_params}
        return Json(self._desk.ledger(**wanted))

    async def finish(self, request: Request) -> Response:  # noqa: ARG002  Starlette's signature
        return Json({"finished": await self._lives.finish_all()})

    async def reset(self, request: Request) -> Response:  # noqa: ARG002  Starlette's signature
        await self._lives.stop()
        self._desk.reset()
        return Json({})

    async def health(self, request: Request) -> Response:  # noqa: ARG002  Starlette's signature
        return Json({"status": "ok", "outstanding": len(self._desk.running)})


def build(
    control: Control,
    base_url: str,
    now: Clock,
    closing: asyncio.Event,
    retry_after_s: tuple[float, ...] = RETRY_AFTER_S,
    journal: Journal | None = None,
) -> Starlette:
    """`base_url`: where clients reach this process. `closing`: set when it stops, so that no answer hangs on.

    `journal` is closed with the process; without one, its tasks and image URLs end with it.
    """
    desk = Desk(control, now, journal)
    url_key = journal.url_key if journal else secrets.token_bytes(32)
    gallery, courier = Gallery(desk, base_url, closing, url_key), Courier(retry_after_s)
    lives = Lives(desk, gallery, courier)
    flux, back_door = Flux(desk, lives, gallery, base_url, closing), BackDoor(desk, lives)

    async def image(request: Request) -> Response:
        return await gallery.serve(request.path_params["task"], request.path_params["name"], request.query_params)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        lives.resume()
        yield
        await lives.stop()
        await courier.close()
        gallery.close()
        if journal:
            journal.close()

    routes = [Route(f"{base}/get_result", flux.get_result, methods=["GET"]) for base in BASES]
    routes += [Route(f"{base}/{{model}}", flux.submit, methods=["POST"]) for base in BASES]
    routes += [
        Route("/delivery/{task}/{name}", image),
        Route("/_control", back_door.control, methods=["GET", "POST"]),
        Route("/_ledger", back_door.ledger),
        Route("/_finish", back_door.finish, methods=["POST"]),
        Route("/_reset", back_door.reset, methods=["POST"]),
        Route("/_health", back_door.health),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def _changes(body: bytes) -> dict[str, object]:
    try:
        changes = json.loads(body)
    except (ValueError, RecursionError):
        changes = None
    if not isinstance(changes, dict):
        raise BadKnobError("body", "should be a JSON object", None)
    return changes
