"""The safety mechanisms: what each is, where it stands, and which test must turn red without it."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Mechanism:
    """`there` stands exactly once in `file`; without the mechanism it is `gone`; `test` must see it."""

    name: str
    file: str
    there: str
    gone: str
    test: str


MECHANISMS: Final = (
    Mechanism(
        "fence",
        "service/storage/lua/jobs.lua",
        "if r[1] ~= a.version then return {'stale', int(now), {}} end",
        "",
        "tests/contract/test_store.py",
    ),
    Mechanism(
        "event ids",
        "service/storage/lua/jobs.lua",
        "if string.find(seen, a.event_id, 1, true) then",
        "if false then",
        "tests/contract/test_store_machine.py",
    ),
    Mechanism(
        "due index",
        "service/storage/lua/jobs.lua",
        "  call('ZADD', P .. 'due', int(at), 'job:' .. id)\n",
        "",
        "tests/contract/test_store_machine.py",
    ),
    Mechanism(
        "one owner of a provider task",
        "service/storage/lua/jobs.lua",
        "if owner and owner ~= a.id then return {'taken', int(now), {}} end",
        "",
        "tests/contract/test_store.py",
    ),
    Mechanism(
        "cap",
        "service/storage/lua/slots.lua",
        "return free <= 0 or (priority ~= 'high' and free <= kept)",
        "return false",
        "tests/contract/test_store.py",
    ),
    Mechanism(
        "checksum of a record",
        "service/storage/record.py",
        "if told != checksum(flat):",
        "if False:",
        "tests/contract/test_store.py",
    ),
    Mechanism(
        "unknown-outcome rule",
        "workers/submit.py",
        'return events.OutcomeUnknown(attempt=attempt, detail=getattr(answer, "detail", "no task id"))',
        'return events.Refused(attempt=attempt, detail="", delay_s=0.0)',
        "tests/integration/test_submit.py",
    ),
    Mechanism(
        "intent before the POST",
        "workers/submit.py",
        "        if intended is None:\n            return\n        if lease.holds():",
        "        if lease.holds():",
        "tests/integration/test_submit.py",
    ),
    Mechanism(
        "put once",
        "service/storage/bucket.py",
        'once: dict[str, Any] = {"IfNoneMatch": "*"}',
        "once: dict[str, Any] = {}",
        "tests/contract/test_bucket.py",
    ),
    Mechanism(
        "dial guard",
        "workers/network.py",
        "if why := why_not_public(address):",
        'if why := "":',
        "tests/http/test_download.py::test_a_name_that_flips_to_loopback_is_never_dialled_there",
    ),
    Mechanism(
        "function list",
        "workers/entry.py",
        "if name not in listed:",
        "if False:",
        "tests/contract/test_listed_job.py",
    ),
    Mechanism(
        "proof of a callback",
        "service/api/webhooks.py",
        "if proof is Proof.WRONG:\n        return events.Disproved()",
        "if False:\n        return events.Disproved()",
        "tests/http/test_webhooks.py",
    ),
    Mechanism(
        "spool",
        "workers/pull.py",
        "        safe = await self._spool.keep(job.id, got)",
        "        safe = False",
        "tests/integration/test_spool_steps.py",
    ),
    Mechanism(
        "lease",
        "service/storage/lua/due.lua",
        "if not at or at > now then return nil, {} end",
        "if not at then return nil, {} end",
        "tests/contract/test_store.py",
    ),
    Mechanism(
        "suspects run apart",
        "service/storage/lua/suspects.lua",
        "  if a.alone then return group ~= a.alone end",
        "  do return false end",
        "tests/contract/test_suspects.py",
    ),
    Mechanism(
        "replicas before a 202",
        "service/storage/store.py",
        "if confirmed < self.limits.replicas and reply[0] in _WRITTEN:",
        "if False:",
        "tests/faults/test_redis_outages.py::test_no_202_without_the_replica[3]",
    ),
    Mechanism(
        "a batch is sealed whole",
        "service/storage/lua/batches.lua",
        "or call('LLEN', P .. 'lines:' .. a.id) ~= a.total then",
        "then",
        "tests/contract/test_batches.py",
    ),
)
