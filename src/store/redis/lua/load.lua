-- Adds items to a stream: their ids, how many fields and values each has, and those.
local at = 1
while at <= #ARGV do
  local count = tonumber(ARGV[at + 1])
  redis.call('XADD', KEYS[1], ARGV[at], unpack(ARGV, at + 2, at + 1 + count))
  at = at + 2 + count
end
return { 'ok' }
