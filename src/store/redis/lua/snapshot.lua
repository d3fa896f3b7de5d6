-- All of an account that may change, as it is at one instant, for a copy. What was written of
-- its history before is read afterwards. Writes nothing.
local stored = redis.call('HMGET', ACCT, 'seq', 'ts')
if not stored[1] then return { 'no_account' } end
local last = redis.call('XREVRANGE', USE, '+', '-', 'COUNT', 1)[1]
local hour = text(math.floor(tonumber(stored[2]) / HOUR))
local names, sums = redis.call('ZRANGEBYSCORE', HOURS, hour, '+inf', 'WITHSCORES'), {}
for at = 1, #names, 2 do
  for _, letter in ipairs({ 'r', 'i', 'c', 'w', 'o', 'x', 'e' }) do
    local count = redis.call('HGET', HOURLY, letter .. names[at])
    if count then
      sums[#sums + 1] = letter .. names[at]
      sums[#sums + 1] = count
    end
  end
end
local order = redis.call('ZRANGE', LOTS, 0, -1, 'WITHSCORES')
local hashes = {}
for at, key in ipairs({ ACCT, LOT, OP, UNDONE, LOST, KEY, TERMS, SPENT, TRIMMED }) do
  hashes[at] = redis.call('HGETALL', key)
end
return { 'ok', stored[1], last and last[1] or '', hour, hashes, order, names, sums }
