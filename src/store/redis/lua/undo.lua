-- What refunds and chargebacks have in common: the entry that they undo, and how much of it
-- is left to be undone.

-- The result of the same operation before, or nothing.
local function undone_before(id, print)
  local done = redis.call('HGET', OP, id)
  if done then
    local first, seq = done_before(done)
    if first ~= print then return { 'conflict' } end
    local entry = entry_at(seq)
    if not entry then return { 'trimmed', id, seq } end
    return { 'duplicate', entry, next_expiry() }
  end
  if redis.call('EXISTS', KEYS[#KEYS]) == 1 then return { 'conflict' } end
end

-- The entry with this number if it is of this kind and about `of`.
local function to_undo(seq, kind, of)
  if not seq or seq == '' or seq == '-' then return nil end
  local entry = entry_at(seq)
  if not entry then return nil end
  local named = fields(entry)
  if named.k == kind and named.r == of then return named end
end

-- What was undone of an entry before, and what is to be now; or why that cannot be.
local function amount_of(seq, booked, asked)
  local before = tonumber(redis.call('HGET', UNDONE, seq) or '0')
  local left = booked - before
  local amount = left
  if asked ~= '' then
    amount = tonumber(asked)
  elseif left <= 0 then
    return nil, { 'more', text(left) }
  end
  return { before = before, left = left, amount = amount }
end

local function undo(books, kind, id, print, note, seq, undo, parts, amount)
  append(books, kind, amount, books.balance, id, parts, note, seq)
  write(books)
  redis.call('HSET', UNDONE, seq, text(undo.before + undo.amount))
  redis.call('HSET', OP, id, remember(print, text(books.seq), books.balance))
  return { 'ok', entry_at(text(books.seq)), next_expiry() }
end
