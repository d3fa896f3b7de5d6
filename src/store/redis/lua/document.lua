-- A document that has not expired. Writes nothing.
local stored = redis.call('HMGET', KEYS[1], 'body', 'version', 'expires_at')
if not stored[1] then return { 'none' } end
if stored[3] ~= '' and tonumber(stored[3]) <= clock(0) then return { 'none' } end
return { 'ok', stored[1], stored[2] }
