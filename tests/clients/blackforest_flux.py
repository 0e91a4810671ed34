"""The public `blackforest` package against a base URL: prints what it got as its last line. Knows nothing of us."""

import json
import sys

from blackforest import BFLClient
from blackforest.client import BFLError
from blackforest.types.general.client_config import ClientConfig


def main(base_url: str, key: str, model: str, told: str) -> int:
    client = BFLClient(api_key=key, base_url=base_url)
    config = ClientConfig(sync=True, timeout=100, polling_interval=0.2, max_retries=400)
    try:
        answer = client.generate(model, json.loads(told), config)
    except BFLError as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps(answer.model_dump()))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
