-- Whether the account made the object, and not too long ago. Writes nothing.
local until_ts = redis.call('GET', KEYS[1])
return { until_ts and tonumber(until_ts) > clock(0) and 'yes' or 'no' }
