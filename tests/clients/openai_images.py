"""The public `openai` package against a base URL: prints what it got, as one JSON line. Knows nothing of us."""

import json
import sys

import openai


def main(base_url: str, key: str, told: str) -> int:
    asked = json.loads(told)
    client = openai.OpenAI(base_url=base_url, api_key=key, **asked.pop("client", {}))
    try:
        answer = client.images.generate(**asked)
    except openai.APIStatusError as error:
        retry = error.response.headers.get("x-should-retry")
        print(json.dumps({"status": error.status_code, "body": error.body, "retry": retry}))
        return 1
    except openai.APITimeoutError:
        print(json.dumps({"status": None}))
        return 1
    print(json.dumps({"created": answer.created, "data": [image.to_dict() for image in answer.data or ()]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
