-- Who may submit now: slots, the line that waits for them, working caps, and the gate before all submissions.

local PROBE_MS = 30000       -- a closed gate lets one submission through this often
local REFUSALS_TO_CLOSE = 5  -- submissions in a row that could not be handed over
local SHRINK_GAP_MS = 2000   -- a burst of 429s is one 429
local EASE_MS = 5000         -- a shrunken cap gains one slot this often without any success
local ADMIT_AT_ONCE = 100
local PASS_AT_ONCE = 1000    -- jobs of cancelled batches that one look at the lanes passes over
local WEIGHT = {high = 16, normal = 4, low = 1}

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

-- A job whose model a release has given a cap, or taken it from, may stand in the other lane.
local function unwait(id, group)
  for _, each in ipairs({'', group ~= '' and group or nil}) do
    for _, priority in ipairs(PRIORITIES) do call('ZREM', lane(each, priority), id) end
  end
end

-- Without a cap of its model's own, whatever it had when it was accepted, a job waits in the common lane.
local function wait(id, group, priority, caller)
  local there = lane(cfg.caps[group] and group or '', priority)
  if call('ZSCORE', there, id) then return end
  unwait(id, group)
  local who = caller .. '|' .. priority
  local tag = math.max(num(call('GET', P .. 'clock')) or 0, num(call('HGET', P .. 'tags', who)) or 0)
  tag = string.format('%.17g', tag + 1 / WEIGHT[priority])
  call('HSET', P .. 'tags', who, tag)
  call('ZADD', there, tag, id)
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

-- Its batch was cancelled: nothing is bought for it any more, however long it takes until its own turn to be cancelled.
local function unwanted(id)
  local batch = call('HGET', P .. 'job:' .. id, 'batch_id')
  return batch and batch ~= '' and call('HGET', P .. 'batch:' .. batch, 'status') == 'cancelled'
end

local function give_slot(next_up)
  hold(next_up.id, next_up.group, true)
  call('ZADD', P .. 'due', int(now), 'job:' .. next_up.id)
  call('ZADD', P .. 'rung', int(now), 'job:' .. next_up.id)
end

-- As many waiting jobs as there are slots become due now. Returns their ids: RQ holds only work that can run.
local function admit()
  local ids = {}
  local gate = call('HMGET', P .. 'gate', 'until', 'reason', 'storage_until')
  if (num(gate[1]) or 0) > now or (num(gate[3]) or 0) > now then return ids end
  if gate[2] == 'throttled' then call('HDEL', P .. 'gate', 'until', 'reason', 'since', 'detail') end -- it is over
  local probing = gate[2] == 'held' or gate[2] == 'refused'
  ease()
  local passed = 0
  while #ids < ADMIT_AT_ONCE and passed < PASS_AT_ONCE do
    local next_up = first_waiting()
    if not next_up then break end
    call('ZREM', next_up.lane, next_up.id)
    call('SET', P .. 'clock', string.format('%.17g', next_up.tag))
    if unwanted(next_up.id) then passed = passed + 1
    else
      give_slot(next_up)
      ids[#ids + 1] = next_up.id
      if probing then
        call('HSET', P .. 'gate', 'until', int(now + PROBE_MS))
        break
      end
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

-- No more is bought for so long: what has been bought cannot be stored. It ends by itself.
function verbs.pause()
  local till = math.max(num(call('HGET', P .. 'gate', a.reason .. '_until')) or 0, now + a.pause_ms)
  call('HSET', P .. 'gate', a.reason .. '_until', int(till))
  return {'paused', int(now), {}}
end
