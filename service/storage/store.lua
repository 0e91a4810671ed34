-- The guarded writes. Every change of a job happens in one run of this script: Redis runs it alone and whole, and an
-- append-only file never holds half of it. Time is Redis's own. Replies are lists; the first word says what happened.
--
-- KEYS[1]  the prefix of all our keys (one node or one primary: keys are made here, so not Redis Cluster)
-- ARGV[1]  verb        ARGV[2]  its arguments, JSON        ARGV[3…]  fields of the record: name, value, name, value …
--
--   job:{id}            hash    the record; `version` counts writes, `sum` is the SHA-1 over all other fields
--   corrupt:{id}        hash    what a record was that could not be read, for diagnosis
--   log:{id}            list    the job's own events, JSON, oldest first
--   due                 zset    {kind}:{id} → when it must be looked at (ms); a claim moves it to the end of a lease
--   rung                zset    {kind}:{id} → when its bell last went out; a claim takes it off
--   ripe                zset    jobs whose image waits at a URL, and nowhere else → when that expires
--   spooled:{spool}     zset    jobs whose image waits in a spool → when its URL expires
--   spools              zset    spools → the last beat of a process that serves it
--   slots[:{model}]     zset    jobs that hold a slot → since when; with a model: those under a cap of its own
--   wait:{model}:{prio} zset    jobs that wait for a slot → their tag (start-time fair queueing)
--   tags, clock         hash, string   last tag of each caller and priority; the virtual time
--   gate                hash    until, reason, failures; cap:{model} = working caps found by 429s; storage_until
--   jobs[@caller][:status], jobs#batch[:status]   zset of ids, for lists (ids are time-ordered)
--   task:{provider id}  string  the job that owns a provider task
--   idem:{caller}:{key} string  "{hash of the body} {job id}"
--   ended               zset    jobs with nothing left to do → since when; the sweep forgets them after the retention
--   tomb:{id}           string  the caller of a deleted job
--   procs               zset    worker processes → their last beat; `watch`, hash: since when somebody looks at them
--   inflight:{who}      hash    the jobs in the hands of a process, or of a group → the end of the lease it was given
--   holders             hash    those jobs → in whose hands
--   suspects            hash    jobs that were in flight when a process died → the group they run in, or `submit`: only
--                               that step of it is suspect, and its time is yet to come
--   groups, grouped     zset, string   groups of suspects → when due, or the end of their lease; how many there were
--   group:{group}       list    its jobs
--   crashes             hash    suspects → how often they crashed when alone
--   events              stream  one entry a transition, for readers
--   took:{model}        list    the last durations from acceptance to ready, ms
--   found               list    of the last images: webhook | late:{ms} | lost (what became of the callback)
--   awaited             zset    jobs that a poll found ready and whose callback may yet come → since when

local P, verb, a = KEYS[1], ARGV[1], cjson.decode(ARGV[2])
local call = redis.call
local cfg = a.cfg

local PROBE_MS = 30000       -- a closed gate lets one submission through this often
local REFUSALS_TO_CLOSE = 5  -- submissions in a row that could not be handed over
local SHRINK_GAP_MS = 2000   -- a burst of 429s is one 429
local EASE_MS = 5000         -- a shrunken cap gains one slot this often without any success
local SAFETY_MS = 3600000    -- a waiting job is looked at this often even if every wake-up was lost
local SEEN = 6               -- event ids kept for replayed calls
local LOG_LENGTH = 200
local FOUND_LENGTH = 200
local SPOOL_LOOK_MS = 10000   -- between looks whether a silent spool is back
local SPOOL_FORGET_MS = 7 * 86400000
local CALLBACK_LOST_MS = 60000 -- the provider tries again after 1, 5 and 30 s, then gives up
local ADMIT_AT_ONCE = 100
local WEIGHT = {high = 16, normal = 4, low = 1}
local PRIORITIES = {'high', 'normal', 'low'}
local STATUSES = {'queued', 'submitting', 'generating', 'collecting', 'succeeded', 'failed', 'cancelled'}

