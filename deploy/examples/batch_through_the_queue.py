"""Hand over a batch through the queue: with redis and rq alone, from a service that shares the service's Redis.

    REDIS_URL=redis://… python batch_through_the_queue.py spring-2026 "a lighthouse at dusk" "a heron at dawn"

The RQ job id ("spring-2026") is the batch's name for good: run it again and nothing is bought twice. The result is
`{"batch_id": "batch_…"}`, or `{"errors": […]}` with what is wrong with each line; then nothing was made. With `Retry`,
RQ runs the entry again if a worker died over it.
"""

import json
import os
import sys
import time

from redis import Redis
from rq import Queue, Retry

WITHIN_S = 120


def main(name: str, prompts: list[str]) -> int:
    queue = Queue("batches", connection=Redis.from_url(os.environ["REDIS_URL"]), serializer="json")
    lines = [
        {"model": "flux-pro-1.1", "prompt": prompt, "width": 256, "height": 256, "custom_id": f"{name}-{number}"}
        for number, prompt in enumerate(prompts)
    ]
    batch = {"caller": "catalogue", "jobs": lines, "metadata": {"season": name}}
    entry = queue.enqueue("workers.tasks.submit_batch", batch, job_id=name, retry=Retry(max=3), result_ttl=86400)
    until = time.monotonic() + WITHIN_S
    while entry.get_status() not in ("finished", "failed"):
        if time.monotonic() > until:
            print("no worker has taken it yet; it stays in the queue", file=sys.stderr)
            return 3
        time.sleep(0.2)
    result = entry.return_value()
    print(json.dumps(result))
    return 0 if result and "batch_id" in result else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
