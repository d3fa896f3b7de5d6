-- Changes how an account is called or served: pairs of a field and its value.
local fields_and_values = { unpack(ARGV, 2) }
if redis.call('EXISTS', ACCT) == 0 then return { 'no_account' } end
if #fields_and_values > 0 then redis.call('HSET', ACCT, unpack(fields_and_values)) end
return { 'ok' }
