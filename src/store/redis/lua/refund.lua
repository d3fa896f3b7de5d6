-- Gives a charge back, or a part of it: what was taken last returns first.
local _, id, print, of, asked, note, day, year, found = unpack(ARGV)
local REFUNDED_PROMO = 30 * DAY

local before = undone_before(id, print)
if before then return before end
local books = open()
if not books then return { 'no_account' } end
if books.status ~= 'open' then return { 'not_open', books.status } end

local marker, seq = redis.call('GET', KEYS[#KEYS - 1]), found
if marker then _, seq = done_before(marker) end
local charged = to_undo(seq, 'debit_ai', of)
if not charged then return { 'not_found' } end

local undoing, refused = amount_of(seq, -tonumber(charged.a), asked)
if refused then return refused end
local amount = undoing.amount
if amount <= 0 then return { 'sign' } end
refused = refusal(books, amount)
if refused then return { refused } end
if amount > undoing.left then return { 'more', text(undoing.left) } end

local taken = parts_of(charged.p)
local parts, skip, rest = {}, undoing.before, amount
local fresh = { usage = 0, promo = 0 }
for at = #taken, 1, -1 do
  local place, part = taken[at][1], -taken[at][2]
  local skipped = math.min(part, skip)
  local back = math.min(part - skipped, rest)
  skip = skip - skipped
  rest = rest - back
  if back > 0 then
    back = pay_debt(books, back, parts)
    local lot = place > 0 and lot_of(books, place) or nil
    if lot and lot.expires_at > books.ts then
      lot.used = lot.used - back
      lot.remaining = lot.remaining + back
      books.balance = books.balance + back
      add_part(parts, place, back)
    else
      local class = lot and lot.class or 'usage'
      fresh[class] = fresh[class] + back
    end
  end
end
if fresh.usage > 0 then
  local expires_at = in_a_year(books, day, year)
  if not expires_at then return { 'when', text(books.ts) } end
  local lot = add_lot(books, 'usage', fresh.usage, 0, expires_at, id)
  add_part(parts, lot.number, fresh.usage)
end
if fresh.promo > 0 then
  local lot = add_lot(books, 'promo', fresh.promo, 0, books.ts + REFUNDED_PROMO, id)
  add_part(parts, lot.number, fresh.promo)
end
books.balance = books.balance + fresh.usage + fresh.promo
return undo(books, 'refund', id, print, note, seq, undoing, parts, amount)
