-- An account as it is now, whether or not what has ended is written off. Writes nothing.
local stored = redis.call('HMGET', ACCT, 'status', 'balance', 'ts', 'held', 'name', 'created',
  'mode', 'max_in_flight')
if not stored[1] then return { 'no_account' } end
local now = text(clock(tonumber(stored[3])))

local balance = tonumber(stored[2])
for _, name in ipairs(redis.call('ZRANGEBYSCORE', LOTS, '-inf', now)) do
  balance = balance - lot_of({ lots = {} }, number_of(name)).remaining
end
local held, running = tonumber(stored[4]), redis.call('ZCARD', FLIGHT)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', FLIGHT, '-inf', now)) do
  held = held - unpack_flight(redis.call('HGET', FLY, id)).held
  running = running - 1
end
return {
  'ok', stored[1], text(balance), text(held), text(running), stored[5], stored[6],
  stored[7] or '', stored[8] or '',
}
