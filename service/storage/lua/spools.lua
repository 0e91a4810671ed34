-- Where an image waits that is not in the bucket yet: at its URL, or in a machine's spool.

local SPOOL_LOOK_MS = 10000   -- between looks whether a silent spool is back
local SPOOL_FORGET_MS = 7 * 86400000

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
  if silent < cfg.spool_stopped_ms then
    call('ZREM', P .. 'rung', 'job:' .. id) -- the bell went to the wrong machine: the next round rings again
    return true
  end
  if silent >= cfg.spool_lost_ms or (left > 0 and left <= cfg.spool_rescue_ms) then return false end
  -- Nobody serves it just now: it must not stand before what can be done, nor be rung for in vain.
  call('ZADD', P .. 'due', int(math.min(now + SPOOL_LOOK_MS, r.deadline_at or math.huge)), 'job:' .. id)
  call('ZREM', P .. 'rung', 'job:' .. id)
  return true
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
