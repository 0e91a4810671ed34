"""Ids sort by time and name their own folder; hostile ids get a verdict, never a surprise."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import layout
from service.domain.layout import ENTROPY_BYTES, TIME_END_MS, id_time_ms, new_id, valid_id

LAST_MS_OF_2026 = 1_798_761_599_999
JOB = new_id("job", LAST_MS_OF_2026, bytes(10))
BATCH = new_id("batch", LAST_MS_OF_2026 + 1, b"\xff" * 10)

moments = st.integers(0, TIME_END_MS - 1)
entropies = st.binary(min_size=ENTROPY_BYTES, max_size=ENTROPY_BYTES)

KEYS: list[Callable[[str], object]] = [
    layout.image_keys,
    layout.sidecar_key,
    layout.inputs_prefix,
    layout.manifest_key,
    lambda text: layout.image_key(text, "png"),
    lambda text: layout.input_key(text, "mask.png"),
    lambda text: layout.marker_key(text, ok=True),
]


def test_an_id_is_written_as_the_ulid_specification_says() -> None:
    assert new_id("job", 1_469_918_176_385, bytes(10)) == "job_01ARYZ6S410000000000000000"
    assert new_id("job", 0, b"\xff" * 10) == "job_0000000000ZZZZZZZZZZZZZZZZ"


def test_each_thing_has_its_place_in_the_folder_of_its_utc_day() -> None:
    assert layout.image_key(JOB, "png") == f"images/2026/12/31/{JOB}.png"
    assert layout.sidecar_key(JOB) == f"jobs/2026/12/31/{JOB}.json"
    assert layout.input_key(JOB, "input_image.png") == f"inputs/{JOB}/input_image.png"
    assert layout.manifest_key(BATCH) == f"batches/2027/01/01/{BATCH}/manifest.ndjson"
    assert layout.marker_key(BATCH, ok=True) == f"batches/2027/01/01/{BATCH}/_SUCCESS"
    assert layout.marker_key(BATCH, ok=False) == f"batches/2027/01/01/{BATCH}/_FAILED"


def test_a_job_may_have_its_image_under_three_keys() -> None:
    assert layout.image_keys(JOB) == tuple(f"images/2026/12/31/{JOB}.{end}" for end in ("jpeg", "png", "webp"))


@given(moments, entropies)
def test_the_time_of_an_id_comes_back(now_ms: int, entropy: bytes) -> None:
    made = new_id("job", now_ms, entropy)
    assert id_time_ms(made) == now_ms
    assert valid_id("job", made)
    assert not valid_id("batch", made)


@given(moments, moments, entropies, entropies)
def test_ids_sort_by_time(one_ms: int, other_ms: int, one: bytes, other: bytes) -> None:
    made, later = sorted([(one_ms, one), (other_ms, other)])
    assert new_id("job", *made) <= new_id("job", *later)


@pytest.mark.parametrize(
    "hostile",
    [
        "",
        "job",
        "job_",
        JOB.removeprefix("job_"),
        JOB.lower(),
        JOB[:-1],
        f"{JOB}0",
        f"{JOB}\n",
        f" {JOB}",
        f"{JOB[:-1]}U",
        f"{JOB[:-1]}٣",
        "job_8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        "job_7ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        "job_../../../../../../etc/passwd",
        f"batch_{JOB}",
        "\x00" * 30,
        "\ud800",
    ],
)
def test_what_is_no_id_is_called_none(hostile: str) -> None:
    assert not valid_id("job", hostile)
    for key in KEYS:
        with pytest.raises(ValueError, match="not a"):
            key(hostile)


@given(st.text() | st.from_regex(r"(job|batch)_[0-9A-Z]{26}", fullmatch=True))
def test_every_text_gets_a_verdict(text: str) -> None:
    valid = valid_id("job", text)
    assert valid == (text.startswith("job_") and id_time_ms(text) is not None)
    if valid:
        assert layout.sidecar_key(text).endswith(f"/{text}.json")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a.b.c", "a b", "x\n", "é.png", "a" * 65])
def test_an_input_cannot_leave_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="one short word"):
        layout.input_key(JOB, name)


def test_an_image_has_one_of_three_extensions() -> None:
    with pytest.raises(ValueError, match="jpeg, png or webp"):
        layout.image_key(JOB, "svg")  # type: ignore[arg-type]  # what a bug would pass


@pytest.mark.parametrize(
    ("prefix", "now_ms", "entropy"),
    [
        ("job", -1, bytes(10)),
        ("job", TIME_END_MS, bytes(10)),
        ("job", 0, b""),
        ("Job_", 0, bytes(10)),
        ("", 0, bytes(10)),
    ],
)
def test_an_id_is_not_made_of_nonsense(prefix: str, now_ms: int, entropy: bytes) -> None:
    with pytest.raises(ValueError, match="an id"):
        new_id(prefix, now_ms, entropy)
