"""What a process counts, for Prometheus. No label holds an id, a URL, a caller's text or a secret."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.domain.job import Status
from service.storage.notices import NoticeFigures
from service.storage.terms import Callbacks, Figures

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, which nobody reads

TRIES: Final = ("delivered", "failed", "given_up", "off")
GATE_REASONS: Final = ("held", "throttled", "refused", "storage")


class Metrics:
    """One registry of its own per process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("darkroom_http_requests", "Answers by route and status.", "route", "status")
        self.callbacks = self._counter("darkroom_callbacks", "Provider callbacks by what became of them.", "outcome")
        self.batch_lines = self._counter("darkroom_batch_lines", "Lines of batches taken in over HTTP.")
        self.redis_up = self._gauge("darkroom_redis_up", "1 if the figures of Redis are of now.")
        self._jobs = self._gauge("darkroom_jobs", "Jobs on record by status.", "status")
        self._slots = self._gauge("darkroom_slots_in_use", "Provider tasks that may be outstanding.")
        self._cap = self._gauge("darkroom_slots_cap", "FLUX_MAX_IN_FLIGHT; 0 = no cap.")
        self._working_cap = self._gauge(
            "darkroom_slots_working_cap", "The cap in force, less than the set one after 429s."
        )
        self._due = self._gauge("darkroom_due", "Entries of the due set.")
        self._oldest_due = self._gauge("darkroom_oldest_due_age_seconds", "How late the oldest due work is.")
        self._gate = self._gauge("darkroom_gate_closed", "1 while submissions pause for this reason.", "reason")

        self._images_told = self._gauge(
            "darkroom_images_told", "Of the last 200 images: what became of the callback.", "by"
        )
        self._lost_share = self._gauge(
            "darkroom_callbacks_lost_share", "0 to 1; above 0.2 polling stops leaning on them."
        )

        self._suspects = self._gauge(
            "darkroom_suspects", "Jobs that were in flight when a worker process died, and run apart."
        )
        self._groups = self._gauge("darkroom_suspect_groups", "Groups of them: each runs in a process of its own.")
        self._crashes_most = self._gauge(
            "darkroom_suspect_crashes_most", "How often one of them has crashed when it ran alone, at most."
        )

        self._notices = self._gauge("darkroom_notifications_pending", "Notifications that are not delivered yet.")
        self._oldest_notice = self._gauge(
            "darkroom_notifications_oldest_age_seconds", "For how long the oldest of them has been pending."
        )
        self._tries = self._gauge(
            "darkroom_notification_tries", "Posts to callers by what came of them, since Redis began.", "outcome"
        )

    def show(self, figures: Figures, callbacks: Callbacks, notices: NoticeFigures, cap: int) -> None:
        """Take over what the store says."""
        self._notices.set(notices.pending)
        self._oldest_notice.set(notices.oldest_s)
        for outcome in TRIES:
            self._tries.labels(outcome).set(notices.tries.get(outcome, 0))
        for by in ("first", "late", "lost", "overdue"):
            self._images_told.labels(by).set(getattr(callbacks, by))
        self._lost_share.set(callbacks.lost_share)
        for status in Status:
            self._jobs.labels(status.value).set(figures.counts.get(status, 0))
        self._slots.set(figures.slots)
        self._cap.set(cap)
        self._working_cap.set(float(figures.gate.get("cap:") or cap))
        self._due.set(figures.due)
        self._oldest_due.set(figures.oldest_due_s)
        self._suspects.set(figures.suspects.jobs)
        self._groups.set(figures.suspects.groups)
        self._crashes_most.set(figures.suspects.crashes_most)
        for reason in GATE_REASONS:
            self._gate.labels(reason).set(reason in figures.closed)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, registry=self._registry)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        return Gauge(name, about, labels, registry=self._registry)
