-- Keeps a key of an account in place of the one that was read, and what admission asks of it.
local _, id, before, record, terms, seen, daily, daily_until, weekly, weekly_until, monthly,
  monthly_until, total = unpack(ARGV)
if redis.call('EXISTS', ACCT) == 0 then return { 'no_account' } end
local stored = redis.call('HGET', KEY, id) or ''
if stored ~= before then return { 'changed', stored } end

if daily then
  -- Requests that were settled after what its caps count was added up.
  local since = 0
  for _, row in ipairs(redis.call('XRANGE', USE, '(' .. seen, '+')) do
    local named = fields(row)
    local packed = named.r and not named.c and cjson.decode(named.r)
    if packed and packed[5] == id then since = since + packed[9] end
  end
  redis.call('HSET', SPENT, id, table.concat({
    text(tonumber(daily) + since), daily_until, text(tonumber(weekly) + since), weekly_until,
    text(tonumber(monthly) + since), monthly_until, text(tonumber(total) + since),
  }, ' '))
else
  redis.call('HDEL', SPENT, id)
end
redis.call('HSET', KEY, id, record)
redis.call('HSET', TERMS, id, terms)
return { 'ok', tostring(redis.call('HLEN', LENT)) }
