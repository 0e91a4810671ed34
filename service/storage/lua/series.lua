-- Requests that are one and the same to their caller: a client that sends no key, and tries again by itself.
--   series:{caller}:{digest}        string  the name of the latest series of this request, `delivered` behind it
--   series:{caller}:{digest}:alive  string  the same while a connection waits for it; a lease

-- Does this request belong to one before it? `again`: its client says so. Else it joins what nobody waits for any more
-- and nobody was given. joined | begun, each with the name of the series
function verbs.join()
  local key = P .. 'series:' .. a.caller .. ':' .. a.digest
  local known = call('GET', key)
  local name = known and string.match(known, '^(%S+)')
  local alive = call('EXISTS', key .. ':alive') == 1
  local delivered = known and string.find(known, ' delivered', 1, true)
  if name and (a.again or not (alive or delivered)) then
    call('SET', key .. ':alive', name, 'PX', a.lease_ms)
    return {'joined', int(now), {}, name}
  end
  call('SET', key, a.name, 'PX', cfg.idem_ms)
  call('SET', key .. ':alive', a.name, 'PX', a.lease_ms)
  return {'begun', int(now), {}, a.name}
end

-- A connection waits on (`lease_ms`), has gone (0), or was given its answer (`delivered`). told
function verbs.attended()
  local key = P .. 'series:' .. a.caller .. ':' .. a.digest
  if call('GET', key .. ':alive') == a.name then
    if a.lease_ms > 0 then call('PEXPIRE', key .. ':alive', a.lease_ms) else call('DEL', key .. ':alive') end
  elseif a.lease_ms > 0 then call('SET', key .. ':alive', a.name, 'PX', a.lease_ms, 'NX') end
  if a.delivered and call('GET', key) == a.name then call('SET', key, a.name .. ' delivered', 'PX', a.kept_ms) end
  return {'told', int(now), {}}
end
