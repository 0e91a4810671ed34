-- The writes that make, move and end a job.

local function schedule(id, due_ms, deadline)
  local at = now + due_ms
  if deadline and a.deadline_counts then at = math.min(at, deadline) end
  call('ZADD', P .. 'due', int(at), 'job:' .. id)
end

-- How many jobs the batch waits for to be closed; nil: there is none, or it is over.
local function awaiting(batch)
  if not batch or batch == '' then return end
  local r = call('HMGET', P .. 'batch:' .. batch, 'total', 'marked')
  return r[2] ~= '1' and num(r[1]) or nil
end

-- The last job of a batch is closed: its sidecar is written, or it was deleted. Then the batch is due.
local function close(id, batch)
  local total = awaiting(batch)
  if not total then return end
  call('SADD', P .. 'closed:' .. batch, id)
  if call('SCARD', P .. 'closed:' .. batch) >= total then call('ZADD', P .. 'due', int(now), 'batch:' .. batch) end
end

-- The old job hands over its purchase and its slot to the one that retries it. `left`: its attempts that are still open;
-- a POST whose outcome is not known yet stays its own, with a slot, since the provider may count it.
local function hand_over()
  local old = P .. 'job:' .. a.retry_of
  call('HSET', old, 'retried_by', a.id, 'open', a.left)
  call('HINCRBY', old, 'version', 1)
  seal(a.retry_of)
  local r = call('HMGET', old, 'open', 'sidecar', 'group')
  if r[1] == '[]' then hold(a.retry_of, r[3], false) end -- its own group: a release may have changed the caps
  if r[1] == '[]' and r[2] == '1' then -- the purchase was all that it still waited for
    call('ZREM', P .. 'due', 'job:' .. a.retry_of)
    call('ZADD', P .. 'ended', int(now), a.retry_of)
  end
  for _, task in ipairs(a.tasks) do call('SET', P .. 'task:' .. task, a.id) end
end

