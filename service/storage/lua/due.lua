-- What must be looked at, when, and by whom.

-- A queued job that is due and has no slot takes its place among those that wait. True: nothing to run now.
local function must_wait(id, r)
  if r.status ~= 'queued' or call('ZSCORE', P .. 'slots', id) then return false end
  if r.deadline_at and r.deadline_at <= now then return false end
  call('ZADD', P .. 'due', int(math.min(now + SAFETY_MS, r.deadline_at or math.huge)), 'job:' .. id)
  wait(id, r.group, r.priority, r.caller)
  return true
end

local function lease(id)
  call('ZADD', P .. 'due', int(now + a.lease_ms), 'job:' .. id)
  call('ZREM', P .. 'rung', 'job:' .. id)
  if a.who then
    call('HSET', P .. 'inflight:' .. (a.alone or a.who), id, int(now + a.lease_ms))
    call('HSET', P .. 'holders', id, a.alone or a.who)
    call('ZADD', P .. 'procs', 'NX', int(now), a.who)
  end
  return id
end

local function take(id)
  local member = 'job:' .. id
  local at = num(call('ZSCORE', P .. 'due', member))
  if not at or at > now then return nil, {} end
  local v = call('HMGET', P .. 'job:' .. id, 'status', 'group', 'priority', 'caller', 'deadline_at', 'queue', 'spool',
    'result_expires_at')
  if not v[1] and call('EXISTS', P .. 'job:' .. id) == 0 then
    call('ZREM', P .. 'due', member) -- its record is gone: nothing can be done for it
    return nil, {}
  end
  if not sound(id) then return lease(id), {} end -- whoever asked will find out
  if v[6] ~= a.queue then return nil, {} end
  local r = {status = v[1], group = v[2], priority = v[3], caller = v[4], deadline_at = num(v[5]), spool = v[7] or '',
    expires_at = num(v[8])}
  if must_wait(id, r) then return nil, admit() end
  if elsewhere(id, r) or barred(id) or abandoned(id) then return nil, {} end
  return lease(id), {}
end

-- Who looks at it now? A `collect` bell means: take what expires first, then what lies in the process's own spool;
-- `alone`: this one, of that group. claimed | none
function verbs.claim()
  local id, ring = nil, {}
  if a.queue == 'collect' and not a.alone then
    for _, name in ipairs({'ripe', a.spool and 'spooled:' .. a.spool}) do
      for _, ripe in ipairs(call('ZRANGE', P .. name, 0, 199)) do
        id = id or take(ripe)
        if id then break end
      end
    end
  end
  if not id then id, ring = take(a.id) end
  if not id then return {'none', int(now), ring} end
  if id ~= a.id then call('ZREM', P .. 'rung', 'job:' .. a.id) end -- its bell is spent: the sweep rings again
  if a.spool then call('ZADD', P .. 'spools', int(now), a.spool) end
  local gate = call('HGET', P .. 'gate', 'reason') or ''
  return {'claimed', int(now), ring, id, int(now + a.lease_ms), gate, call('HGETALL', P .. 'job:' .. id)}
end

-- A step that still runs keeps its lease, if nobody moved the due time meanwhile. renewed | lost
function verbs.renew()
  local at = num(call('ZSCORE', P .. 'due', 'job:' .. a.id))
  if at ~= a.lease_end then return {'lost', int(now), {}} end
  lease(a.id)
  return {'renewed', int(now), {}, int(now + a.lease_ms)}
end

-- Whose step is next, `close` if the job has ended (or is sealed) and that is only to be written down; of a record that
-- cannot say it, any queue's, which will find out.
local function queue_of(id)
  local queue, ended = unpack(call('HMGET', P .. 'job:' .. id, 'queue', 'finished_at'))
  if queue == 'collect' and num(ended) then return 'close' end
  if queue == 'submit' or queue == 'collect' then return queue end
  return call('EXISTS', P .. 'job:' .. id) == 1 and 'collect' or nil
end

-- What is due and unclaimed, soonest first: {queue or kind, id, …}. Of all that is due the `most` from the rank `start`
-- are looked at; last comes the rank to go on from, 0 if that was all. A bell that led to nothing goes out again after
-- `again_ms`.
function verbs.ripen()
  local out, gone = {}, 0
  local ring = admit()
  local room = a.room
  call('ZREMRANGEBYSCORE', P .. 'rung', '-inf', int(now - a.again_ms))
  local suspects = call('HLEN', P .. 'suspects') > 0
  local page = call('ZRANGE', P .. 'due', '-inf', int(now), 'BYSCORE', 'LIMIT', a.start, a.most)
  for _, member in ipairs(page) do
    local kind, id = string.match(member, '^(%a+):(.+)$')
    local apart = suspects and kind == 'job' and call('HGET', P .. 'suspects', id)
    local queue = kind == 'job' and queue_of(id) or kind
    if queue == 'job' then gone = gone + call('ZREM', P .. 'due', member) -- its record is gone
    elseif (not apart or apart == 'submit') and (room[queue] or 0) > 0 and call('ZADD', P .. 'rung', 'NX', int(now), member) == 1 then
      room[queue] = room[queue] - 1
      out[#out + 1], out[#out + 2] = queue, id
    end
  end
  return {'ripe', int(now), ring, out, #page == a.most and a.start + #page - gone or 0}
end

-- Something outside the records has work left: a staged upload, or objects that must go. `due_ms` nil: done with it.
function verbs.plan()
  local member = a.kind .. ':' .. a.id
  if a.due_ms then call('ZADD', P .. 'due', int(now + a.due_ms), member)
  else
    call('ZREM', P .. 'due', member)
    call('ZREM', P .. 'rung', member)
  end
  return {'planned', int(now), {}}
end
