"""How long a call to the store may take."""

from service.storage.allowance import Allowance


def test_it_grows_with_each_call_that_needs_more_whatever_fails_quickly_beside_it() -> None:
    allowance = Allowance(60, 4)
    allowance.failed()
    granted = []
    for _ in range(6):
        granted.append(allowance.now_s)
        allowance.failed()
        allowance.ran_out(allowance.now_s)
        allowance.failed()
    assert granted == [4, 8, 16, 32, 60, 60], "a large object is never out of reach"


def test_several_that_run_out_together_are_one_sign() -> None:
    allowance = Allowance(60, 4)
    allowance.failed()
    for _ in range(5):
        allowance.ran_out(4)
    assert allowance.now_s == 8


def test_one_that_does_well_has_all_of_it_again() -> None:
    allowance = Allowance(60, 4)
    allowance.failed()
    allowance.ran_out(4)
    allowance.worked()
    assert allowance.now_s == 60
    allowance.failed()
    assert allowance.now_s == 4
