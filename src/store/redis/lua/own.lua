-- Who made an object is remembered for as long as asked.
local until_ts = clock(0) + tonumber(ARGV[2])
redis.call('SET', KEYS[1], text(until_ts), 'PX', ARGV[2])
return { 'ok' }
