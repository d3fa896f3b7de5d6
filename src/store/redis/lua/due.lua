-- When an account is to be looked at next, unless somebody has said so meanwhile.
local account, seen, due = unpack(ARGV)
if redis.call('ZSCORE', KEYS[1], account) ~= seen then return { 'changed' } end
if due == '' then
  redis.call('ZREM', KEYS[1], account)
else
  redis.call('ZADD', KEYS[1], due, account)
end
return { 'ok' }
