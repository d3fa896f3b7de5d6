-- Takes a payment back, or a part of it: from its own lot, then as a debit does.
local _, id, print, of, asked, note = unpack(ARGV)

local before = undone_before(id, print)
if before then return before end
local books = open()
if not books then return { 'no_account' } end
-- While it is closing there is still something to take.
if books.status == 'closed' then return { 'not_open', books.status } end

local done, seq = redis.call('HGET', OP, of), nil
if done then _, seq = done_before(done) end
local payment = to_undo(seq, 'topup', of)
if not payment then
  if done and seq ~= '-' and not entry_at(seq) then return { 'trimmed', of, seq } end
  return { 'not_found' }
end

local undoing, refused = amount_of(seq, tonumber(payment.a), asked)
if refused then return refused end
local amount = undoing.amount
if amount <= 0 then return { 'sign' } end
refused = refusal(books, -amount)
if refused then return { refused } end
if amount > undoing.left then return { 'more', text(undoing.left) } end

local own
for _, part in ipairs(parts_of(payment.p)) do
  if part[1] > 0 then
    own = lot_of(books, part[1])
    break
  end
end
local parts = take(books, amount, 'reversed', own)
return undo(books, 'payment_reversal', id, print, note, seq, undoing, parts, -amount)
