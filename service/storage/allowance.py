"""How long a call to the store may take: less after it has failed, when many hang."""


class Allowance:
    """All of `most_s` while the store does well. After a failure `again_s`, twice that after each call that it was too
    short for, and all again as soon as one has done well.

    A store that comes back takes connections before it can serve them (SeaweedFS 4.48 answered such puts after up to
    19 s): a call that hangs like that would hold a paid image for all the silence that a healthy store may take.
    """

    def __init__(self, most_s: float, again_s: float) -> None:
        self._most_s = most_s
        self._again_s = self._enough_s = min(again_s, most_s)
        self.now_s = most_s

    def worked(self) -> None:
        self.now_s, self._enough_s = self._most_s, self._again_s

    def failed(self) -> None:
        """By an answer, or without one, but in time: that says nothing of how long the others need."""
        self.now_s = min(self.now_s, self._enough_s)

    def ran_out(self, allowed_s: float) -> None:
        """A call took all that it was allowed: perhaps it needs more. Several at once are one sign of that."""
        self._enough_s = min(self._most_s, max(self._enough_s, 2 * allowed_s))
        self.now_s = max(self.now_s, self._enough_s)
