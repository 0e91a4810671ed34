"""Makes what deploy/docker/secrets/ lacks: `python3 deploy/docker/keys.py`. Nothing that is there is changed.

The provider's key is asked for (or taken from FLUX_API_KEY). Inside a container a secret keeps the mode it has here and
is read by another user, so the folder is closed to others, the files are not. Needs Python alone.
"""

import base64
import getpass
import json
import os
import secrets
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).with_name("secrets")


def main(folder: Path = FOLDER) -> None:
    folder.chmod(0o700)
    password = secrets.token_urlsafe(32)
    access, secret = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
    pair = {"accessKey": access, "secretKey": secret}
    _write(folder, redis_auth=f"requirepass {password}\n", redis_url=f"redis://:{password}@redis:6379/0\n")
    _write(
        folder,
        s3_identities=json.dumps({"identities": [{"name": "darkroom", "credentials": [pair], "actions": ["Admin"]}]}),
        aws_credentials=f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n",
    )
    _write(folder, api_tokens=f"admin:{secrets.token_hex(24)}\n")
    _write(folder, webhook_keys=f"k1:{base64.b64encode(secrets.token_bytes(32)).decode()}\n")
    if not (folder / "flux_api_key").exists():
        _write(folder, flux_api_key=os.environ.get("FLUX_API_KEY") or getpass.getpass("FLUX_API_KEY: "))


def _write(folder: Path, **files: str) -> None:
    """All of them or, if one is there, none: they belong together."""
    if not any((folder / name).exists() for name in files):
        for name, text in files.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o644)
            print(f"made {folder / name}")


if __name__ == "__main__":
    main()
