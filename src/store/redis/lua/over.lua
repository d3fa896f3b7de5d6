-- Leaves the sums of hours and days that are over as texts, and drops those that are empty; unless
-- something was taken out of such an hour since they were read. A server that can write nothing
-- now is only slower to read.
if (redis.call('HGET', OVER, 'version') or '0') ~= ARGV[1] then return { 'changed' } end
for at = 2, #ARGV, 2 do
  if ARGV[at + 1] == '' then
    redis.pcall('HDEL', OVER, ARGV[at])
  else
    redis.pcall('HSET', OVER, ARGV[at], ARGV[at + 1])
  end
end
return { 'ok' }
