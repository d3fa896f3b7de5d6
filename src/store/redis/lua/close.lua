-- Ends an account: from now on nothing is admitted, and once nothing runs it is closed.
local _, id, print = unpack(ARGV)
local done = redis.call('HGET', OP, id)
if done then
  if done_before(done) ~= print then return { 'conflict' } end
  return { 'duplicate' }
end
if redis.call('EXISTS', KEYS[#KEYS]) == 1 then return { 'conflict' } end
local books = open_with_flights()
if not books then return { 'no_account' } end
if books.status == 'open' then books.status = 'closing' end
local balance = books.balance
lapse(books)
close_if_idle(books)
write_with_flights(books)
redis.call('HSET', OP, id, remember(print, '-', balance))
return { 'ok', next_due(books), tostring(redis.call('HLEN', LENT)) }
