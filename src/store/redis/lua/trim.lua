-- Removes the oldest entries and requests of an account, and sets in their place the checkpoint
-- that was made of them; unless another has trimmed it since they were read.
local _, step, first, last, before, state = unpack(ARGV)
if (redis.call('HGET', TRIMMED, 'step') or '0') ~= step then return { 'changed' } end
local after = text(tonumber(last) + 1)
redis.call('XTRIM', LED, 'MINID', after .. '-0')
redis.call('ZREMRANGEBYSCORE', RARE, '-inf', last)
-- What is gone cannot be undone any more. What operators did is remembered for ever (OP).
for seq = tonumber(first), tonumber(last) do redis.call('HDEL', UNDONE, text(seq)) end
redis.call('XTRIM', USE, 'MINID', before)
for at = 7, #ARGV do redis.call('HDEL', LOST, ARGV[at]) end
redis.call('HSET', TRIMMED, 'step', text(tonumber(step) + 1), 'seq', last, 'before', before,
  'state', state)
return { 'ok' }
