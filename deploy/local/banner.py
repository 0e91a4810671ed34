"""What a person reads, and a script sources, once the stack is up."""

import os
import shlex
from typing import Final

from .stack import Stack

ORDER: Final = (
    '{"model": "flux-pro-1.1", "prompt": "a lighthouse at dusk, oil on canvas", "width": 1024, "height": 768,'
    ' "output_format": "jpeg"}'
)


def welcome(stack: Stack) -> str:
    name, token = stack.caller
    return f"""
darkroom is up.

  service    {stack.addresses.service_url}
  docs       {stack.addresses.service_url}/docs
  API token  {token}   (caller: {name})
  provider   {_provider(stack)}
  logs       {stack.logs}
  facts      {stack.folder / "run.env"}

Paste this to make a picture; it is then in ./picture.jpg:

{picture(stack)}

Ctrl-C stops everything. The data stay in {stack.folder}
"""


def picture(stack: Stack) -> str:
    """A line for a shell: order one, wait for it, fetch it."""
    jobs = f"{stack.addresses.service_url}/v1/jobs"
    auth = f"-H {shlex.quote(f'Authorization: Bearer {stack.caller[1]}')}"
    order = f"curl -sS {auth} -H 'Content-Type: application/json' -H 'Prefer: wait=60' {jobs} -d {shlex.quote(ORDER)}"
    return (
        f"job=$({order} | grep -o 'job_[0-9A-Za-z-]*' | head -n 1); curl -sSfL {auth} {jobs}/$job/image -o picture.jpg"
    )


def facts(stack: Stack) -> str:
    """`.local/run.env`. It stays when the run ends, and is the first thing that the next run takes away."""
    at = stack.addresses
    lines = {
        "SERVICE_URL": at.service_url,
        "API_TOKEN": stack.caller[1],
        "REDIS_URL": at.redis_url,
        "S3_ENDPOINT_URL": at.s3_endpoint_url,
        "S3_BUCKET": at.s3_bucket,
        "AWS_ACCESS_KEY_ID": at.access_key,
        "AWS_SECRET_ACCESS_KEY": at.secret_key,
        "FLUX_API_BASE_URL": stack.settings.flux_api_base_url,
    }
    head = f"# Facts of the run with process id {os.getpid()}; without that process they are of the past.\n"
    return head + "".join(f"{name}={shlex.quote(text)}\n" for name, text in lines.items())


def _provider(stack: Stack) -> str:
    base = stack.settings.flux_api_base_url
    if stack.addresses.rehearsal_port is None:
        return f"{base}   (FLUX_API_KEY is set: each picture costs money)"
    return f"{base}   (a rehearsal: no FLUX_API_KEY is set, nothing is bought)"
