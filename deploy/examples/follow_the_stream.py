"""Follow the service's events in Redis itself: with redis alone, from a service that shares the service's Redis.

    REDIS_URL=redis://… python follow_the_stream.py mailer mailer-1

The consumer group ("mailer") keeps the place, so that nothing is missed while no consumer runs; each entry goes to one
consumer of it ("mailer-1"), and to another one if that died over it. Prints a JSON line for every job or batch that
has ended, and `{"reset": …}` where entries were trimmed before the group had read them: look at the jobs themselves
then. Delivered at least once: `id` and `version` make a second time harmless. A third argument ends it after so many.
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

STREAM = "dr1:events"
ENDED = {"succeeded", "failed", "cancelled", "completed"}
BLOCK_S = 5.0
ORPHANED_S = float(os.environ.get("ORPHANED_S", "60"))  # unacknowledged for so long: its consumer is dead

Told = dict[str, Any]


def main(group: str, me: str, most: int | None) -> int:
    redis = Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, socket_timeout=BLOCK_S + 5)
    try:
        redis.xgroup_create(STREAM, group, id="0", mkstream=True)  # from what is kept; "$": from now on
    except ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):  # it is there already
            raise
    for line in islice(ends(redis, group, me), most):
        print(json.dumps(line), flush=True)
    return 0


def ends(redis: Any, group: str, me: str) -> Iterator[Told]:
    """An entry is acknowledged when the next one is asked for: whoever dies before that is given it again."""
    for eid, told in entries(redis, group, me):
        if eid is None or (told.get("status") in ENDED and told.get("from") != told["status"]):
            yield told
        if eid is not None:
            redis.xack(STREAM, group, eid)


def entries(redis: Any, group: str, me: str) -> Iterator[tuple[str | None, Told]]:
    """What we had taken and not acknowledged, then without end: what others left, and what is new."""
    yield from found(redis.xreadgroup(group, me, {STREAM: "0"}))
    while True:
        if after := missed(redis, group):
            yield None, {"reset": after}
        left = redis.xautoclaim(STREAM, group, me, min_idle_time=round(ORPHANED_S * 1000), count=100)[1]
        yield from left
        yield from found(
            redis.xreadgroup(group, me, {STREAM: ">"}, count=100, block=None if left else round(BLOCK_S * 1000))
        )


def found(answer: Any) -> Iterator[tuple[str | None, Told]]:
    """The entries of an XREADGROUP; one that was trimmed meanwhile has no fields any more."""
    for _, rows in answer or ():
        for eid, told in rows:
            yield eid, told or {}


def missed(redis: Any, group: str) -> str | None:
    """The last id that the group was given, if what came after it may have been trimmed."""
    [last] = [each["last-delivered-id"] for each in redis.xinfo_groups(STREAM) if each["name"] == group]
    first = redis.xinfo_stream(STREAM)["first-entry"]
    gone = last != "0-0" and first and order(first[0]) > order(last)
    return last if gone else None


def order(eid: str) -> tuple[int, int]:
    """Ids compare as two numbers."""
    ms, _, n = eid.partition("-")
    return int(ms), int(n)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None))
