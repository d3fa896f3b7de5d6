-- Changes a document if it still has the version that its writer saw.
local _, replaces, body, expires_at, is_deleted = unpack(ARGV)
if KEYS[2] and redis.call('EXISTS', KEYS[2]) == 0 then return { 'no_account' } end
local now = clock(0)
local stored = redis.call('HMGET', KEYS[1], 'version', 'expires_at')
local found = stored[1]
if found and stored[2] ~= '' and tonumber(stored[2]) <= now then found = nil end
if (found or '') ~= replaces then return { 'changed' } end

-- By the clock, so that a document made anew never has a version of the one before.
local version = text(math.max(now, tonumber(found or '0') + 1))
redis.call('DEL', KEYS[1])
if is_deleted == '0' then
  redis.call('HSET', KEYS[1], 'body', body, 'version', version, 'expires_at', expires_at)
  -- Where tests set the clock, the server's own would end it too soon.
  if expires_at ~= '' and ARGV[1] == '' then redis.call('PEXPIREAT', KEYS[1], expires_at) end
end
return { 'ok', version }
