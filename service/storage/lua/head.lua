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
--   batch:{id}          hash    the record of a batch; `staging` until it is whole, with `marked` nothing is left to do
--   lines:{batch}       list    what is not a job yet: JSON of arguments and fields, or ids of jobs to be retried
--   inputs:{batch}      list    jobs of an upload whose input images are in the bucket
--   closed:{batch}      set     its jobs that ended, with a sidecar or deleted
--   upload:{caller}:{key} string the batch that is being uploaded under an idempotency key; expires with its lease
--   folded              string  lines of sealed batches that are not jobs yet
--   batches[@caller]    zset    ids of batches, for lists
--   notice:{id}         hash    the notification of a job or batch: caller, url or (sealed) hook, state, since, tries;
--                               expires with the retention once it is delivered, given_up or off
--   tries:{id}          list    its newest tries, JSON
--   notices             zset    notifications that are pending → since when
--   notified            hash    how many tries were delivered, failed, given_up (with their last), off
--   ended               zset    jobs and batches with nothing left to do → since when; the sweep forgets them after the retention
--   tomb:{id}           string  the caller of a deleted job
--   remains:{id}        hash    of a deleted job whose task may still run: group, open, tasks, intent_at, submitted_at;
--                               it keeps its slot
--   procs               zset    worker processes → their last beat; `watch`, hash: since when somebody looks at them
--   inflight:{who}      hash    the jobs in the hands of a process, or of a group → the end of the lease it was given
--   holders             hash    those jobs → in whose hands
--   suspects            hash    jobs that were in flight when a process died → the group they run in, or `submit`: only
--                               that step of it is suspect, and its time is yet to come
--   groups, grouped     zset, string   groups of suspects → when due, or the end of their lease; how many there were
--   group:{group}       list    its jobs
--   crashes             hash    suspects → how often they crashed when alone
--   bereaved            hash    groups → how often their keeper died with them in the hands of its child
--   events              stream  one entry a transition, for readers
--   took:{model}        list    the last durations from acceptance to ready, ms
--   found               list    of the last images: webhook | late:{ms} | lost (what became of the callback)
--   awaited             zset    jobs that a poll found ready and whose callback may yet come → since when

local P, verb, a = KEYS[1], ARGV[1], cjson.decode(ARGV[2])
local call = redis.call
local cfg = a.cfg

local SAFETY_MS = 3600000    -- a waiting job is looked at this often even if every wake-up was lost
local SEEN = 6               -- event ids kept for replayed calls
local LOG_LENGTH = 200
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

-- The record is the very one that the caller has read. Its version alone does not say so: after a failover to a replica
-- that was behind, another history of the job comes to the same number.
local function stands(id, version)
  local r = call('HMGET', P .. 'job:' .. id, 'version', 'sum')
  return r[1] == version and (not a.digest or r[2] == a.digest)
end

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

local verbs = {}
