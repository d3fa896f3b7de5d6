-- The books of one account: how a balance changes. This is the second implementation of
-- `billing::ledger`, and is held to the first by tests.
--
-- A script opens the books, changes them in memory and writes them once, at its end: Redis
-- does not undo what a script wrote before it failed. Amounts are whole nano-credits below
-- 2^53. They are written by `text` alone, because Lua writes large numbers in the manner of
-- 1e+15 and turns nothing into -0.

local LIMIT, ENTRY_LIMIT = 9000000000000000, 1000000000000000
local DAY = 86400000

local texts = {}

local function text(number)
  if number == 0 then return '0' end
  local known = texts[number]
  if not known then
    known = string.format('%.0f', number)
    texts[number] = known
  end
  return known
end

-- Credits as people write them, such as 0.3.
local function decimal(nano)
  local digits = string.format('%010.0f', nano)
  local part = string.gsub(string.sub(digits, -9), '0+$', '')
  local whole = string.sub(digits, 1, -10)
  return part == '' and whole or whole .. '.' .. part
end

-- The store's own time, never before `last`. Tests set it by the first argument.
local function clock(last)
  local now = tonumber(ARGV[1])
  if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return math.max(now, last)
end

local function lot_of(books, number)
  local lot = books.lots[number]
  if lot then return lot end
  local packed = redis.call('HGET', LOT, text(number))
  local remaining, used, expired, to_debt, forfeited, reversed, rest =
    string.match(packed, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (.*)$')
  local expires_at, class = string.match(rest, '^%d+ %d+ (%d+) (%a+)')
  lot = {
    number = number, class = class, expires_at = tonumber(expires_at), rest = rest,
    remaining = tonumber(remaining), used = tonumber(used), expired = tonumber(expired),
    to_debt = tonumber(to_debt), forfeited = tonumber(forfeited), reversed = tonumber(reversed),
  }
  lot.was = lot.remaining
  books.lots[number] = lot
  return lot
end

-- As it stands in the list of lots that are not empty, whose order is the burn order.
local function member(lot)
  return (lot.class == 'promo' and '0:' or '1:') .. string.format('%016.0f', lot.number)
end

local function number_of(member)
  return tonumber(string.sub(member, 3))
end

-- Of a line of the ledger; a line about a lot refers to the lot.
local function append(books, kind, amount, after, reference, parts, note, undoes)
  local packed = {}
  for _, part in ipairs(parts) do
    packed[#packed + 1] = text(part[1]) .. ':' .. text(part[2])
  end
  books.seq = books.seq + 1
  local line = {
    't', text(books.ts), 'k', kind, 'a', text(amount), 'b', text(after), 'r', reference,
    'p', table.concat(packed, ','),
  }
  if undoes then line[#line + 1] = 'u'; line[#line + 1] = undoes end
  if note then line[#line + 1] = 'n'; line[#line + 1] = note end
  books.lines[#books.lines + 1] = { seq = text(books.seq), kind = kind, line = line }
  return line
end

-- Empties a lot without anybody using it.
local function write_off(books, lot, kind, term)
  local amount = lot.remaining
  lot[term] = lot[term] + amount
  lot.remaining = 0
  books.balance = books.balance - amount
  local reference = 'lot_' .. text(lot.number)
  append(books, kind, -amount, books.balance, reference, { { lot.number, -amount } })
end

-- Reads an account and writes off what has ended; nothing, if there is no such account.
local function open()
  local stored = redis.call('HMGET', ACCT, 'status', 'balance', 'seq', 'ts', 'lots', 'held',
    'mode', 'max_in_flight', 'lends_from')
  if not stored[1] then return nil end
  local books = {
    status = stored[1], balance = tonumber(stored[2]), seq = tonumber(stored[3]),
    ts = clock(tonumber(stored[4])), count = tonumber(stored[5]), held = tonumber(stored[6]),
    mode = stored[7] or '', limit = stored[8] or '', lends_from = tonumber(stored[9] or '0'),
    lots = {}, order = {}, lines = {},
  }
  local ended = redis.call('ZRANGEBYSCORE', LOTS, '-inf', text(books.ts))
  for _, name in ipairs(ended) do
    write_off(books, lot_of(books, number_of(name)), 'expiry', 'expired')
  end
  books.read = #ended
  return books
end

-- The lots that can be used, in burn order, a few at a time: a debit rarely needs more.
local function usable(books, at)
  if at > #books.order and not books.whole then
    local more = redis.call('ZRANGE', LOTS, books.read, books.read + 7)
    books.read = books.read + #more
    books.whole = #more < 8
    for _, name in ipairs(more) do
      books.order[#books.order + 1] = lot_of(books, number_of(name))
    end
  end
  return books.order[at]
end

-- Why an amount cannot be booked, if it cannot.
local function refusal(books, amount)
  if math.abs(amount) > ENTRY_LIMIT then return 'entry_limit' end
  if math.abs(books.balance + amount) > LIMIT then return 'balance_limit' end
end

local function add_part(parts, place, amount)
  if amount == 0 then return end
  for _, part in ipairs(parts) do
    if part[1] == place then
      part[2] = part[2] + amount
      return
    end
  end
  parts[#parts + 1] = { place, amount }
end

-- Takes an amount in full: from `first`, from the lots in burn order, then as debt (place 0).
local function take(books, amount, term, first)
  local parts, rest = {}, amount
  local function from(lot)
    local taken = math.min(lot.remaining, rest)
    lot.remaining = lot.remaining - taken
    lot[term] = lot[term] + taken
    rest = rest - taken
    add_part(parts, lot.number, -taken)
  end
  if first then from(first) end
  local at = 1
  while rest > 0 do
    local lot = usable(books, at)
    if not lot then break end
    from(lot)
    at = at + 1
  end
  add_part(parts, 0, -rest)
  books.balance = books.balance - amount
  return parts
end

-- A new lot, of which `to_debt` is gone at once.
local function add_lot(books, class, granted, to_debt, expires_at, source)
  books.count = books.count + 1
  local lot = {
    number = books.count, class = class, expires_at = expires_at, was = 0, is_new = true,
    remaining = granted - to_debt, used = 0, expired = 0, to_debt = to_debt, forfeited = 0,
    reversed = 0,
  }
  -- The entry that grants it is the next one.
  lot.rest = table.concat({
    text(granted), text(books.ts), text(expires_at), class, text(books.seq + 1), source,
  }, ' ')
  books.lots[lot.number] = lot
  return lot
end

-- Pays as much of the debt as there is; answers what is left of the amount.
local function pay_debt(books, amount, parts)
  local paid = math.min(math.max(-books.balance, 0), amount)
  books.balance = books.balance + paid
  add_part(parts, 0, paid)
  return amount - paid
end

-- Credits of a new lot. They pay the debt first.
local function credit(books, amount, class, expires_at, source)
  local parts = {}
  local rest = pay_debt(books, amount, parts)
  local lot = add_lot(books, class, amount, amount - rest, expires_at, source)
  add_part(parts, lot.number, rest)
  books.balance = books.balance + rest
  return parts
end

-- When twelve months have passed: the calendar is the caller's, who gives a day and what to
-- add to its instants. Nothing, if it is not that day.
local function in_a_year(books, day, wait)
  if math.floor(books.ts / DAY) == tonumber(day) then return books.ts + tonumber(wait) end
end

-- When the first lot ends.
local function next_expiry()
  return redis.call('ZRANGE', LOTS, 0, 0, 'WITHSCORES')[2] or ''
end

-- Writes what changed.
local function write(books)
  for _, entry in ipairs(books.lines) do
    redis.call('XADD', LED, entry.seq .. '-0', unpack(entry.line))
    if entry.kind ~= 'debit_ai' then redis.call('ZADD', RARE, entry.seq, entry.seq) end
  end
  for _, lot in pairs(books.lots) do
    if lot.is_new or lot.remaining ~= lot.was then
      local packed = table.concat({
        text(lot.remaining), text(lot.used), text(lot.expired), text(lot.to_debt),
        text(lot.forfeited), text(lot.reversed), lot.rest,
      }, ' ')
      redis.call('HSET', LOT, text(lot.number), packed)
    end
    if lot.remaining > 0 and lot.was == 0 then
      redis.call('ZADD', LOTS, text(lot.expires_at), member(lot))
    elseif lot.remaining == 0 and lot.was > 0 then
      redis.call('ZREM', LOTS, member(lot))
    end
  end
  redis.call('HSET', ACCT, 'status', books.status, 'balance', text(books.balance),
    'seq', text(books.seq), 'ts', text(books.ts), 'lots', text(books.count),
    'held', text(books.held))
end

-- The entry with a sequence number, as Redis answers it.
local function entry_at(seq)
  return redis.call('XRANGE', LED, seq .. '-0', seq .. '-0')[1]
end

local function fields(entry)
  local named = {}
  for at = 1, #entry[2], 2 do named[entry[2][at]] = entry[2][at + 1] end
  return named
end

local function parts_of(packed)
  local parts = {}
  for place, amount in string.gmatch(packed, '(%d+):(-?%d+)') do
    parts[#parts + 1] = { tonumber(place), tonumber(amount) }
  end
  return parts
end

-- What was done under an id: the print of its content, its entry, the balance after it.
local function done_before(packed)
  return string.match(packed, '^(%S+) (%S+) (%S+)$')
end

local function remember(print, seq, balance)
  return print .. ' ' .. seq .. ' ' .. text(balance)
end
