-- Records that are made again from what the bucket tells. What has ended on record is left alone.

local function known_key()
  if a.idem and a.idem_ms > 0 then
    call('SET', P .. 'idem:' .. a.caller .. ':' .. a.idem, a.hash .. ' ' .. a.id, 'PX', a.idem_ms, 'NX')
  end
end

-- It ended so long ago that the sweep would forget it at once.
local function aged() return a.ended_at <= now - a.retention_ms end

-- Redis came back older: on record the job still runs, and would be bought again. One whose image is on record is about
-- to end as its sidecar says.
local function outdated()
  local r = call('HMGET', P .. 'job:' .. a.id, 'finished_at', 'image', 'group')
  if r[1] ~= '' or r[2] ~= '' or not sound(a.id) then return false end
  unwait(a.id, r[3])
  unplace(a.id)
  forget(a.id)
  return true
end

-- An ended job, as its sidecar tells. A batch that runs, since Redis came back older, counts it, whatever its age: its
-- line would become a second one. rebuilt | overruled (what was on record) | known | aged
function verbs.rebuild()
  if call('EXISTS', P .. 'tomb:' .. a.id) == 1 then return {'known', int(now), {}} end
  local made = 'rebuilt'
  if call('EXISTS', P .. 'job:' .. a.id) == 1 then
    if not outdated() then return {'known', int(now), {}} end
    made = 'overruled'
  elseif aged() and not awaiting(a.batch) then return {'aged', int(now), {}} end
  write(a.id, {unpack(ARGV, 3)}, {})
  index(a.id, a.caller, a.batch, nil, a.to)
  for _, task in ipairs(a.tasks) do call('SET', P .. 'task:' .. task, a.id, 'NX') end
  call('ZADD', P .. 'ended', int(a.ended_at), a.id)
  close(a.id, a.batch)
  known_key()
  notify(a.id, a.caller, a.notify)
  return {made, int(now), {}}
end

-- A job was retried by another one. linked | gone
function verbs.link()
  local r = call('HMGET', P .. 'job:' .. a.id, 'retried_by', 'version')
  if not r[2] or not sound(a.id) then return {'gone', int(now), {}} end
  if not r[1] or r[1] == '' then
    call('HSET', P .. 'job:' .. a.id, 'retried_by', a.retried_by)
    call('HINCRBY', P .. 'job:' .. a.id, 'version', 1)
    seal(a.id)
  end
  return {'linked', int(now), {}}
end

-- A batch that is over, as its marker tells. rebuilt | known | aged
function verbs.rebuild_batch()
  local key = P .. 'batch:' .. a.id
  if call('EXISTS', key) == 1 then return {'known', int(now), {}} end
  if aged() then return {'aged', int(now), {}} end
  call('HSET', key, unpack(ARGV, 3))
  for _, name in ipairs({'batches', 'batches@' .. a.caller}) do call('ZADD', P .. name, 0, a.id) end
  call('ZADD', P .. 'ended', int(a.ended_at), a.id)
  known_key()
  notify(a.id, a.caller, a.notify)
  return {'rebuilt', int(now), {}}
end

-- A batch was retried by another one. linked | gone
function verbs.link_batch()
  local key = P .. 'batch:' .. a.id
  if call('EXISTS', key) == 0 then return {'gone', int(now), {}} end
  call('HSETNX', key, 'retried_by', a.retried_by)
  return {'linked', int(now), {}}
end
