-- Credits by the operator.
local _, id, print, kind, amount, expiry, at, day, year, note = unpack(ARGV)
amount = tonumber(amount)

local done = redis.call('HGET', OP, id)
if done then
  local first, seq = done_before(done)
  if first ~= print then return { 'conflict' } end
  local entry = entry_at(seq)
  if not entry then return { 'trimmed', id, seq } end
  return { 'duplicate', entry, next_expiry() }
end
if redis.call('EXISTS', KEYS[#KEYS]) == 1 then return { 'conflict' } end

local books = open()
if not books then return { 'no_account' } end
-- The one thing that may still happen to a closed account.
local writes_debt_off = kind == 'adjust' and books.status == 'closed' and amount > 0
  and amount <= -books.balance
if books.status ~= 'open' and not writes_debt_off then return { 'not_open', books.status } end

local is_credit = amount > 0
if amount == 0 or (not is_credit and kind ~= 'adjust') then return { 'sign' } end
local refused = refusal(books, amount)
if refused then return { refused } end

local parts
if is_credit then
  local expires_at = in_a_year(books, day, year)
  if not expires_at then return { 'when', text(books.ts) } end
  local class = kind == 'promo' and 'promo' or 'usage'
  if expiry == 'at' then
    expires_at = math.min(expires_at, tonumber(at))
  elseif expiry == 'after' then
    expires_at = math.min(expires_at, books.ts + tonumber(at))
  end
  if expires_at <= books.ts then return { 'expiry_past' } end
  parts = credit(books, amount, class, expires_at, id)
else
  parts = take(books, -amount, 'used')
end
append(books, kind, amount, books.balance, id, parts, note ~= '' and note or nil)
write(books)
redis.call('HSET', OP, id, remember(print, text(books.seq), books.balance))
return { 'ok', entry_at(text(books.seq)), next_expiry() }
