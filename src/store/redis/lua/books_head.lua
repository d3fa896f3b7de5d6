-- All of an account that changes, at one instant: from there on, what was written before only
-- has to be read. Writes nothing.
local stored = redis.call('HMGET', ACCT, 'balance', 'seq', 'ts', 'held', 'relisted')
if not stored[1] then return { 'no_account' } end
local last = redis.call('XREVRANGE', USE, '+', '-', 'COUNT', 1)[1]
local hour = text(math.floor(tonumber(stored[3]) / HOUR))
local sums = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', HOURS, hour, '+inf')) do
  local sum = { name }
  for _, letter in ipairs({ 'r', 'i', 'c', 'w', 'o', 'x', 'e' }) do
    sum[#sum + 1] = redis.call('HGET', HOURLY, letter .. name) or '0'
  end
  sums[#sums + 1] = sum
end
return {
  'ok', stored[1], stored[2], stored[3], stored[4], last and last[1] or '', hour,
  redis.call('HMGET', TRIMMED, 'step', 'state'), redis.call('HGETALL', LOT),
  redis.call('HGETALL', FLY), sums, stored[5] or '0',
}
