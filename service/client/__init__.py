"""The service's client: one package that stands on httpx and the standard library alone, to be copied or installed.

    from service.client import Client

    with Client("http://127.0.0.1:8000", token) as darkroom:
        job = darkroom.submit({"model": "flux-dev", "prompt": "a red fox"}, wait_s=60)
        print(darkroom.image_url(job["id"]))

`core` holds the rules, `streams` what is read piece by piece, `client`, `aio` and `wire` the sockets, `shapes` and
`errors` the words.
"""

from .aio import AsyncClient
from .client import Client
from .core import Patience
from .errors import ClientError, ServiceError, Unfinished, Unreachable
from .shapes import BATCH_ENDED, ENDED, Batch, Event, Job, Log

__all__ = [
    "BATCH_ENDED",
    "ENDED",
    "AsyncClient",
    "Batch",
    "Client",
    "ClientError",
    "Event",
    "Job",
    "Log",
    "Patience",
    "ServiceError",
    "Unfinished",
    "Unreachable",
]
