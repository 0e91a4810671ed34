"""What this service takes as an order, from whichever road it comes: one request, a line of a batch, a queue entry."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from service.domain import catalogue
from service.domain.addresses import HostList, Refusal, check_url
from service.domain.catalogue import ERRORS_MAX, CallbackUrl, Metadata, Order
from service.domain.errors import FieldError
from service.domain.inputs import InputBytes, split_input
from service.domain.parsing import NOT_JSON, flaws, loads, pointer

BASE64_SLACK_BYTES: Final = 2**16  # data: prefixes, padding, white space around


@dataclass(frozen=True, slots=True)
class Mistakes:
    """Why it is no order; `too_large`: one sentence of it says which size is over."""

    errors: list[FieldError]
    too_large: bool = False


class Extras(BaseModel):
    """What a batch has besides its lines."""

    model_config = ConfigDict(extra="forbid", strict=True)

    metadata: Metadata | None = None
    callback_url: CallbackUrl | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """`notify_hosts`: where callbacks may go besides public https; `notified`: callers who have a secret for them."""

    extra_models: frozenset[str]
    notify_hosts: HostList
    notified: Collection[str]
    max_body_bytes: int
    max_input_bytes: int

    @property
    def max_order_bytes(self) -> int:
        """The most that an order with all its images in base64 can have."""
        return self.max_body_bytes + self.max_input_bytes * 4 // 3 + BASE64_SLACK_BYTES

    def order(self, body: object, size_bytes: int, caller: str, *, line: bool = False) -> Order | Mistakes:
        """The order that parsed JSON spells, which came as so many bytes. Total. `line`: it may have a `custom_id`."""
        if size_bytes > self.max_body_bytes and _bare_bytes(body) > self.max_body_bytes:
            return _too_large(f"Without input images a job may have {self.max_body_bytes} bytes.")
        order = catalogue.check(body, extra_models=self.extra_models, allow_custom_id=line)
        if isinstance(order, list):
            return Mistakes(order)
        if sum(map(len, order.inputs.values())) > self.max_input_bytes:
            return _too_large(f"Input images may have {self.max_input_bytes} bytes, decoded and all together.")
        if detail := self.objection(order.callback_url, caller):
            return Mistakes([FieldError("/callback_url", detail)])
        return order

    def knows(self, model: str) -> bool:
        """Whether there is such a model here."""
        return model in catalogue.MODELS or model in self.extra_models

    def line(self, raw: bytes, caller: str) -> tuple[object, Order | Mistakes]:
        """A line of a batch, as parsed JSON and as an order. Total."""
        if len(raw) > self.max_order_bytes:
            return None, _too_large(f"A line may have {self.max_order_bytes} bytes, its input images included.")
        body = loads(raw)
        if body is NOT_JSON:
            return None, Mistakes([FieldError("", "Is not JSON in UTF-8")])
        return body, self.order(body, len(raw), caller, line=True)

    def extras(self, told: Mapping[str, object], caller: str) -> Extras | list[FieldError]:
        """What a batch has besides its lines: `metadata` and `callback_url`, each as a job has it. Total."""
        if errors := list(islice(flaws(dict(told)), ERRORS_MAX)):
            return errors
        try:
            extras = Extras.model_validate(told)
        except ValidationError as error:
            return [
                FieldError(pointer(*map(str, each["loc"][:1])), each["msg"]) for each in error.errors(include_url=False)
            ]
        detail = self.objection(extras.callback_url, caller)
        return [FieldError("/callback_url", detail)] if detail else extras

    def objection(self, callback_url: str | None, caller: str) -> str | None:
        """Why this caller's `callback_url` will not be called; None: it will."""
        if callback_url is None:
            return None
        if caller not in self.notified:
            return "Needs a notify secret, and this caller has none (NOTIFY_SECRETS)"
        verdict = check_url(callback_url, self.notify_hosts)
        return f"Is not called: {verdict.reason.replace('_', ' ')}" if isinstance(verdict, Refusal) else None


def _too_large(detail: str) -> Mistakes:
    return Mistakes([FieldError("", detail)], too_large=True)


def _bare_bytes(body: object) -> int:
    """The size of any JSON value, less the images if it is an order."""
    if isinstance(body, dict):
        model = str(body.get("model"))
        images = {name for name in catalogue.input_image_fields(model) if _is_image(model, body.get(name))}
        body = {name: value for name, value in body.items() if name not in images}
    return len(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))


def _is_image(model: str, value: object) -> bool:
    """What a model of the catalogue gets as an image and is no URL was meant as one: broken base64 is a 422 later.

    Other models get such text as it is, so there it has to be base64 not to count.
    """
    if not isinstance(value, str) or value.startswith(("http://", "https://")):
        return False
    return model in catalogue.MODELS or isinstance(split_input(value), InputBytes)