-- What a job begins with: its record, its place in the indexes, and what is looked at next. Its deadline counts from
-- when it was accepted.
local function born(fields, accepted)
  local deadline = a.deadline_ms and accepted + a.deadline_ms
  if deadline then fields[#fields + 1] = 'deadline_at'; fields[#fields + 1] = int(deadline) end
  write(a.id, fields, a.stamps)
  index(a.id, a.caller, a.batch, nil, a.to)
  call('ZREM', P .. 'due', 'stage:' .. a.id)
  if a.retry_of then hand_over() end
  emit(a.id, a.caller, a.batch, nil)
  if a.to == 'queued' then
    schedule(a.id, SAFETY_MS, deadline)
    wait(a.id, a.group, a.priority, a.caller)
  else
    schedule(a.id, 0, nil)
    call('ZADD', P .. 'rung', int(now), 'job:' .. a.id)
    hold(a.id, a.group, a.holds_slot)
    if a.expires_at then call('ZADD', P .. 'ripe', int(a.expires_at), a.id) end
  end
end

-- How many jobs wait for a slot, with those of sealed batches that are not jobs yet.
local function backlog() return call('ZCARD', P .. 'jobs:queued') + (num(call('GET', P .. 'folded')) or 0) end

local function uploading(caller, key) return P .. 'upload:' .. caller .. ':' .. key end

-- A new job: its record, indexes, due time, idempotency key and place in the queue.
-- created | already (the call was sent twice) | replayed, conflict (the key is known) | busy (a batch is uploaded under
-- it) | full | retried | stale | gone (the line of the batch that retries was dropped)
function verbs.create()
  if call('EXISTS', P .. 'job:' .. a.id) == 1 then return {'already', int(now), {}} end
  if a.idem then
    local known = call('GET', P .. 'idem:' .. a.caller .. ':' .. a.idem)
    if known then
      local hash, id = string.match(known, '^(%S+) (%S+)$')
      return {hash == a.idem_hash and 'replayed' or 'conflict', int(now), {}, id}
    end
    local uploads = uploading(a.caller, a.idem)
    if call('EXISTS', uploads) == 1 then return {'busy', int(now), {}, ''} end
  end
  if a.retry_of then
    local known = call('HGET', P .. 'job:' .. a.retry_of, 'retried_by')
    if known and known ~= '' then return {'retried', int(now), {}, known} end
    if not stands(a.retry_of, a.old_version) or not sound(a.retry_of) then return {'stale', int(now), {}} end
    if a.batch ~= '' and not call('LPOS', P .. 'lines:' .. a.batch, a.retry_of) then return {'gone', int(now), {}} end
  elseif cfg.backlog_max > 0 and backlog() >= cfg.backlog_max then
    return {'full', int(now), {}}
  end
  if a.idem then
    call('SET', P .. 'idem:' .. a.caller .. ':' .. a.idem, a.idem_hash .. ' ' .. a.id, 'PX', cfg.idem_ms)
  end
  born({unpack(ARGV, 3)}, now)
  if a.retry_of and a.batch ~= '' then -- the line of a batch that retries has become this job
    call('LREM', P .. 'lines:' .. a.batch, 1, a.retry_of)
    call('HINCRBY', P .. 'batch:' .. a.batch, 'made', 1)
    call('DECRBY', P .. 'folded', 1)
  end
  return {'created', int(now), admit()}
end

-- The one write that moves a job. applied | already | stale | gone | corrupt | taken (the provider task is another's)
function verbs.apply()
  local key = P .. 'job:' .. a.id
  local r = call('HMGET', key, 'version', 'seen', 'status', 'caller', 'model', 'group', 'batch_id', 'deadline_at',
    'spool')
  if not r[1] then return {'gone', int(now), {}} end
  local seen = r[2] or ''
  if string.find(seen, a.event_id, 1, true) then return {'already', int(now), {}} end
  if not stands(a.id, a.version) then return {'stale', int(now), {}} end
  if not sound(a.id) then return {'corrupt', int(now), {}} end
  if a.own then
    local owner = call('GET', P .. 'task:' .. a.own)
    if owner and owner ~= a.id then return {'taken', int(now), {}} end
    call('SET', P .. 'task:' .. a.own, a.id)
  end
  local from, caller, model, group, batch = r[3], r[4], r[5], r[6], r[7]
  local width = #a.event_id + 1
  local fields = {unpack(ARGV, 3)}
  fields[#fields + 1] = 'seen'
  fields[#fields + 1] = string.sub(seen .. a.event_id .. ',', -width * SEEN)
  write(a.id, fields, a.stamps)
  if from ~= a.to then index(a.id, caller, batch, from, a.to) end
  if a.signal then listen(group) end
  hold(a.id, group, a.holds_slot)
  if from == 'queued' and a.to ~= 'queued' then unwait(a.id, group) end
  place(a.id, r[9])
  if a.ring then call('ZADD', P .. 'rung', int(now), 'job:' .. a.id) else call('ZREM', P .. 'rung', 'job:' .. a.id) end
  if a.due_ms then schedule(a.id, a.due_ms, num(r[8]))
  elseif not a.keep_due then
    call('ZREM', P .. 'due', 'job:' .. a.id)
    call('ZADD', P .. 'ended', int(now), a.id)
  end
  if a.event == 'sidecar_written' then
    close(a.id, batch)
    notify(a.id, caller, a.notify)
  end
  if a.event == 'ready' and a.to == 'collecting' and from ~= 'collecting' then learn(a.id, model) end
  emit(a.id, caller, batch, from)
  return {'applied', int(now), admit()}
end

-- `own_ms`: how long its provider tasks still count as its own, so that one whose id comes twice is nobody else's.
local function forget(id, own_ms)
  local key = P .. 'job:' .. id
  local r = call('HMGET', key, 'caller', 'batch_id', 'status', 'tasks', 'group')
  if r[1] and sound(id) then
    close(id, r[2])
    index(id, r[1], r[2], r[3], nil)
    hold(id, r[5], false)
    for _, task in pairs(cjson.decode(r[4])) do
      if call('GET', P .. 'task:' .. task) == id then call('PEXPIRE', P .. 'task:' .. task, own_ms or 0) end
    end
  end
  local holder = call('HGET', P .. 'holders', id)
  if holder then drop(id, holder) end
  let_off(id)
  call('DEL', key, P .. 'log:' .. id)
  for _, name in ipairs({'due', 'rung'}) do call('ZREM', P .. name, 'job:' .. id) end
  call('ZREM', P .. 'ended', id)
  call('ZREM', P .. 'ripe', id)
  call('ZREM', P .. 'awaited', id)
end

-- A record that cannot be read ends: failed(record_corrupt), with the fields in ARGV, which are what is sure of it. What
-- it was is kept aside. One that had nothing left to do just goes: its sidecar in the bucket says what became of it.
-- condemned | buried | stale (it is not what the caller has read) | gone
function verbs.condemn()
  local key = P .. 'job:' .. a.id
  if call('EXISTS', key) == 0 then return {'gone', int(now), {}} end
  if digest(a.id) ~= a.digest or sound(a.id) and not a.unreadable then return {'stale', int(now), {}} end
  local over = call('ZSCORE', P .. 'ended', a.id)
  call('RENAME', key, P .. 'corrupt:' .. a.id)
  call('PEXPIRE', P .. 'corrupt:' .. a.id, cfg.tomb_ms)
  for _, status in ipairs(STATUSES) do index(a.id, a.caller, a.batch, status, nil) end
  local groups = {call('HGET', P .. 'corrupt:' .. a.id, 'group') or '', unpack(cfg.groups)} -- what it says may be wrong
  for _, group in ipairs(groups) do
    hold(a.id, group, false)
    unwait(a.id, group)
  end
  unplace(a.id)
  if over then
    forget(a.id)
    return {'buried', int(now), {}}
  end
  write(a.id, {unpack(ARGV, 3)}, a.stamps)
  index(a.id, a.caller, a.batch, nil, a.to)
  schedule(a.id, 0, nil)
  call('ZADD', P .. 'rung', int(now), 'job:' .. a.id)
  emit(a.id, a.caller, a.batch, a.from)
  return {'condemned', int(now), admit()}
end

-- A running batch still needs the record, for its manifest.
local function outlived(id)
  local batch = call('HGET', P .. 'job:' .. id, 'batch_id')
  return batch and batch ~= '' and call('SISMEMBER', P .. 'closed:' .. batch, id) == 1
end

local function forget_batch(id)
  local caller = call('HGET', P .. 'batch:' .. id, 'caller')
  call('DEL', P .. 'batch:' .. id)
  for _, name in ipairs({'batches', 'batches@' .. (caller or '')}) do call('ZREM', P .. name, id) end
  call('ZREM', P .. 'ended', id)
end

-- Records that ended long enough ago leave Redis; the bucket keeps their sidecars.
function verbs.expire()
  local ids = call('ZRANGE', P .. 'ended', '-inf', int(now - a.retention_ms), 'BYSCORE', 'LIMIT', 0, a.most)
  for _, id in ipairs(ids) do
    if string.sub(id, 1, 6) == 'batch_' then forget_batch(id)
    elseif outlived(id) then call('ZADD', P .. 'ended', int(now), id)
    else forget(id) end
  end
  return {'expired', int(now), {}, #ids}
end

-- Its task may still run at the provider, who counts it: the slot stays until somebody has seen that it is over.
local function leave_slot(id)
  local r = call('HMGET', P .. 'job:' .. id, 'group', 'open', 'tasks', 'intent_at', 'submitted_at')
  if not sound(id) or r[2] == '[]' then return end
  call('HSET', P .. 'remains:' .. id, 'group', r[1], 'open', r[2], 'tasks', r[3], 'intent_at', r[4], 'submitted_at', r[5])
  call('ZADD', P .. 'due', int(now), 'settle:' .. id)
  return r[1]
end

-- A caller deletes an ended job: the record goes at once, its objects as due work. buried | stale | gone
function verbs.bury()
  if call('EXISTS', P .. 'job:' .. a.id) == 0 then return {'gone', int(now), {}} end
  if not stands(a.id, a.version) then return {'stale', int(now), {}} end
  local busy = call('ZSCORE', P .. 'due', 'job:' .. a.id)
  drop_notice(a.id)
  local group = leave_slot(a.id)
  forget(a.id, cfg.tomb_ms)
  if group then hold(a.id, group, true) end
  call('SET', P .. 'tomb:' .. a.id, a.caller, 'PX', cfg.tomb_ms)
  -- A step that still runs may write its sidecar once more: erase again when it surely has ended.
  call('ZADD', P .. 'due', int(now + (busy and a.busy_ms or 0)), 'erase:' .. a.id)
  return {'buried', int(now), admit()}
end

-- Nothing of the deleted job runs at the provider any more: its slot is free. vacated
function verbs.vacate()
  local group = call('HGET', P .. 'remains:' .. a.id, 'group')
  if group then hold(a.id, group, false) end
  call('DEL', P .. 'remains:' .. a.id)
  return {'vacated', int(now), admit()}
end
