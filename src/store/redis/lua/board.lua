-- Gives requests that run on places lent ahead a place of their own, so that all know of them:
-- '1', or '0' for one that was settled before; and until when their places are lent.
local LEASE, PROCESS, FIXED, PER = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), 4
local count = (#ARGV - 4) / PER
local books = open_with_flights()
if not books then return { 'no_account' } end
local answers, boarded = {}, 0
for n = 1, count do
  local id, key, model, ran = unpack(ARGV, 5 + (n - 1) * PER, 4 + n * PER)
  if redis.call('EXISTS', KEYS[FIXED + n]) == 1 then
    answers[n] = '0'
  else
    local running = running_of(books, key)
    running.count = running.count + 1
    redis.call('ZADD', FLIGHT, text(books.ts + LEASE), id)
    redis.call('HSET', FLY, id,
      table.concat({ '0', text(math.max(books.ts - ran, 0)), '0', key, model }, ' '))
    boarded = boarded + 1
    answers[n] = '1'
  end
end
write_running(books)
if redis.call('HEXISTS', LENT, PROCESS) == 1 then lend(books, PROCESS, -boarded, LEASE) end
answers[count + 1] = text(books.ts + LEASE)
return answers
