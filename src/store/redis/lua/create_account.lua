-- A new account without credits.
local _, name = unpack(ARGV)
if redis.call('EXISTS', ACCT) == 1 then return { 'exists' } end
local now = text(clock(0))
redis.call('HSET', ACCT, 'status', 'open', 'balance', '0', 'seq', '0', 'ts', now, 'lots', '0',
  'held', '0', 'name', name, 'created', now)
return { 'ok' }
