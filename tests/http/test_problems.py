"""Problems say the same on every Python."""

import json

import pytest

from service.api.problems import problem


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (404, "Not Found"),
        (413, "Content Too Large"),
        (422, "Unprocessable Content"),
        (503, "Service Unavailable"),
        (599, "Unknown Status"),
    ],
)
def test_titles_are_those_of_rfc_9110(status: int, title: str) -> None:
    assert json.loads(bytes(problem(status, "x", "X.").body))["title"] == title
