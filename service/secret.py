"""A value that is never shown by accident."""

import hmac
from typing import Final, NoReturn


class Secret:
    """Text that shows only as `Secret(…)`; `reveal()` is the one way to it.

    Pickle, copy and JSON refuse it, `==` takes constant time, and it cannot be hashed into a set.
    """

    __slots__ = ("__value",)
    __hash__ = None  # type: ignore[assignment]  # a hash of a secret is a hint

    def __init__(self, value: str) -> None:
        self.__value: Final = value

    def reveal(self) -> str:
        return self.__value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes(self.__value), _bytes(other.reveal()))

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled, copied or sent")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # os.environ may hold lone surrogates