local function int(n) return string.format('%.0f', n) end

local function clock()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local now = clock()

local function num(text) if text and text ~= '' then return tonumber(text) end end

local function indexes(caller, batch, status)
  local names = {'jobs', 'jobs:' .. status, 'jobs@' .. caller, 'jobs@' .. caller .. ':' .. status}
  if batch and batch ~= '' then
    names[5], names[6] = 'jobs#' .. batch, 'jobs#' .. batch .. ':' .. status
  end
  return names
end

local function index(id, caller, batch, from, to)
  if from then for _, name in ipairs(indexes(caller, batch, from)) do call('ZREM', P .. name, id) end end
  if to then for _, name in ipairs(indexes(caller, batch, to)) do call('ZADD', P .. name, 0, id) end end
end

-- A flipped byte in a value would be served silently: readers recompute this and refuse the record.
-- NAMES, the record's fields in their order, stands before this file (a sort here would follow the server's locale).
local function digest(id)
  local values, parts, schema = call('HMGET', P .. 'job:' .. id, unpack(NAMES)), {}, ''
  for i, name in ipairs(NAMES) do
    if values[i] then parts[#parts + 1] = name .. '=' .. values[i] .. '\n' end
    if name == 'schema' then schema = values[i] or '' end
  end
  return schema .. ':' .. redis.sha1hex(table.concat(parts))
end

local function seal(id) call('HSET', P .. 'job:' .. id, 'sum', digest(id)) end

-- A record that is not sound is believed in nothing: to write over it would seal what is wrong in it.
local function sound(id) return call('HGET', P .. 'job:' .. id, 'sum') == digest(id) end

local function write(id, fields, stamps)
  local key = P .. 'job:' .. id
  if #fields > 0 then call('HSET', key, unpack(fields)) end
  for _, name in ipairs(stamps) do call('HSET', key, name, int(now)) end
  call('HINCRBY', key, 'version', 1)
  seal(id)
end

local function emit(id, caller, batch, from)
  local version = call('HGET', P .. 'job:' .. id, 'version')
  local event = {id = id, caller = caller, batch_id = batch, status = a.to, from = from, reason = a.event,
    at = int(now), version = version, by = a.by, detail = a.detail}
  local flat = {}
  for name, value in pairs(event) do
    if value == '' then event[name] = nil
    else flat[#flat + 1] = name; flat[#flat + 1] = value end
  end
  event.eid = call('XADD', P .. 'events', 'MAXLEN', '~', cfg.events_max, '*', unpack(flat))
  call('RPUSH', P .. 'log:' .. id, cjson.encode(event))
  call('LTRIM', P .. 'log:' .. id, -LOG_LENGTH, -1)
end

-- ---- slots ---------------------------------------------------------------------------------------------------------

local function hold(id, group, holds)
  if holds then
    call('ZADD', P .. 'slots', 'NX', int(now), id)
    if group ~= '' then call('ZADD', P .. 'slots:' .. group, 'NX', int(now), id) end
  else
    call('ZREM', P .. 'slots', id)
    if group ~= '' then call('ZREM', P .. 'slots:' .. group, id) end
  end
end

local function lane(group, priority) return P .. 'wait:' .. group .. ':' .. priority end

local function unwait(id, group) for _, p in ipairs(PRIORITIES) do call('ZREM', lane(group, p), id) end end

local function wait(id, group, priority, caller)
  if call('ZSCORE', lane(group, priority), id) then return end
  local who = caller .. '|' .. priority
  local tag = math.max(num(call('GET', P .. 'clock')) or 0, num(call('HGET', P .. 'tags', who)) or 0)
  tag = string.format('%.17g', tag + 1 / WEIGHT[priority])
  call('HSET', P .. 'tags', who, tag)
  call('ZADD', lane(group, priority), tag, id)
end

local function configured(group) return group == '' and cfg.cap or cfg.caps[group] or 0 end

-- The cap that is in force: what is configured, or less while 429s say so. 0 = none.
local function cap_of(group)
  local top, found = configured(group), num(call('HGET', P .. 'gate', 'cap:' .. group))
  if not found then return top end
  return math.floor(top > 0 and math.min(top, found) or found)
end

local function full(group, priority)
  local cap = cap_of(group)
  if cap == 0 then return false end
  local free = cap - call('ZCARD', P .. 'slots' .. (group ~= '' and ':' .. group or ''))
  local kept = math.min(2, math.floor(cap / 8)) -- the last few are for high alone
  return free <= 0 or (priority ~= 'high' and free <= kept)
end

-- The lane whose first job has the smallest tag, of those whose caps leave room.
local function first_waiting()
  local best
  for _, group in ipairs(cfg.groups) do
    for _, priority in ipairs(PRIORITIES) do
      local head = call('ZRANGE', lane(group, priority), 0, 0, 'WITHSCORES')
      if head[1] and (not best or tonumber(head[2]) < best.tag)
        and not full('', priority) and (group == '' or not full(group, priority)) then
        best = {id = head[1], tag = tonumber(head[2]), group = group, lane = lane(group, priority)}
      end
    end
  end
  return best
end

-- A cap that a 429 has found grows back: by `by` with each success, by one with time, or nobody would ever get through.
local function grow(group, by)
  local gate, field = P .. 'gate', 'cap:' .. group
  local found, top = num(call('HGET', gate, field)), configured(group)
  if not found then return end
  found = found + (by or 1 / found)
  if top > 0 and found >= top then call('HDEL', gate, field, 'shrunk:' .. group, 'eased:' .. group)
  else call('HSET', gate, field, string.format('%.6g', found)) end
end

local function ease()
  local gate = P .. 'gate'
  for _, group in ipairs(cfg.groups) do
    local changed = call('HMGET', gate, 'shrunk:' .. group, 'eased:' .. group)
    local since = math.max(num(changed[1]) or now, num(changed[2]) or 0)
    if now - since >= EASE_MS then
      call('HSET', gate, 'eased:' .. group, int(now))
      grow(group, 1)
    end
  end
end

-- As many waiting jobs as there are slots become due now. Returns their ids: RQ holds only work that can run.
local function admit()
  local ids = {}
  local gate = call('HMGET', P .. 'gate', 'until', 'reason', 'storage_until')
  if (num(gate[1]) or 0) > now or (num(gate[3]) or 0) > now then return ids end
  if gate[2] == 'throttled' then call('HDEL', P .. 'gate', 'until', 'reason', 'since', 'detail') end -- it is over
  local probing = gate[2] == 'held' or gate[2] == 'refused'
  ease()
  while #ids < ADMIT_AT_ONCE do
    local next_up = first_waiting()
    if not next_up then break end
    call('ZREM', next_up.lane, next_up.id)
    call('SET', P .. 'clock', string.format('%.17g', next_up.tag))
    hold(next_up.id, next_up.group, true)
    call('ZADD', P .. 'due', int(now), 'job:' .. next_up.id)
    call('ZADD', P .. 'rung', int(now), 'job:' .. next_up.id)
    ids[#ids + 1] = next_up.id
    if probing then
      call('HSET', P .. 'gate', 'until', int(now + PROBE_MS))
      break
    end
  end
  return ids
end

local function shrink(group)
  local gate, field = P .. 'gate', 'cap:' .. group
  if now - (num(call('HGET', gate, 'shrunk:' .. group)) or 0) < SHRINK_GAP_MS then return end
  local used = call('ZCARD', P .. 'slots' .. (group ~= '' and ':' .. group or ''))
  local cap = cap_of(group)
  if cap == 0 or used < cap then cap = used end
  call('HSET', gate, field, math.max(1, math.floor(cap * 0.75)), 'shrunk:' .. group, int(now))
end

-- What a submission's answer says of the account. Submissions pause while the gate's `until` lies ahead.
local function listen(group)
  local gate = P .. 'gate'
  if a.signal == 'ok' then
    local reason = call('HGET', gate, 'reason')
    if reason == 'held' or reason == 'refused' then call('HDEL', gate, 'until', 'reason', 'since', 'detail') end
    call('HDEL', gate, 'failures')
    grow('')
    if group ~= '' then grow(group) end
    return
  end
  local pause = PROBE_MS
  if a.signal == 'throttled' then
    shrink(group)
    pause = a.signal_ms
  elseif a.signal == 'refused' and call('HINCRBY', gate, 'failures', 1) < REFUSALS_TO_CLOSE then
    return
  end
  if call('HGET', gate, 'reason') ~= a.signal then call('HSET', gate, 'since', int(now)) end
  local till = math.max(num(call('HGET', gate, 'until')) or 0, now + pause)
  call('HSET', gate, 'until', int(till), 'reason', a.signal, 'detail', a.detail or '')
end

-- ---- the record ----------------------------------------------------------------------------------------------------

local function schedule(id, due_ms, deadline)
  local at = now + due_ms
  if deadline and a.deadline_counts then at = math.min(at, deadline) end
  call('ZADD', P .. 'due', int(at), 'job:' .. id)
end

local function heard(how)
  call('LPUSH', P .. 'found', how)
  call('LTRIM', P .. 'found', 0, FOUND_LENGTH - 1)
end

local function learn(id, model)
  local r = call('HMGET', P .. 'job:' .. id, 'submitted_at', 'intent_at', 'polled_at', 'found_by')
  local from = num(r[1]) or num(r[2])
  if not from then return end
  -- Found by a poll: it became ready some time after the poll before; the middle is the best guess.
  local at = r[4] == 'poll' and ((num(r[3]) or from) + now) / 2 or now
  call('LPUSH', P .. 'took:' .. model, int(math.max(at - from, 0)))
  call('LTRIM', P .. 'took:' .. model, 0, 299)
  if r[4] == 'webhook' then heard('webhook')
  elseif cfg.callbacks then call('ZADD', P .. 'awaited', int(now), id) end
end

-- ---- suspects ------------------------------------------------------------------------------------------------------

local function acquit(id)
  call('HDEL', P .. 'suspects', id)
  call('HDEL', P .. 'crashes', id)
end

local function drop(id, who)
  call('HDEL', P .. 'inflight:' .. who, id)
  if call('HGET', P .. 'holders', id) == who then call('HDEL', P .. 'holders', id) end
end

-- What was in these hands: their leases end then. A due time that something else has set since stands.
local function let_go(who, at)
  local held, ids = call('HGETALL', P .. 'inflight:' .. who), {}
  for i = 1, #held, 2 do
    ids[#ids + 1] = held[i]
    if num(call('ZSCORE', P .. 'due', 'job:' .. held[i])) == num(held[i + 1]) then
      call('ZADD', P .. 'due', int(at), 'job:' .. held[i])
    end
    drop(held[i], who)
  end
  return ids
end

-- Those of the jobs whose step is due by then make a group. Of the others the step is over and on record; only a
-- submission may come again, when its outcome has stayed unknown for its whole wait.
local function herd(ids, at)
  local group
  for _, id in ipairs(ids) do
    local due = num(call('ZSCORE', P .. 'due', 'job:' .. id))
    if due and due <= at then
      group = group or 'g' .. call('INCR', P .. 'grouped')
      call('HSET', P .. 'suspects', id, group)
      call('RPUSH', P .. 'group:' .. group, id)
    elseif due and call('HGET', P .. 'job:' .. id, 'queue') == 'submit' then
      call('HSET', P .. 'suspects', id, 'submit')
    else acquit(id) end
  end
  if group then call('ZADD', P .. 'groups', int(at), group) end
end

local function disband(group)
  call('ZREM', P .. 'groups', group)
  call('DEL', P .. 'group:' .. group)
end

-- A suspect is for the process that runs its group, and for no other.
local function barred(id)
  local group = call('HGET', P .. 'suspects', id)
  if a.alone then return group ~= a.alone end
  if group ~= 'submit' then return group end
  if a.queue ~= 'submit' then acquit(id) else herd({id}, now) end
  return a.queue == 'submit'
end

-- ---- spools --------------------------------------------------------------------------------------------------------

-- Where the image of a job that collects waits: at its URL, or in a spool; `was` is the spool that had it.
local function place(id, was)
  call('ZREM', P .. 'ripe', id)
  if was and was ~= '' then call('ZREM', P .. 'spooled:' .. was, id) end
  if a.to == 'collecting' and a.expires_at then
    call('ZADD', P .. (a.spooled and 'spooled:' .. a.spooled or 'ripe'), int(a.expires_at), id)
  end
end

local function unplace(id)
  call('ZREM', P .. 'ripe', id)
  for _, spool in ipairs(call('ZRANGE', P .. 'spools', 0, -1)) do call('ZREM', P .. 'spooled:' .. spool, id) end
end

local function silence(spool) return now - (num(call('ZSCORE', P .. 'spools', spool)) or 0) end

-- The image lies in another machine's spool, which is not lost: nobody else can do anything for this job. It may be
-- pulled again once that spool has been silent for long, or is silent while the URL is about to die.
local function elsewhere(id, r)
  if r.status ~= 'collecting' or r.spool == '' or r.spool == a.spool then return false end
  if r.deadline_at and r.deadline_at <= now then return false end
  local silent, left = silence(r.spool), (r.expires_at or 0) - now
  if silent < cfg.spool_stopped_ms then return true end
  if silent >= cfg.spool_lost_ms or (left > 0 and left <= cfg.spool_rescue_ms) then return false end
  -- Nobody serves it just now: it must not stand before what can be done, nor be rung for in vain.
  call('ZADD', P .. 'due', int(math.min(now + SPOOL_LOOK_MS, r.deadline_at or math.huge)), 'job:' .. id)
  call('ZREM', P .. 'rung', 'job:' .. id)
  return true
end

-- Another process has let the job's lease run out, and its step has not ended: it is dead or stopped, even if it was
-- not missed yet. What it has let go like this is suspect, or a poison job could walk from process to process.
local function abandoned(id)
  local holder = call('HGET', P .. 'holders', id)
  if a.alone or not a.who or not holder or holder == a.who then return false end
  local ids = {}
  for _, held in ipairs(call('HKEYS', P .. 'inflight:' .. holder)) do
    local due = num(call('ZSCORE', P .. 'due', 'job:' .. held))
    if due and due <= now then
      ids[#ids + 1] = held
      drop(held, holder)
    end
  end
  herd(ids, now)
  return true
end

local verbs = {}

-- A new job: its record, indexes, due time, idempotency key and place in the queue.
-- created | already (the call was sent twice) | replayed, conflict (the key is known) | full | retried | stale
function verbs.create()
  if call('EXISTS', P .. 'job:' .. a.id) == 1 then return {'already', int(now), {}} end
  if a.idem then
    local known = call('GET', P .. 'idem:' .. a.caller .. ':' .. a.idem)
    if known then
      local hash, id = string.match(known, '^(%S+) (%S+)$')
      return {hash == a.idem_hash and 'replayed' or 'conflict', int(now), {}, id}
    end
  end
  if a.retry_of then
    local old = call('HMGET', P .. 'job:' .. a.retry_of, 'version', 'retried_by')
    if old[2] and old[2] ~= '' then return {'retried', int(now), {}, old[2]} end
    if old[1] ~= a.old_version or not sound(a.retry_of) then return {'stale', int(now), {}} end
  elseif cfg.backlog_max > 0 and call('ZCARD', P .. 'jobs:queued') >= cfg.backlog_max then
    return {'full', int(now), {}}
  end
  local fields = {unpack(ARGV, 3)}
  local deadline = a.deadline_ms and now + a.deadline_ms
  if deadline then fields[#fields + 1] = 'deadline_at'; fields[#fields + 1] = int(deadline) end
  write(a.id, fields, a.stamps)
  index(a.id, a.caller, a.batch, nil, a.to)
  call('ZREM', P .. 'due', 'stage:' .. a.id)
  if a.idem then
    call('SET', P .. 'idem:' .. a.caller .. ':' .. a.idem, a.idem_hash .. ' ' .. a.id, 'PX', cfg.idem_ms)
  end
  if a.retry_of then
    local old = P .. 'job:' .. a.retry_of
    call('HSET', old, 'retried_by', a.id, 'open', '[]')
    call('HINCRBY', old, 'version', 1)
    seal(a.retry_of)
    hold(a.retry_of, a.group, false)
    if call('HGET', old, 'sidecar') == '1' then -- the purchase was all that it still waited for
      call('ZREM', P .. 'due', 'job:' .. a.retry_of)
      call('ZADD', P .. 'ended', int(now), a.retry_of)
    end
    for _, task in ipairs(a.tasks) do call('SET', P .. 'task:' .. task, a.id) end
  end
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
  if r[1] ~= a.version then return {'stale', int(now), {}} end
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
  if a.event == 'ready' and a.to == 'collecting' and from ~= 'collecting' then learn(a.id, model) end
  emit(a.id, caller, batch, from)
  return {'applied', int(now), admit()}
end

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

-- Whose step is next; of a record that cannot say it, any queue's, which will find out.
local function queue_of(id)
  local queue = call('HGET', P .. 'job:' .. id, 'queue')
  if queue == 'submit' or queue == 'collect' then return queue end
  return call('EXISTS', P .. 'job:' .. id) == 1 and 'collect' or nil
end

-- What is due and unclaimed, soonest first: {queue or kind, id, …}. A bell that led to nothing goes out again after
-- `again_ms`.
function verbs.ripen()
  local out = {}
  local ring = admit()
  local room = a.room
  call('ZREMRANGEBYSCORE', P .. 'rung', '-inf', int(now - a.again_ms))
  local most = a.most + call('HLEN', P .. 'suspects') -- they must not hide what is due behind them
  for _, member in ipairs(call('ZRANGE', P .. 'due', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, most)) do
    local kind, id = string.match(member, '^(%a+):(.+)$')
    local apart = kind == 'job' and call('HGET', P .. 'suspects', id)
    local queue = kind == 'job' and queue_of(id) or kind
    if queue == 'job' then call('ZREM', P .. 'due', member) -- its record is gone
    elseif (not apart or apart == 'submit') and (room[queue] or 0) > 0 and call('ZADD', P .. 'rung', 'NX', int(now), member) == 1 then
      room[queue] = room[queue] - 1
      out[#out + 1], out[#out + 2] = queue, id
    end
  end
  return {'ripe', int(now), ring, out}
end

-- A callback with right token came for a job whose image a poll had found: late, but not lost. late | known
function verbs.hear()
  local since = num(call('ZSCORE', P .. 'awaited', a.id))
  if not since then return {'known', int(now), {}} end
  call('ZREM', P .. 'awaited', a.id)
  heard('late:' .. int(now - since))
  return {'late', int(now), {}, int(now - since)}
end

-- Callbacks that nobody waits for any longer were lost. Returns how many.
function verbs.miss()
  local ids = call('ZRANGE', P .. 'awaited', '-inf', int(now - CALLBACK_LOST_MS), 'BYSCORE', 'LIMIT', 0, 1000)
  for _, id in ipairs(ids) do
    call('ZREM', P .. 'awaited', id)
    heard('lost')
  end
  return {'missed', int(now), {}, #ids}
end

-- Something outside the records has work left: a staged upload, or objects to erase. `due_ms` nil: done with it.
function verbs.plan()
  local member = a.kind .. ':' .. a.id
  if a.due_ms then call('ZADD', P .. 'due', int(now + a.due_ms), member)
  else
    call('ZREM', P .. 'due', member)
    call('ZREM', P .. 'rung', member)
  end
  return {'planned', int(now), {}}
end

-- `own_ms`: how long its provider tasks still count as its own, so that one whose id comes twice is nobody else's.
local function forget(id, own_ms)
  local key = P .. 'job:' .. id
  local r = call('HMGET', key, 'caller', 'batch_id', 'status', 'tasks', 'group')
  if r[1] and sound(id) then
    index(id, r[1], r[2], r[3], nil)
    hold(id, r[5], false)
    for _, task in pairs(cjson.decode(r[4])) do
      if call('GET', P .. 'task:' .. task) == id then call('PEXPIRE', P .. 'task:' .. task, own_ms or 0) end
    end
  end
  local holder = call('HGET', P .. 'holders', id)
  if holder then drop(id, holder) end
  acquit(id)
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
  for _, group in ipairs(cfg.groups) do
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

-- Records that ended long enough ago leave Redis; the bucket keeps their sidecars.
function verbs.expire()
  local ids = call('ZRANGE', P .. 'ended', '-inf', int(now - a.retention_ms), 'BYSCORE', 'LIMIT', 0, a.most)
  for _, id in ipairs(ids) do forget(id) end
  return {'expired', int(now), {}, #ids}
end

-- A caller deletes an ended job: the record goes at once, its objects as due work. buried | stale | gone
function verbs.bury()
  local version = call('HGET', P .. 'job:' .. a.id, 'version')
  if not version then return {'gone', int(now), {}} end
  if version ~= a.version then return {'stale', int(now), {}} end
  local busy = call('ZSCORE', P .. 'due', 'job:' .. a.id)
  forget(a.id, cfg.tomb_ms)
  call('SET', P .. 'tomb:' .. a.id, a.caller, 'PX', cfg.tomb_ms)
  -- A step that still runs may write its sidecar once more: erase again when it surely has ended.
  call('ZADD', P .. 'due', int(now + (busy and a.busy_ms or 0)), 'erase:' .. a.id)
  return {'buried', int(now), admit()}
end

-- A process that serves this spool lives.
function verbs.tend()
  call('ZADD', P .. 'spools', int(now), a.spool)
  for _, spool in ipairs(call('ZRANGE', P .. 'spools', '-inf', int(now - SPOOL_FORGET_MS), 'BYSCORE')) do
    call('ZREM', P .. 'spools', spool)
    call('DEL', P .. 'spooled:' .. spool)
  end
  return {'tended', int(now), {}}
end

function verbs.silence() return {'silent', int(now), {}, int(silence(a.of))} end

-- How many images, up to `most`, have waited at their URLs for longer than `after_ms`, and lie nowhere else.
function verbs.behind()
  local count = 0
  if call('ZCARD', P .. 'ripe') >= a.most then
    for _, id in ipairs(call('ZRANGE', P .. 'ripe', 0, 199)) do
      local since = num(call('HGET', P .. 'job:' .. id, 'ready_at'))
      if since and now - since > a.after_ms and count < a.most then count = count + 1 end
    end
  end
  return {'behind', int(now), {}, count}
end

-- No more is bought for so long: what has been bought cannot be stored. It ends by itself.
function verbs.pause()
  local till = math.max(num(call('HGET', P .. 'gate', a.reason .. '_until')) or 0, now + a.pause_ms)
  call('HSET', P .. 'gate', a.reason .. '_until', int(till))
  return {'paused', int(now), {}}
end

-- The step has ended, well or not, and its process lives. Apart from others, that clears it of suspicion.
function verbs.release()
  drop(a.id, a.alone or a.who)
  if a.alone and call('HGET', P .. 'suspects', a.id) == a.alone then
    call('LREM', P .. 'group:' .. a.alone, 1, a.id)
    acquit(a.id)
    call('ZREM', P .. 'rung', 'job:' .. a.id) -- bells that went out meanwhile led to nothing
  end
  return {'released', int(now), {}}
end

function verbs.beat()
  call('ZADD', P .. 'procs', int(now), a.who)
  return {'beaten', int(now), {}}
end

-- The process ends of its own will: nobody is suspect.
function verbs.leave()
  call('ZREM', P .. 'procs', a.who)
  for _, id in ipairs(call('HKEYS', P .. 'inflight:' .. a.who)) do drop(id, a.who) end
  return {'left', int(now), {}}
end

-- Processes whose beat has stopped are dead, and what they had in flight is suspect: {process, …}. While nobody could
-- look (Redis was away, say), nobody could beat either: the time counts from when looking began again.
function verbs.reap()
  local seen = call('HMGET', P .. 'watch', 'since', 'last')
  local since, last = num(seen[1]), num(seen[2])
  if not since or now - last > a.lost_ms / 2 then since = now end
  call('HSET', P .. 'watch', 'since', int(since), 'last', int(now))
  if now - since < a.lost_ms then return {'watched', int(now), {}, {}} end
  local dead = call('ZRANGE', P .. 'procs', '-inf', int(now - a.lost_ms), 'BYSCORE')
  for _, who in ipairs(dead) do
    local ids = {}
    for _, id in ipairs(let_go(who, now)) do
      local group = call('HGET', P .. 'suspects', id)
      if not group or group == 'submit' then ids[#ids + 1] = id end
    end
    herd(ids, now)
    call('ZREM', P .. 'procs', who)
  end
  return {'watched', int(now), {}, dead}
end

-- A group of suspects that is due, under a lease. Whoever ran it before is dead. isolated | none
function verbs.isolate()
  local group = call('ZRANGE', P .. 'groups', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
  if not group then return {'none', int(now), {}} end
  let_go(group, now)
  call('ZADD', P .. 'groups', int(now + a.lease_ms), group)
  return {'isolated', int(now), {}, group, int(now + a.lease_ms), call('LRANGE', P .. 'group:' .. group, 0, -1)}
end

local function ours() return num(call('ZSCORE', P .. 'groups', a.group)) == a.lease_end end

-- The group's lease goes on, or with a short one it is given back. renewed | lost
function verbs.keep()
  if not ours() then return {'lost', int(now), {}} end
  call('ZADD', P .. 'groups', int(now + a.lease_ms), a.group)
  return {'renewed', int(now), {}, int(now + a.lease_ms)}
end

-- The group's process has ended well: so are all that are still in it. cleared | lost
function verbs.clear()
  if not ours() then return {'lost', int(now), {}} end
  let_go(a.group, now)
  for _, id in ipairs(call('LRANGE', P .. 'group:' .. a.group, 0, -1)) do
    acquit(id)
    call('ZREM', P .. 'rung', 'job:' .. id)
  end
  disband(a.group)
  return {'cleared', int(now), {}}
end

-- Whatever comes of this job, it is no suspect any more. acquitted
function verbs.acquit()
  local group = call('HGET', P .. 'suspects', a.id)
  if group then call('LREM', P .. 'group:' .. group, 1, a.id) end
  if group and call('EXISTS', P .. 'group:' .. group) == 0 then disband(group) end
  acquit(a.id)
  return {'acquitted', int(now), {}}
end

-- The group's process has crashed. Several: each half runs apart, at once. One: its crashes are counted, and it waits.
-- halved | alone | cleared (all had ended before) | lost
function verbs.blame()
  if not ours() then return {'lost', int(now), {}} end
  local ids = call('LRANGE', P .. 'group:' .. a.group, 0, -1)
  if #ids == 1 then
    local crashes = call('HINCRBY', P .. 'crashes', ids[1], 1)
    local at = now + a.waits_ms[math.min(crashes, #a.waits_ms)]
    let_go(a.group, crashes > #a.waits_ms and now or at) -- after the last try it is the caller's to end
    disband(a.group)
    herd(ids, at)
    return {'alone', int(now), {}, ids[1], crashes}
  end
  let_go(a.group, now)
  disband(a.group)
  local halves = {{}, {}}
  for i, id in ipairs(ids) do table.insert(halves[i <= #ids / 2 and 1 or 2], id) end
  herd(halves[1], now)
  herd(halves[2], now)
  return {#ids > 0 and 'halved' or 'cleared', int(now), {}}
end

return verbs[verb]()
