"""The public `openai` package against a base URL: prints what it got, as one JSON line. Knows nothing of us."""

import asyncio
import json
import sys
from typing import Any

import openai


def main(base_url: str, key: str, told: str) -> int:
    asked = json.loads(told)
    how = {"base_url": base_url, "api_key": key} | asked.pop("client", {})
    try:
        answer = asyncio.run(later(how, asked)) if asked.pop("async", False) else now(how, asked)
    except openai.APIStatusError as error:
        retry = error.response.headers.get("x-should-retry")
        print(json.dumps({"status": error.status_code, "body": error.body, "retry": retry}))
        return 1
    except openai.APITimeoutError:
        print(json.dumps({"status": None}))
        return 1
    print(json.dumps({"created": answer.created, "data": [image.to_dict() for image in answer.data or ()]}))
    return 0


def now(how: dict[str, Any], asked: dict[str, Any]) -> Any:
    return openai.OpenAI(**how).images.generate(**asked)


async def later(how: dict[str, Any], asked: dict[str, Any]) -> Any:
    async with openai.AsyncOpenAI(**how) as client:
        return await client.images.generate(**asked)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
