-- Batches: staged line by line, sealed in one write, unfolded into jobs, and over when all of those are closed.

local SAFETY_BATCH_MS = 60000 -- a batch that waits for its jobs is looked at this often even if every wake-up was lost

local function unsealed(id) return call('HGET', P .. 'batch:' .. id, 'status') == 'staging' end

-- An upload that goes on: once somebody has begun to clear it away, a caller that was only slow must not seal the rest.
local function staged(id) return unsealed(id) and call('HEXISTS', P .. 'batch:' .. id, 'lapsed') == 0 end

-- An upload begins; its key is held by a lease. opened | known (by whom, with which body) | busy (for how long)
function verbs.open_batch()
  if a.idem then
    local known = call('GET', P .. 'idem:' .. a.caller .. ':' .. a.idem)
    if known then
      local hash, id = string.match(known, '^(%S+) (%S+)$')
      return {'known', int(now), {}, id, hash}
    end
    local key = uploading(a.caller, a.idem)
    if call('EXISTS', key) == 1 then return {'busy', int(now), {}, int(math.max(1, call('PTTL', key)))} end
    call('SET', key, a.id, 'PX', a.lease_ms)
  end
  call('HSET', P .. 'batch:' .. a.id, 'id', a.id, 'caller', a.caller, 'status', 'staging', 'idem', a.idem or '')
  call('ZADD', P .. 'due', int(now + a.lease_ms), 'batch:' .. a.id)
  return {'opened', int(now), {}}
end

-- More lines of an upload, each what `unfold` will make a job of; none: its lease is renewed. `inputs` are the jobs
-- whose images are in the bucket: from now on the batch's own due entry tells of them. staged | gone
function verbs.stage()
  if not staged(a.id) then return {'gone', int(now), {}} end
  if a.idem then
    local key = uploading(a.caller, a.idem)
    if call('GET', key) ~= a.id then return {'gone', int(now), {}} end
    call('PEXPIRE', key, a.lease_ms)
  end
  call('ZADD', P .. 'due', int(now + a.lease_ms), 'batch:' .. a.id)
  if #ARGV > 2 then call('RPUSH', P .. 'lines:' .. a.id, unpack(ARGV, 3)) end
  for _, id in ipairs(a.inputs) do
    call('RPUSH', P .. 'inputs:' .. a.id, id)
    call('ZREM', P .. 'due', 'stage:' .. id)
  end
  return {'staged', int(now), {}}
end

-- The whole file is here: from this write on there is a batch. enrolled | already | known | full | gone | retried
function verbs.enroll()
  local key = P .. 'batch:' .. a.id
  if call('EXISTS', key) == 1 and not unsealed(a.id) then return {'already', int(now), {}} end
  if not staged(a.id) or call('LLEN', P .. 'lines:' .. a.id) ~= a.total then return {'gone', int(now), {}} end
  if a.idem and call('GET', uploading(a.caller, a.idem)) ~= a.id then return {'gone', int(now), {}} end
  if cfg.backlog_max > 0 and not a.retry_of and backlog() + a.total > cfg.backlog_max then
    return {'full', int(now), {}}
  end
  if a.retry_of then
    local old = P .. 'batch:' .. a.retry_of
    if call('EXISTS', old) == 0 then return {'gone', int(now), {}} end
    local known = call('HGET', old, 'retried_by')
    if known then return {'retried', int(now), {}, known} end
    call('HSET', old, 'retried_by', a.id)
  end
  if a.idem then
    call('SET', P .. 'idem:' .. a.caller .. ':' .. a.idem, a.hash .. ' ' .. a.id, 'PX', cfg.idem_ms)
    call('DEL', uploading(a.caller, a.idem))
  end
  call('HSET', key, 'status', 'running', 'created_at', int(now), 'total', a.total, 'made', 0, 'hash', a.hash,
    'body', a.body, 'retry_of', a.retry_of or '')
  call('INCRBY', P .. 'folded', a.total)
  for _, name in ipairs({'batches', 'batches@' .. a.caller}) do call('ZADD', P .. name, 0, a.id) end
  call('DEL', P .. 'inputs:' .. a.id)
  call('ZADD', P .. 'due', int(now), 'batch:' .. a.id)
  call('ZADD', P .. 'rung', int(now), 'batch:' .. a.id)
  return {'enrolled', int(now), {}}
end

