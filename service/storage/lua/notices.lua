-- Notifications to callers: an outbox. A notice is due from the very write after which its job, or batch, has nothing
-- left to do but to be told of; it is due until it is delivered, given up or turned off.

local TRIES_KEPT = 50

local function pending(id)
  call('HSET', P .. 'notice:' .. id, 'state', 'pending', 'since', int(now), 'tries', 0)
  call('PERSIST', P .. 'notice:' .. id)
  call('PERSIST', P .. 'tries:' .. id)
  call('ZADD', P .. 'notices', int(now), id)
  call('ZADD', P .. 'due', int(now), 'notify:' .. id)
  call('ZADD', P .. 'rung', int(now), 'notify:' .. id)
end

-- `where`: {url = …}, or {hook = …} where address and secret came sealed. What has its notice already keeps it.
local function notify(id, caller, where)
  local key = P .. 'notice:' .. id
  if not where or call('EXISTS', key) == 1 then return end
  call('HSET', key, 'caller', caller, 'url', where.url or '', 'hook', where.hook or '')
  pending(id)
end

local function rest_notice(id)
  call('ZREM', P .. 'notices', id)
  for _, name in ipairs({'due', 'rung'}) do call('ZREM', P .. name, 'notify:' .. id) end
end

-- Its job was deleted: there is nothing left to tell.
local function drop_notice(id)
  call('DEL', P .. 'notice:' .. id, P .. 'tries:' .. id)
  rest_notice(id)
end

-- Who sends it now? Only what is due, and then nobody else until the lease is over. taken (its record) | none
function verbs.take_notice()
  local member = 'notify:' .. a.id
  local at = num(call('ZSCORE', P .. 'due', member))
  if not at or at > now then return {'none', int(now), {}} end
  if call('HGET', P .. 'notice:' .. a.id, 'state') ~= 'pending' then
    rest_notice(a.id)
    return {'none', int(now), {}}
  end
  call('ZADD', P .. 'due', int(now + a.lease_ms), member)
  call('ZREM', P .. 'rung', member)
  return {'taken', int(now), {}, call('HGETALL', P .. 'notice:' .. a.id)}
end

-- What came of one try. A fact: whoever was late with it is heard, too; what is over stays over, but a delivery counts.
-- told | gone (its job was deleted meanwhile)
function verbs.tell_notice()
  local key = P .. 'notice:' .. a.id
  local state = call('HGET', key, 'state')
  if not state then return {'gone', int(now), {}} end
  a.attempt.at = int(now)
  call('RPUSH', P .. 'tries:' .. a.id, cjson.encode(a.attempt))
  call('LTRIM', P .. 'tries:' .. a.id, -TRIES_KEPT, -1)
  call('HINCRBY', key, 'tries', 1)
  call('HINCRBY', P .. 'notified', a.to == 'pending' and 'failed' or a.to, 1)
  if a.to == 'pending' then
    if state == 'pending' then call('ZADD', P .. 'due', int(now + a.due_ms), 'notify:' .. a.id) end
  elseif state == 'pending' or a.to == 'delivered' then
    call('HSET', key, 'state', a.to)
    call('PEXPIRE', key, cfg.tomb_ms)
    rest_notice(a.id)
  end
  if call('HGET', key, 'state') ~= 'pending' then call('PEXPIRE', P .. 'tries:' .. a.id, cfg.tomb_ms) end
  return {'told', int(now), {}}
end

-- A caller wants it again, whatever became of it: from now on it is as new, under the same id. resent | none
function verbs.resend()
  notify(a.id, a.caller, a.notify)
  if call('EXISTS', P .. 'notice:' .. a.id) == 0 then return {'none', int(now), {}} end
  pending(a.id)
  return {'resent', int(now), {}}
end

-- {its record, its tries as JSON, oldest first, when it is due or ''}. seen | none
function verbs.notice()
  local flat = call('HGETALL', P .. 'notice:' .. a.id)
  local tries = call('LRANGE', P .. 'tries:' .. a.id, 0, -1)
  local due = call('ZSCORE', P .. 'due', 'notify:' .. a.id)
  return {#flat > 0 and 'seen' or 'none', int(now), {}, flat, tries, due or ''}
end

-- {how many are pending, since when the oldest (or ''), counts of tries by what came of them}
function verbs.notice_figures()
  local oldest = call('ZRANGE', P .. 'notices', 0, 0, 'WITHSCORES')
  return {'told', int(now), {}, call('ZCARD', P .. 'notices'), oldest[2] or '', call('HGETALL', P .. 'notified')}
end
