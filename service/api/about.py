"""What stands before the description of the routes: paragraphs, with `code` in backquotes."""

from typing import Final

ABOUT: Final = """\
Images of the Flux models: each accepted job survives crashes, and ends with an image or a reason.

Two foreign interfaces are served beside the one described here, with the same tokens, rules and promises; their own \
clients describe them.

A client of the Flux API changes its base URL: `POST /flux/v1/{model}` and `GET /flux/v1/get_result?id=` (and both \
without `/flux`) speak it, with the token as `x-key` or `Authorization: Bearer`. A task's id is a job's id, and \
`sample` is signed anew at each read.

A client of OpenAI's images API does the same: `POST /v1/images/generations` takes `prompt`, `model`, `n` (1 to 10), \
`size`, `response_format`, `output_format`, `user`, and the model's own parameters beside them. It answers when the \
images are there. A client that tries again by itself joins what it began: nothing is bought twice.

Without HTTP: the events are a Redis stream, `dr1:events` (`deploy/EVENTS.md`); images, ended jobs and manifests lie \
in the bucket (`deploy/CONSUMERS.md`); a batch can be handed over through the queue (`deploy/examples`)."""