-- An upload that did not come to its end leaves nothing, and its key is free at once. While inputs of it are in the
-- bucket, clearing them away is due: from now on, or as whoever is at it has said. discarded | clearing | kept
function verbs.discard()
  local key, inputs = P .. 'batch:' .. a.id, P .. 'inputs:' .. a.id
  if call('EXISTS', key) == 1 and not unsealed(a.id) then return {'kept', int(now), {}} end
  local r = call('HMGET', key, 'caller', 'idem')
  if r[2] and r[2] ~= '' and call('GET', uploading(r[1], r[2])) == a.id then call('DEL', uploading(r[1], r[2])) end
  call('DEL', P .. 'lines:' .. a.id)
  if unsealed(a.id) and call('LLEN', inputs) > 0 then
    if call('HSETNX', key, 'lapsed', '1') == 1 then call('ZADD', P .. 'due', int(now), 'batch:' .. a.id) end
    return {'clearing', int(now), {}}
  end
  call('DEL', key, inputs)
  for _, name in ipairs({'due', 'rung'}) do call('ZREM', P .. name, 'batch:' .. a.id) end
  return {'discarded', int(now), {}}
end

-- These jobs' inputs have gone from the bucket, and whoever clears them away goes on. cleared | gone
function verbs.cleared()
  if not unsealed(a.id) then return {'gone', int(now), {}} end
  for i = 3, #ARGV do call('LREM', P .. 'inputs:' .. a.id, 1, ARGV[i]) end
  call('ZADD', P .. 'due', int(now + a.lease_ms), 'batch:' .. a.id)
  return {'cleared', int(now), {}}
end

-- Jobs of an upload whose images are in the bucket, the first `most`.
function verbs.staged_inputs()
  return {'told', int(now), {}, call('LRANGE', P .. 'inputs:' .. a.id, 0, a.most - 1)}
end

