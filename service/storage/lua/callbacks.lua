-- What is learnt from finished images: how long a model takes, and what became of the callbacks.

local FOUND_LENGTH = 200
local CALLBACK_LOST_MS = 60000 -- the provider tries again after 1, 5 and 30 s, then gives up

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
