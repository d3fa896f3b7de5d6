-- How much is written of an account, and since when. Writes nothing.
local seq = redis.call('HGET', ACCT, 'seq')
if not seq then return { 'no_account' } end
local oldest = redis.call('XRANGE', LED, '-', '+', 'COUNT', 1)[1]
local trimmed = redis.call('HMGET', TRIMMED, 'seq', 'before')
return { 'ok', seq, oldest and fields(oldest).t or '', trimmed[1] or '0', trimmed[2] or '' }
