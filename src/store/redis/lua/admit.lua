-- Takes places for requests of one account, or says why not; and lends places ahead to a process
-- that has many.
local LEASE, PROCESS, WANTED, LAST, FIXED, PER = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]),
  ARGV[5], 5, 8
-- So long nothing is lent ahead where it has kept others waiting.
local PAUSE = 60000
local count = (#ARGV - FIXED) / PER
local books = open_with_flights()
if not books then return { 'no_account' } end
lapse(books)

local taken, answers = {}, {}
local ahead = lent_ahead(books)
local places = redis.call('ZCARD', FLIGHT) - #books.ended + ahead

-- Whether a mode lets a request run that costs at most `most`, when `held` of what is left is
-- held for others.
local function admits(mode, left, held, most)
  if left <= 0 then return false end
  if mode == 'lenient' then return true end
  if mode == 'one_request' then return left - held > 0 end
  return most ~= nil and left - held >= most
end

local function refused_by_account(mode, most, limit)
  if books.status ~= 'open' then return { 'not_open' } end
  if books.balance <= 0 then return { 'credits', text(books.balance) } end
  if mode == 'strict' and not most then return { 'unbounded' } end
  if not admits(mode, books.balance, books.held, most) then
    return { 'hold', text(books.balance), text(books.held), mode }
  end
  if places >= limit then
    -- Some that are lent ahead may be idle: whoever has them gives them back.
    if ahead > 0 and LAST == '' then return { 'crowded' } end
    return { 'in_flight', text(places), text(limit) }
  end
end

local function refused_by_key(terms, running, mode, most, tokens)
  local limits, spent = terms.limits, terms.spent
  for _, period in ipairs(PERIODS) do
    local cap = limits[period]
    if cap and not admits(mode, cap - spent[period], running.held, most) then
      return {
        'spend', period, text(cap), text(spent[period]), text(running.held),
        spent.untils[period] and text(spent.untils[period]) or '',
      }
    end
  end
  if limits.running and running.count >= limits.running then
    return { 'key_in_flight', text(running.count), text(limits.running) }
  end
  for _, rate in ipairs({ { 'requests', 1 }, { 'tokens', tokens } }) do
    local limit = limits[rate[1]]
    local full = limit and overflow(bucket(books, terms, rate[1] .. ' ', limit), limit, rate[2])
    if full then return { 'rate', rate[1], text(limit), full[1], full[2] } end
  end
end

local ids, is_crowded, most_places = {}, false, nil
for n = 1, count do ids[n] = ARGV[FIXED + 1 + (n - 1) * PER] end
local flights = redis.call('HMGET', FLY, unpack(ids))
for n = 1, count do
  local id, key, model, mode, limit, most, tokens, untils =
    unpack(ARGV, FIXED + 1 + (n - 1) * PER, FIXED + n * PER)
  most, tokens = tonumber(most), tonumber(tokens)
  if books.mode ~= '' then mode = books.mode end
  if books.limit ~= '' then limit = books.limit end
  local terms, running = terms_of(books, key), running_of(books, key)
  local limits = terms.limits
  if taken[id] or (flights[n] and not books.gone[id]) then
    answers[n] = { 'ok', text(books.balance), 'key' }
  elseif not terms.known then
    answers[n] = { 'no_key' }
  elseif limits.revoked then
    answers[n] = { 'ended', 'revoked' }
  elseif limits.expires_at and limits.expires_at <= books.ts then
    answers[n] = { 'ended', 'expired' }
  elseif not roll(books, terms, untils) then
    answers[n] = { 'when', text(books.ts) }
  else
    local refused = refused_by_account(mode, most, tonumber(limit))
      or refused_by_key(terms, running, mode, most, tokens)
    if refused then
      answers[n] = refused
      is_crowded = is_crowded or refused[1] == 'crowded'
    else
      local hold = mode == 'lenient' and 0 or most or (books.balance - books.held)
      books.held = books.held + hold
      running.count = running.count + 1
      running.held = running.held + hold
      places = places + 1
      taken[id] = { hold, tokens, key, model }
      for _, rate in ipairs({ { 'requests ', limits.requests, 1 },
        { 'tokens ', limits.tokens, tokens } }) do
        if rate[2] then
          terms.levels[rate[1]] = terms.levels[rate[1]] + rate[3] * PARTS
        end
      end
      answers[n] = { 'ok', text(books.balance), lending(books, terms) }
      if answers[n][3] == 'yes' then most_places = tonumber(limit) end
    end
  end
end

-- Half of what is left at most, so that other processes find room too.
local more = 0
if is_crowded then
  redis.call('HSET', ACCT, 'lends_from', text(books.ts + PAUSE))
elseif most_places then
  more = math.max(math.min(WANTED, math.floor((most_places - places) / 2)), 0)
  if more > 0 then lend(books, PROCESS, more, LEASE) end
end
answers[count + 1] = text(more)

-- Only what has changed: a place alone is no business of the ledger.
if #books.lines > 0 or #books.ended > 0 then
  write_with_flights(books)
else
  write_running(books)
  if next(taken) then redis.call('HSET', ACCT, 'held', text(books.held)) end
end
write_terms(books)
local lent_until = text(books.ts + LEASE)
local lent, fly = {}, {}
for id, flight in pairs(taken) do
  lent[#lent + 1] = lent_until
  lent[#lent + 1] = id
  fly[#fly + 1] = id
  fly[#fly + 1] = table.concat({
    text(flight[1]), text(books.ts), text(flight[2]), flight[3], flight[4],
  }, ' ')
end
if #fly > 0 then
  redis.call('ZADD', FLIGHT, unpack(lent))
  redis.call('HSET', FLY, unpack(fly))
end
return answers
