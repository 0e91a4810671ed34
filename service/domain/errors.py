"""What is wrong with a request (FieldError), and why a job did not succeed (JobError)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class FieldError:
    """One mistake in a request: an RFC 6901 pointer to the field ("" is the whole body) and a sentence."""

    pointer: str
    detail: str


class ErrorCode(StrEnum):
    """Every `error.code` a job may carry. Callers branch on them: add, never rename."""

    MODERATED = "moderated"
    PROVIDER_ERROR = "provider_error"
    PROVIDER_REJECTED = "provider_rejected"
    RESULT_EXPIRED = "result_expired"
    RESULT_INVALID = "result_invalid"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    OUTCOME_UNKNOWN = "outcome_unknown"
    STORAGE_CONFLICT = "storage_conflict"
    RECORD_CORRUPT = "record_corrupt"
    POISONED = "poisoned"


@dataclass(frozen=True, slots=True)
class JobError:
    """`retryable`: the same request may well succeed if it is tried again as it is."""

    code: ErrorCode
    message: str
    retryable: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"code": self.code.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_dict`. KeyError or ValueError: the record is corrupt."""
        message, retryable = data["message"], data["retryable"]
        if not isinstance(message, str) or not isinstance(retryable, bool):
            raise ValueError("a job error needs a text and a truth value")  # noqa: TRY004  one kind for "corrupt"
        return cls(ErrorCode(data["code"]), message, retryable)
