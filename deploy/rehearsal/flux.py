"""The provider's two routes, submit and get_result, with every refusal and oddity that the knobs can play."""

import asyncio
from contextlib import suppress
from re import compile as pattern

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from deploy.rehearsal import answers
from deploy.rehearsal.dice import Dice
from deploy.rehearsal.gallery import Gallery
from deploy.rehearsal.life import Lives
from deploy.rehearsal.replies import LATE_5XX, REFUSED_5XX, Json, broken, refused, unavailable_page
from deploy.rehearsal.submission import InvalidError, Submission, parsed
from deploy.rehearsal.tasks import Desk, Task
from deploy.rehearsal.wire import Hang, HangUp

MODEL = pattern(r"[a-z0-9][a-z0-9.-]{0,63}")
EARLY_WAIT_S = 10.0
"""How long a submit answer waits for its early callback to be tried once."""


class Flux:
    """`base_url` is how a client reaches this process, for `polling_url`."""

    def __init__(self, desk: Desk, lives: Lives, gallery: Gallery, base_url: str, closing: asyncio.Event) -> None:
        self._desk, self._lives, self._gallery = desk, lives, gallery
        self._base_url, self._closing = base_url, closing

    async def submit(self, request: Request) -> Response:
        model = request.path_params["model"]
        if not _has_key(request):
            return _unauthorised(request)
        if not MODEL.fullmatch(model):
            return refused(request, 404, "Not Found", "not_found")
        try:
            asked = parsed(model, await request.body())
        except InvalidError as wrong:
            return Json({"detail": wrong.detail}, 422)
        dice = self._desk.next_dice()
        fate = self._desk.control.fate(dice, asked.prompt)
        refusal = self._refusal(request, model, dice, fate)
        return refusal or await self._accept(request, model, asked, dice, fate)

    async def get_result(self, request: Request) -> Response:
        if not _has_key(request):
            return _unauthorised(request)
        task = self._desk.tasks.get(request.query_params.get("id", ""))
        if task is None:
            return Json(answers.not_found(request.query_params.get("id", "")), 404)
        task.polls += 1
        return self._poll_trouble(request, task) or self._told(task)

    def _refusal(self, request: Request, model: str, dice: Dice, fate: frozenset[str]) -> Response | None:
        """Why nothing is accepted, if so. The account comes first, then the service, then the cap."""
        control = self._desk.control
        if "bad_key" in fate:
            return _unauthorised(request)
        if "no_credits" in fate:
            return refused(request, 402, "Insufficient credits", "insufficient_credits")
        if "rate_hang" in fate:
            return Hang(self._closing)
        if "rate_html" in fate:
            return unavailable_page()
        if "rate_redirect" in fate:
            return RedirectResponse(f"{self._base_url}/moved", 301)
        if "invalid_500" in fate:
            return refused(request, 500, "invalid request: prompt", "invalid_request")
        if "rate_5xx" in fate:
            any_kind = dice.pick("kind_5xx", REFUSED_5XX)
            return broken(request, any_kind if control.kind_5xx == "any" else control.kind_5xx)
        if "rate_429" in fate or self._desk.full(model):
            return self._too_many(request)
        return None

    def _too_many(self, request: Request) -> Response:
        self._desk.refused_429 += 1
        wait_s = self._desk.control.retry_after_s
        headers = {"Retry-After": str(wait_s)} if wait_s else None
        return refused(request, 429, "Too many outstanding tasks", "rate_limit_exceeded", headers)

    async def _accept(
        self, request: Request, model: str, asked: Submission, dice: Dice, fate: frozenset[str]
    ) -> Response:
        """From here on the task is billed, whatever the client gets to hear of it."""
        task = self._desk.accept(model, asked, dice, fate)
        self._lives.begin(task)
        if "callback_early" in fate:
            with suppress(TimeoutError):
                await asyncio.wait_for(task.told.wait(), EARLY_WAIT_S)
        if "drop_answer" in fate:
            return HangUp()
        if "accept_hang" in fate:
            return Hang(self._closing)
        if "accept_5xx" in fate:
            return broken(request, dice.pick("accept_5xx_kind", LATE_5XX))
        name = self._desk.before(task).id if "same_id" in fate else task.id
        base = "/elsewhere/v1" if "far_polling" in fate else request.url.path.rpartition("/")[0]
        return Json(answers.submitted(task, name, f"{self._base_url}{base}/get_result?id={name}"))

    def _poll_trouble(self, request: Request, task: Task) -> Response | None:
        """Why a poll tells nothing of a task that is known."""
        if self._plays("bad_key", task):
            return _unauthorised(request)
        if self._plays("poll_hang", task):
            return Hang(self._closing)
        if self._plays("poll_5xx", task):
            return broken(request, task.dice.pick("poll_5xx_kind", REFUSED_5XX, task.polls))
        if self._plays("not_found", task):
            return Json(answers.not_found(task.id), 200 if self._plays("not_found_200", task) else 404)
        return None

    def _told(self, task: Task) -> Response:
        running = task.ended_at is None
        if running and self._plays("odd_status", task):
            body = answers.odd(task, task.polls)
        elif not running and self._plays("flip_back", task):
            body = answers.pending(task)
        else:
            body = answers.status(task, self._desk.now(), self._gallery.sample_url(task))
        failed_503 = not running and task.outcome == "failed" and "failed_503" in task.fate
        return Json(answers.wrapped(task, body) if self._plays("wrapped", task) else body, 503 if failed_503 else 200)

    def _plays(self, name: str, task: Task) -> bool:
        return task.dice.plays(name, getattr(self._desk.control, name), task.polls)


def _has_key(request: Request) -> bool:
    """Any key will do, in either of the two headers."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return bool(scheme.lower() == "bearer" and key.strip()) or bool(request.headers.get("x-key", "").strip())


def _unauthorised(request: Request) -> Response:
    return refused(request, 401, "Invalid or missing API key", "invalid_api_key")
