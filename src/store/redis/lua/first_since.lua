-- The number of the first entry at or after a time: by bisection, because times never fall
-- along the dense sequence. Writes nothing.
local since = tonumber(ARGV[2])
local seq = redis.call('HGET', ACCT, 'seq')
if not seq then return { 'no_account' } end
local oldest = redis.call('XRANGE', LED, '-', '+', 'COUNT', 1)[1]
local low = oldest and tonumber(string.match(oldest[1], '^%d+')) or tonumber(seq) + 1
local high = tonumber(seq) + 1
while low < high do
  local middle = math.floor((low + high) / 2)
  if tonumber(fields(entry_at(text(middle))).t) < since then
    low = middle + 1
  else
    high = middle
  end
end
return { 'ok', text(low) }
