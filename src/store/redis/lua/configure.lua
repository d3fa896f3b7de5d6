-- Changes how an account is called or served: pairs of a field and its value.
local fields_and_values = { unpack(ARGV, 2) }
if redis.call('EXISTS', ACCT) == 0 then return { 'no_account' } end
-- Whoever admits by places that were lent before has to ask.
fields_and_values[#fields_and_values + 1] = 'lends_from'
fields_and_values[#fields_and_values + 1] = text(clock(0) + 1000)
redis.call('HSET', ACCT, unpack(fields_and_values))
return { 'ok', tostring(redis.call('HLEN', LENT)) }
