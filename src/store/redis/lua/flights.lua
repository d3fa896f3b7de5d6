-- Requests that run: each has a place, lent until an instant. Whoever runs it lends it on for
-- as long as it runs; a place that was not is free again, and its request was abandoned.

local HOUR = 3600000

-- Of the requests of each key: how many run, and what is held for them.
local function running_of(books, key)
  local running = books.running[key]
  if not running then
    local packed = redis.call('HGET', RUNNING, key)
    local count, held = string.match(packed or '0 0', '^(%d+) (%d+)$')
    running = { count = tonumber(count), held = tonumber(held) }
    books.running[key] = running
  end
  return running
end

local function unpack_flight(packed)
  local held, since, tokens, key, model = string.match(packed, '^(%d+) (%d+) (%d+) (%S*) (.*)$')
  return {
    held = tonumber(held), since = tonumber(since), tokens = tonumber(tokens), key = key,
    model = model,
  }
end

-- Notes that a place is given back; it is written with the books.
local function give_back(books, id, flight)
  if books.gone[id] then return end
  books.gone[id] = true
  books.held = books.held - flight.held
  local running = running_of(books, flight.key)
  running.count = running.count - 1
  running.held = running.held - flight.held
  books.ended[#books.ended + 1] = id
end

-- Requests whose places have ended, listed as they are: without a charge.
local function lapse(books)
  local ended = redis.call('ZRANGEBYSCORE', FLIGHT, '-inf', text(books.ts))
  for _, id in ipairs(ended) do
    local flight = unpack_flight(redis.call('HGET', FLY, id))
    give_back(books, id, flight)
    flight.id = id
    books.lost[#books.lost + 1] = flight
  end
end

-- Places that are lent ahead to processes (`lent.rs`), and when the first of them are free again
-- if nobody lends them on. Those of processes that died are.
local function lent_ahead(books)
  local count, first = 0, nil
  local lent = redis.call('HGETALL', LENT)
  for at = 1, #lent, 2 do
    local places, until_ts = string.match(lent[at + 1], '^(%d+) (%d+)$')
    until_ts = tonumber(until_ts)
    if until_ts <= books.ts then
      redis.call('HDEL', LENT, lent[at])
    else
      count = count + tonumber(places)
      first = math.min(first or until_ts, until_ts)
    end
  end
  return count, first
end

-- Lends more places to a process, or takes back what it does not use.
local function lend(books, process, more, lease)
  local packed = redis.call('HGET', LENT, process)
  local places = tonumber(string.match(packed or '0 0', '^(%d+)')) + more
  if places > 0 then
    redis.call('HSET', LENT, process, text(places) .. ' ' .. text(books.ts + lease))
  else
    redis.call('HDEL', LENT, process)
  end
end

-- Ends an account that is closing once nothing runs: what is left of every lot is forfeited.
local function close_if_idle(books)
  if books.status ~= 'closing' then return end
  if redis.call('ZCARD', FLIGHT) > #books.ended or lent_ahead(books) > 0 then return end
  local at = 1
  while true do
    local lot = usable(books, at)
    if not lot then break end
    if lot.remaining > 0 then write_off(books, lot, 'forfeit', 'forfeited') end
    at = at + 1
  end
  books.status = 'closed'
end

-- Adds a request to the sums of its group. Numbers that Lua would round with others go alone.
local function add_to_sums(sums, group, counts)
  local sum = sums[group]
  if not sum then
    sum = { requests = 0, counts = {}, large = {} }
    sums[group] = sum
  end
  sum.requests = sum.requests + 1
  for letter, count in pairs(counts) do
    if #count > 12 then
      sum.large[#sum.large + 1] = { letter, count }
    elseif count ~= '0' then
      sum.counts[letter] = (sum.counts[letter] or 0) + tonumber(count)
    end
  end
end

local function write_sums(ts, sums)
  local hour = text(math.floor(ts / HOUR))
  for group, sum in pairs(sums) do
    local name = hour .. ' ' .. group
    if redis.call('HINCRBY', HOURLY, 'r' .. name, sum.requests) == sum.requests then
      redis.call('ZADD', HOURS, hour, name)
    end
    for letter, count in pairs(sum.counts) do
      redis.call('HINCRBY', HOURLY, letter .. name, text(count))
    end
    for _, one in ipairs(sum.large) do
      redis.call('HINCRBY', HOURLY, one[1] .. name, one[2])
    end
  end
end

local function open_with_flights()
  local books = open()
  if not books then return nil end
  books.running, books.ended, books.gone, books.lost, books.terms = {}, {}, {}, {}, {}
  return books
end

-- A row for each request that was abandoned, in place of the one that its settlement writes; one
-- alone, though an id was admitted and abandoned again.
local function list_lost(books)
  local sums = {}
  for _, flight in ipairs(books.lost) do
    if redis.call('HEXISTS', LOST, flight.id) == 0 then
      local ts = text(books.ts)
      local ran = text(math.max(books.ts - flight.since, 0))
      local row = redis.call('XADD', USE, ts .. '-*', 'x', flight.id, 'k', flight.key,
        'm', flight.model, 'l', ran)
      local group = cjson.encode({
        flight.model, flight.key, '', '', '', 'none', 'abandoned',
      })
      add_to_sums(sums, group, {})
      local hour = text(math.floor(books.ts / HOUR))
      redis.call('HSET', LOST, flight.id, row .. ' ' .. hour .. ' ' .. group)
    end
  end
  write_sums(books.ts, sums)
end

local function write_running(books)
  for key, running in pairs(books.running) do
    if running.count == 0 then
      redis.call('HDEL', RUNNING, key)
    else
      redis.call('HSET', RUNNING, key, text(running.count) .. ' ' .. text(running.held))
    end
  end
end

local function write_with_flights(books)
  write(books)
  -- Lua passes some thousand values at most, and more requests than that may end at a time.
  for at = 1, #books.ended, 1000 do
    local last = math.min(at + 999, #books.ended)
    redis.call('ZREM', FLIGHT, unpack(books.ended, at, last))
    redis.call('HDEL', FLY, unpack(books.ended, at, last))
  end
  write_running(books)
  list_lost(books)
end

-- When something is due in the account by time alone: the end of a lot or of a place.
local function next_due(books)
  local due = nil
  local _, lent = lent_ahead(books)
  local lease = redis.call('ZRANGE', FLIGHT, 0, 0, 'WITHSCORES')[2]
  for _, at in ipairs({ next_expiry(), lease or '', lent or '' }) do
    at = tonumber(at)
    if at then due = math.min(due or at, at) end
  end
  return due and text(due) or ''
end
