-- A page of lots, packed as they are stored. Writes nothing.
local _, which, limit, expires_at, after = unpack(ARGV)
local stored = redis.call('HMGET', ACCT, 'ts', 'lots')
if not stored[1] then return { 'no_account' } end
local now = clock(tonumber(stored[1]))

local numbers = {}
if which == 'all' then
  local last = after == '' and tonumber(stored[2]) or tonumber(after) - 1
  for number = last, math.max(last - tonumber(limit) + 1, 1), -1 do
    numbers[#numbers + 1] = text(number)
  end
else
  -- Those of one instant are in the order of their names.
  local from = '(' .. text(now)
  if after ~= '' and tonumber(expires_at) > now then from = expires_at end
  local skipped, found = 0, nil
  repeat
    found = redis.call('ZRANGEBYSCORE', LOTS, from, '+inf', 'WITHSCORES', 'LIMIT', skipped, 100)
    for at = 1, #found, 2 do
      local is_after = after == '' or tonumber(found[at + 1]) > tonumber(expires_at)
        or found[at] > after
      if is_after and #numbers < tonumber(limit) then
        numbers[#numbers + 1] = text(number_of(found[at]))
      end
    end
    skipped = skipped + 100
  until #found < 200 or #numbers >= tonumber(limit)
end

local lots = {}
for at, number in ipairs(numbers) do
  lots[at] = number .. ' ' .. redis.call('HGET', LOT, number)
end
return { 'ok', text(now), lots }
