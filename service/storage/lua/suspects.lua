-- Jobs that were in flight when a process died run apart, in groups that halve, until the one that kills is alone.

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
  call('HDEL', P .. 'bereaved', group)
end

-- Suspects whose submission comes again by now, since its outcome has stayed unknown: one group, not one each.
local function resubmitted()
  local marks, ids = call('HGETALL', P .. 'suspects'), {}
  for i = 1, #marks, 2 do
    local due = marks[i + 1] == 'submit' and num(call('ZSCORE', P .. 'due', 'job:' .. marks[i]))
    if due and due <= now then ids[#ids + 1] = marks[i] end
  end
  return ids
end

-- A suspect is for the process that runs its group, and for no other.
local function barred(id)
  local group = call('HGET', P .. 'suspects', id)
  if a.alone then return group ~= a.alone end
  if group ~= 'submit' then return group end
  if a.queue ~= 'submit' then acquit(id) else herd(resubmitted(), now) end
  return a.queue == 'submit'
end

-- Another process has let its lease on the job run out, and its step has not ended: it is dead or stopped, even if it
-- was not missed yet. What it has let go like this is suspect, or a poison job could walk from process to process.
-- A job that a callback brought forward, while its lease still ran, is not.
local function abandoned(id)
  local holder = call('HGET', P .. 'holders', id)
  if a.alone or not a.who or not holder or holder == a.who then return false end
  local held, over, ids = call('HGETALL', P .. 'inflight:' .. holder), false, {}
  for i = 1, #held, 2 do
    local due = num(call('ZSCORE', P .. 'due', 'job:' .. held[i]))
    if due and due <= now and num(held[i + 1]) <= now then
      local mark = call('HGET', P .. 'suspects', held[i])
      over = over or held[i] == id
      if not mark or mark == 'submit' then ids[#ids + 1] = held[i] end -- one that is in a group stays in it
      drop(held[i], holder)
    end
  end
  herd(ids, now)
  return over
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

-- A group is guilty. Several: each half runs apart, at once. One: its crashes are counted, and it waits.
-- halved | alone | cleared (all had ended before)
local function convict(group)
  local ids = call('LRANGE', P .. 'group:' .. group, 0, -1)
  if #ids == 1 then
    local crashes = call('HINCRBY', P .. 'crashes', ids[1], 1)
    local at = now + a.waits_ms[math.min(crashes, #a.waits_ms)]
    let_go(group, crashes > #a.waits_ms and now or at) -- after the last try it is the caller's to end
    disband(group)
    herd(ids, at)
    return {'alone', int(now), {}, ids[1], crashes}
  end
  let_go(group, now)
  disband(group)
  local halves = {{}, {}}
  for i, id in ipairs(ids) do table.insert(halves[i <= #ids / 2 and 1 or 2], id) end
  herd(halves[1], now)
  herd(halves[2], now)
  return {#ids > 0 and 'halved' or 'cleared', int(now), {}}
end

-- The next group that is due stands in the hands of a process whose keeper has died as well, so that nobody judged it:
-- a container is ended as a whole. Once is nobody's fault; `most` times, it is the group's. none | as `convict`
function verbs.bereave()
  local group = call('ZRANGE', P .. 'groups', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
  if not group or call('HLEN', P .. 'inflight:' .. group) == 0 then return {'none', int(now), {}} end
  if call('HINCRBY', P .. 'bereaved', group, 1) >= a.most then return convict(group) end
  let_go(group, now)
  return {'none', int(now), {}}
end

-- How often the group has crashed as it is: alone, if it is one job, or together with its keeper.
local function crashed(group, ids)
  local alone = #ids == 1 and num(call('HGET', P .. 'crashes', ids[1])) or 0
  return alone + (num(call('HGET', P .. 'bereaved', group)) or 0)
end

-- A group of suspects that is due, under a lease. Whoever ran it before is dead. isolated | none
function verbs.isolate()
  local group = call('ZRANGE', P .. 'groups', '-inf', int(now), 'BYSCORE', 'LIMIT', 0, 1)[1]
  if not group then return {'none', int(now), {}} end
  let_go(group, now)
  call('ZADD', P .. 'groups', int(now + a.lease_ms), group)
  local ids = call('LRANGE', P .. 'group:' .. group, 0, -1)
  return {'isolated', int(now), {}, group, int(now + a.lease_ms), ids, crashed(group, ids)}
end

local function ours() return num(call('ZSCORE', P .. 'groups', a.group)) == a.lease_end end

-- Its process is gone, and nobody is to blame: nothing is in its hands, and it is due after `wait_ms`. given | lost
function verbs.give_back()
  if not ours() then return {'lost', int(now), {}} end
  let_go(a.group, now)
  call('ZADD', P .. 'groups', int(now + a.wait_ms), a.group)
  return {'given', int(now), {}}
end

-- The group's lease goes on. renewed | lost
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

-- It leaves its group, too, which may have been its own.
local function let_off(id)
  local group = call('HGET', P .. 'suspects', id)
  if group then call('LREM', P .. 'group:' .. group, 1, id) end
  if group and call('EXISTS', P .. 'group:' .. group) == 0 then disband(group) end
  acquit(id)
end

-- Whatever comes of this job, it is no suspect any more. acquitted
function verbs.acquit()
  let_off(a.id)
  return {'acquitted', int(now), {}}
end

-- The suspect cannot be ended, since it has ended: it stays one, and runs apart again after `wait_ms`. adjourned | gone
function verbs.adjourn()
  local group = call('HGET', P .. 'suspects', a.id)
  if not group or not call('ZSCORE', P .. 'groups', group) then return {'gone', int(now), {}} end
  for name, member in pairs({groups = group, due = 'job:' .. a.id}) do
    call('ZADD', P .. name, 'XX', int(now + a.wait_ms), member)
  end
  return {'adjourned', int(now), {}}
end

-- The group's process has crashed. Where it has before it took any job, it was none of them: it could not start, and the
-- group is run again after `again_ms`. innocent | lost | as `convict`
function verbs.blame()
  if not ours() then return {'lost', int(now), {}} end
  if call('HLEN', P .. 'inflight:' .. a.group) == 0 then
    call('ZADD', P .. 'groups', int(now + a.again_ms), a.group)
    return {'innocent', int(now), {}}
  end
  return convict(a.group)
end
