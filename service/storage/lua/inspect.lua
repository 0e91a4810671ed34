-- Does what is on record hang together? These verbs only read. Each run sees one moment, so nothing in motion looks wrong.

local OVER = {succeeded = true, failed = true, cancelled = true}

local function on_record(id)
  return call('EXISTS', P .. (string.sub(id, 1, 6) == 'batch_' and 'batch:' or 'job:') .. id) == 1
end

local function listed_wrongly(id, caller, batch, status)
  for _, each in ipairs(STATUSES) do
    for _, name in ipairs(indexes(caller, batch, each)) do
      local own = each == status or not string.find(name, ':' .. each, 1, true)
      if own ~= (call('ZSCORE', P .. name, id) and true or false) then return true end
    end
  end
end

local function waiting(id, group)
  for _, priority in ipairs(PRIORITIES) do
    if call('ZSCORE', lane(group, priority), id) or call('ZSCORE', lane('', priority), id) then return true end
  end
end

-- What is wrong with the entries that belong to a sound record.
local function faults(id)
  local r = call('HMGET', P .. 'job:' .. id, 'status', 'caller', 'batch_id', 'open', 'sidecar', 'group', 'tasks',
    'retried_by')
  local status, batch, open, group, found = r[1], r[3] or '', r[4] ~= '[]', r[6] or '', {}
  local function note(word, wrong) if wrong then found[#found + 1] = word end end
  local due = call('ZSCORE', P .. 'due', 'job:' .. id)
  local left = not OVER[status] or r[5] ~= '1' or open
  note('undue', left and not due)
  note('unforgettable', not (left or due or call('ZSCORE', P .. 'ended', id)))
  note('unlisted', listed_wrongly(id, r[2], batch, status))
  for _, name in ipairs({'slots', group ~= '' and 'slots:' .. group or nil}) do
    local held = call('ZSCORE', P .. name, id) and true or false
    note('slotted', held ~= open and not (held and status == 'queued'))
  end
  note('waiting', status ~= 'queued' and waiting(id, group))
  note('unbatched', batch ~= '' and not OVER[status] and not on_record(batch))
  for _, task in pairs(cjson.decode(r[7])) do
    note('untasked', (r[8] or '') == '' and not call('GET', P .. 'task:' .. task))
  end
  return found
end

-- Each job: {id, its record, what is wrong}. Without a record the last says why: gone | buried | aside
function verbs.inspect()
  local out = {}
  for i = 3, #ARGV do
    local id = ARGV[i]
    local flat, words = call('HGETALL', P .. 'job:' .. id), {}
    if #flat > 0 then
      if sound(id) then words = faults(id) end
    elseif call('EXISTS', P .. 'tomb:' .. id) == 1 then words = {'buried'}
    elseif call('EXISTS', P .. 'corrupt:' .. id) == 1 then words = {'aside'}
    else words = {'gone'} end
    out[#out + 1] = {id, flat, words}
  end
  return {'inspected', int(now), {}, out}
end

-- A batch whose marker is written, cancelled or not, waits for no job any more.
local function unended(id)
  if call('LLEN', P .. 'lines:' .. id) > 0 then return true end
  for _, status in ipairs(STATUSES) do
    if not OVER[status] and call('ZCARD', P .. 'jobs#' .. id .. ':' .. status) > 0 then return true end
  end
end

-- Each batch: {id, what is wrong, marked}. Its jobs are those on record, and those that closed it and were deleted.
function verbs.inspect_batches()
  local out = {}
  for i = 3, #ARGV do
    local id, found = ARGV[i], {}
    local r = call('HMGET', P .. 'batch:' .. id, 'status', 'total', 'marked')
    local due = call('ZSCORE', P .. 'due', 'batch:' .. id)
    if r[1] and r[3] ~= '1' and not due then found[1] = 'undue' end
    if r[3] == '1' and not (due or call('ZSCORE', P .. 'ended', id)) then found[1] = 'unforgettable' end
    if r[2] and r[3] ~= '1' then
      local made = call('SCARD', P .. 'closed:' .. id)
      for _, job in ipairs(call('ZRANGE', P .. 'jobs#' .. id, 0, -1)) do
        if call('SISMEMBER', P .. 'closed:' .. id, job) == 0 then made = made + 1 end
      end
      if made < r[2] - call('LLEN', P .. 'lines:' .. id) then found[#found + 1] = 'incomplete' end
    end
    if r[3] == '1' and unended(id) then found[#found + 1] = 'unended' end
    out[#out + 1] = {id, found, r[1] or 'gone', r[3] == '1' and 1 or 0}
  end
  return {'inspected', int(now), {}, out}
end

-- Notifications that nobody will send, or that would never leave Redis: {id, what is wrong, …}
function verbs.inspect_notices()
  local out = {}
  for i = 3, #ARGV do
    local id, key = ARGV[i], P .. 'notice:' .. ARGV[i]
    local state, word = call('HGET', key, 'state'), nil
    if state == 'pending' then
      local due, listed = call('ZSCORE', P .. 'due', 'notify:' .. id), call('ZSCORE', P .. 'notices', id)
      if not (due and listed) then word = 'untold' end
    elseif state and call('PTTL', key) < 0 then word = 'unforgettable' end
    if word then out[#out + 1] = id; out[#out + 1] = word end
  end
  return {'inspected', int(now), {}, out}
end

-- Members of a sorted set that speak of a job, a batch or a notification without a record.
function verbs.strays()
  local out = {}
  for i = 3, #ARGV do
    local kind, id = string.match(ARGV[i], '^(%a+):(.+)$')
    local known = true
    if kind == 'notify' or a.set == 'notices' then known = call('EXISTS', P .. 'notice:' .. (id or ARGV[i])) == 1
    elseif not kind or kind == 'job' or kind == 'batch' then known = on_record(id or ARGV[i]) end
    if string.sub(a.set, 1, 5) == 'slots' and call('EXISTS', P .. 'remains:' .. ARGV[i]) == 1 then
      known = call('ZSCORE', P .. 'due', 'settle:' .. ARGV[i])
    end
    if not known and call('ZSCORE', P .. a.set, ARGV[i]) then out[#out + 1] = ARGV[i] end
  end
  return {'inspected', int(now), {}, out}
end

-- Provider tasks whose job has no record; those of a deleted job expire by themselves.
function verbs.unowned()
  local out = {}
  for i = 3, #ARGV do
    local owner = call('GET', P .. 'task:' .. ARGV[i])
    if owner and call('PTTL', P .. 'task:' .. ARGV[i]) < 0 and not on_record(owner) then out[#out + 1] = ARGV[i] end
  end
  return {'inspected', int(now), {}, out}
end

-- By how many lines the count of what is not a job yet is wrong.
function verbs.misfolded()
  local lines = 0
  for _, id in ipairs(call('ZRANGE', P .. 'batches', 0, -1)) do lines = lines + call('LLEN', P .. 'lines:' .. id) end
  return {'inspected', int(now), {}, (num(call('GET', P .. 'folded')) or 0) - lines}
end
