-- Requests that are one and the same to their caller: a client that sends no key, and tries again by itself.
--   owed:{caller}:{digest}   zset    the series of this request whose answer nobody was given → until when somebody
--                                    surely waits for it: the end of a lease
--   given:{caller}:{digest}  string  the latest whose answer went out; kept for a client that never saw it

-- Does this request belong to one before it? It joins the oldest that is owed and that nobody waits for any more. If its
-- client says that it is a try (`again`), then else the newest that is waited for (its own connection may not be known to
-- be gone), or the one that was given last. joined | begun, each with the name of the series
function verbs.join()
  local owed, given = P .. 'owed:' .. a.caller .. ':' .. a.digest, P .. 'given:' .. a.caller .. ':' .. a.digest
  call('ZREMRANGEBYSCORE', owed, '-inf', int(now - cfg.idem_ms)) -- their jobs are not known by their keys any more
  local name = call('ZRANGE', owed, '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
  if not name and a.again then name = call('ZREVRANGE', owed, 0, 0)[1] or call('GET', given) end
  local joined = name and true
  name = name or a.name
  call('ZADD', owed, int(now + a.lease_ms), name)
  call('PEXPIRE', owed, cfg.idem_ms)
  return {joined and 'joined' or 'begun', int(now), {}, name}
end

-- A connection waits on (`lease_ms`), has gone (0), or was given its answer (`delivered`). told
function verbs.attended()
  local owed, given = P .. 'owed:' .. a.caller .. ':' .. a.digest, P .. 'given:' .. a.caller .. ':' .. a.digest
  if a.delivered then
    call('ZREM', owed, a.name)
    call('SET', given, a.name, 'PX', a.kept_ms)
  else call('ZADD', owed, 'XX', int(now + a.lease_ms), a.name) end
  return {'told', int(now), {}}
end
