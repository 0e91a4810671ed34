"""How the places in a queue are shared between what is to be looked at and what is only to be written down."""

from workers.sweep import CLOSE_MOST, QUEUE_MOST, room_to_close


def test_however_full_the_queue_is_ends_and_polls_both_find_a_place() -> None:
    for free in range(QUEUE_MOST + 1):
        closes = room_to_close(free)
        assert free < 2 or 0 < closes < free
        assert closes <= CLOSE_MOST
        assert free - closes >= min(free // 2, QUEUE_MOST - CLOSE_MOST), "a poll is nearer to its end than an ended job"
