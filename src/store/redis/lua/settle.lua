-- Debit, entry, usage row and sums of requests of one account, each once, and their places
-- given back.
local FIXED, PER, TTL = tonumber(ARGV[2]), 14, ARGV[3]
local count = (#ARGV - 3) / PER
local books = open_with_flights()
if not books then return { 'no_account' } end

local answers, rows, markers, found, sums = {}, {}, {}, {}, {}
-- One question for all of them: to ask costs more than to answer. Where any was settled before,
-- marks are asked for one by one, because MGET takes one that is not a text for none.
local ids = {}
for n = 1, count do ids[n] = ARGV[4 + (n - 1) * PER] end
local flights = redis.call('HMGET', FLY, unpack(ids))
local marked = redis.call('EXISTS', unpack(KEYS, FIXED + 1, FIXED + count))
for n = 1, count do
  local at = 4 + (n - 1) * PER
  local id, print, charge, completed, key = unpack(ARGV, at, at + 4)
  charge = tonumber(charge)
  local tokens, untils = unpack(ARGV, at + 12, at + 13)
  local terms = terms_of(books, key)
  local done = found[id] or marked > 0 and redis.call('GET', KEYS[FIXED + n])
  local late = books.status == 'closed'
  local taken = late and 0 or charge
  local refused = charge < 0 and 'sign' or refusal(books, -taken)
  if done then
    local first, _, balance = done_before(done)
    answers[n] = { first == print and 'duplicate' or 'conflict', balance }
  elseif refused then
    answers[n] = { refused }
  elseif not roll(books, terms, untils) then
    answers[n] = { 'when', text(books.ts) }
  else
    if terms.spent then
      for _, period in ipairs(PERIODS) do
        terms.spent[period] = terms.spent[period] + taken
      end
      terms.changed = true
    end
    local parts = take(books, taken, 'used')
    local seq = '-'
    if charge > 0 or completed == '1' then
      local note
      if late and charge > 0 then
        note = 'not charged, the account was closed: ' .. decimal(charge)
      end
      append(books, 'debit_ai', -taken, books.balance, id, parts, note)
      seq = text(books.seq)
    end
    found[id] = remember(print, seq, books.balance)
    markers[#markers + 1] = { KEYS[FIXED + n], found[id] }
    rows[#rows + 1] = { at = at, id = id, charge = text(taken), late = late }
    answers[n] = { 'ok', text(books.balance) }
  end

  -- The request has ended, whatever is answered, unless it is asked again.
  local flight = answers[n][1] ~= 'when' and flights[n]
  if flight and not books.gone[id] then
    flight = unpack_flight(flight)
    give_back(books, id, flight)
    local limit = terms.limits.tokens
    if limit then
      local level = bucket(books, terms, 'tokens ', limit)
      terms.levels['tokens '] = math.max(level + (tonumber(tokens) - flight.tokens) * PARTS, 0)
    end
  end
end

for n, answer in ipairs(answers) do
  if answer[1] == 'ok' then
    answer[3] = lending(books, terms_of(books, ARGV[8 + (n - 1) * PER]))
  end
end

close_if_idle(books)
local ts = text(books.ts)
write_with_flights(books)
write_terms(books)
local listed = {}
for n, row in ipairs(rows) do ids[n] = row.id end
if #rows > 0 then listed = redis.call('HMGET', LOST, unpack(ids, 1, #rows)) end
for n, row in ipairs(rows) do
  local group, input, cached, creation, output, estimated, packed =
    unpack(ARGV, row.at + 5, row.at + 11)
  local lost = listed[n]
  if lost then
    local old, name = string.match(lost, '^(%S+) (.*)$')
    redis.call('XDEL', USE, old)
    -- Who reads the history meanwhile begins again.
    redis.call('HINCRBY', ACCT, 'relisted', 1)
    redis.call('HDEL', LOST, row.id)
    if redis.call('HINCRBY', HOURLY, 'r' .. name, -1) == 0 then
      redis.call('HDEL', HOURLY, 'r' .. name)
      redis.call('ZREM', HOURS, name)
    end
    redis.call('DEL', OVER)
    redis.call('HSET', OVER, 'version', row.id)
  end
  if row.late then
    redis.call('XADD', USE, ts .. '-*', 'r', packed, 'c', '1')
  else
    redis.call('XADD', USE, ts .. '-*', 'r', packed)
  end
  add_to_sums(sums, group, {
    i = input, c = cached, w = creation, o = output, e = estimated, x = row.charge,
  })
end
write_sums(books.ts, sums)
for _, marker in ipairs(markers) do redis.call('SET', marker[1], marker[2], 'EX', TTL) end
return answers