-- All that is known of a batch: {record, staged lines left, jobs closed, counts in the order of STATUSES}. seen | none
function verbs.look()
  local rest = call('LLEN', P .. 'lines:' .. a.id)
  local counts = {}
  for i, status in ipairs(STATUSES) do counts[i] = call('ZCARD', P .. 'jobs#' .. a.id .. ':' .. status) end
  local flat = call('HGETALL', P .. 'batch:' .. a.id)
  return {#flat > 0 and 'seen' or 'none', int(now), {}, flat, rest, call('SCARD', P .. 'closed:' .. a.id), counts}
end

-- Who looks at the batch now? Only what is due, and then nobody else until the lease is over. One that is marked may
-- have been planned again by a step that had slept over its lease: there is nothing to do for it. attended | none
function verbs.attend()
  local member = 'batch:' .. a.id
  local at = num(call('ZSCORE', P .. 'due', member))
  if not at or at > now then return {'none', int(now), {}} end
  local r = call('HMGET', P .. 'batch:' .. a.id, 'id', 'marked')
  if not r[1] or r[2] == '1' then
    for _, name in ipairs({'due', 'rung'}) do call('ZREM', P .. name, member) end
    return {'none', int(now), {}}
  end
  if unsealed(a.id) then call('HSET', P .. 'batch:' .. a.id, 'lapsed', '1') end
  call('ZADD', P .. 'due', int(now + a.lease_ms), member)
  call('ZREM', P .. 'rung', member)
  return {'attended', int(now), {}}
end

-- Nothing to do for the batch until its last job is closed, which may just have happened; `due_ms`: until then.
function verbs.rest()
  local total = num(call('HGET', P .. 'batch:' .. a.id, 'total'))
  local over = total and call('SCARD', P .. 'closed:' .. a.id) >= total
  call('ZADD', P .. 'due', int(now + (over and 0 or a.due_ms or SAFETY_BATCH_MS)), 'batch:' .. a.id)
  return {'resting', int(now), {}}
end

-- The next lines become jobs, accepted when the batch was; those of a cancelled batch end at once.
-- unfolded (how many, and how many are left) | gone
function verbs.unfold()
  local key, whole = P .. 'batch:' .. a.id, a
  local r = call('HMGET', key, 'status', 'created_at')
  if not r[2] then return {'gone', int(now), {}} end
  local made = 0
  while made < whole.most do
    local line = call('LPOP', P .. 'lines:' .. whole.id)
    if not line then break end
    made = made + 1
    local item = cjson.decode(line)
    local fields = item.fields
    a = item.arguments
    a.by, a.stamps = whole.by, {}
    fields[#fields + 1] = 'created_at'; fields[#fields + 1] = r[2]
    if r[1] == 'cancelled' then
      a.to, a.stamps = 'cancelled', {'finished_at'}
      for name, value in pairs({status = 'cancelled', reason = 'cancel_asked', queue = 'collect'}) do
        fields[#fields + 1] = name; fields[#fields + 1] = value
      end
    end
    if call('EXISTS', P .. 'job:' .. a.id) == 0 then born(fields, num(r[2])) end
  end
  a = whole
  call('HINCRBY', key, 'made', made)
  call('DECRBY', P .. 'folded', made)
  return {'unfolded', int(now), admit(), made, call('LLEN', P .. 'lines:' .. a.id)}
end

-- The next lines of a batch that retries: ids of jobs. Each goes in the write that makes its successor, or is dropped.
function verbs.peek()
  local made = num(call('HGET', P .. 'batch:' .. a.id, 'made'))
  return {'peeked', int(now), {}, made or 0, call('LRANGE', P .. 'lines:' .. a.id, 0, a.most - 1)}
end

-- How many of the lines in ARGV were still there; they are no more.
local function take_lines()
  local gone = 0
  for i = 3, #ARGV do gone = gone + call('LREM', P .. 'lines:' .. a.id, 1, ARGV[i]) end
  call('HINCRBY', P .. 'batch:' .. a.id, 'made', gone)
  call('DECRBY', P .. 'folded', gone)
  return gone
end

-- These lines of a batch that retries become no job: somebody else retried them, or they are wanted no more. dropped
function verbs.drop_lines()
  call('HINCRBY', P .. 'batch:' .. a.id, 'total', -take_lines())
  return {'dropped', int(now), {}}
end

-- These lines of a batch that retries are jobs of it already: made again, in a Redis that came back older. passed
function verbs.pass_lines()
  take_lines()
  return {'passed', int(now), {}}
end

-- No more is bought for it. What it has in work is cancelled job by job, as due work. cancelled | over | gone
function verbs.cancel_batch()
  local key = P .. 'batch:' .. a.id
  local r = call('HMGET', key, 'status', 'finished_at')
  if not r[1] or r[1] == 'staging' then return {'gone', int(now), {}} end
  if r[1] ~= 'running' or r[2] then return {'over', int(now), {}} end
  call('HSET', key, 'status', 'cancelled')
  call('ZADD', P .. 'due', int(now), 'batch:' .. a.id)
  call('ZADD', P .. 'rung', int(now), 'batch:' .. a.id)
  return {'cancelled', int(now), {}}
end

-- All of its jobs are closed: its counts stand, once and for ever. counted | open
function verbs.count_up()
  local key = P .. 'batch:' .. a.id
  local r = call('HMGET', key, 'total', 'counts')
  if not r[1] or call('LLEN', P .. 'lines:' .. a.id) > 0 then return {'open', int(now), {}} end
  if call('SCARD', P .. 'closed:' .. a.id) < num(r[1]) then return {'open', int(now), {}} end
  if not r[2] then
    local counts = {}
    for _, status in ipairs(STATUSES) do
      counts[status] = call('ZCARD', P .. 'jobs#' .. a.id .. ':' .. status)
    end
    call('HSET', key, 'counts', cjson.encode(counts), 'finished_at', int(now))
  end
  return {'counted', int(now), {}}
end

-- Its manifest and its marker are in the bucket: nothing is left to do. marked | already | gone
function verbs.mark()
  local key = P .. 'batch:' .. a.id
  local r = call('HMGET', key, 'status', 'caller', 'marked', 'retry_of')
  if not r[1] then return {'gone', int(now), {}} end
  if r[3] == '1' then return {'already', int(now), {}} end
  local old = P .. 'batch:' .. (r[4] or '')
  if r[1] == 'cancelled' and call('HGET', old, 'retried_by') == a.id then
    call('HDEL', old, 'retried_by') -- what it left undone may be retried once more
  end
  local status = r[1] == 'cancelled' and 'cancelled' or 'completed'
  call('HSET', key, 'status', status, 'marked', '1')
  call('DEL', P .. 'closed:' .. a.id)
  for _, name in ipairs({'due', 'rung'}) do call('ZREM', P .. name, 'batch:' .. a.id) end
  call('ZADD', P .. 'ended', int(now), a.id)
  notify(a.id, r[2], a.notify)
  call('XADD', P .. 'events', 'MAXLEN', '~', cfg.events_max, '*', 'id', a.id, 'batch_id', a.id, 'caller', r[2],
    'status', status, 'from', r[1], 'reason', 'marked', 'at', int(now), 'by', a.by)
  return {'marked', int(now), {}}
end
