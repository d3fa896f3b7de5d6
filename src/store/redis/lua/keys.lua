-- What a key may still do: its spend caps and its limits a minute. The same rules as
-- `billing::limit`.

local PARTS = 60000
local PERIODS = { 'daily', 'weekly', 'monthly', 'total' }
local TERMS_OF = {
  'revoked', 'expires_at', 'running', 'requests', 'tokens', 'daily', 'weekly', 'monthly', 'total',
}

-- A bucket that empties steadily, a whole one in a minute, in parts of 60000.
local function level_of(packed, limit, now)
  local level, at = string.match(packed or '0 0', '^(%d+) (%d+)$')
  at = tonumber(at)
  return math.max(tonumber(level) - math.max(now - at, 0) * limit, 0), math.max(at, now)
end

-- Nothing, if an amount fits; else what is in the bucket, and the wait until it would.
local function overflow(level, limit, amount)
  local room = math.max(limit - amount, 0) * PARTS
  if level <= room and limit > 0 then return nil end
  local wait = limit == 0 and PARTS or math.ceil((level - room) / limit)
  return { text(math.ceil(level / PARTS)), text(wait) }
end

local function terms_of(books, key)
  local terms = books.terms[key]
  if terms then return terms end
  terms = { limits = {}, key = key, levels = {}, ats = {} }
  local stored = redis.call('HGET', TERMS, key)
  if stored then
    terms.known = true
    local at = 1
    for value in string.gmatch(stored, '%S+') do
      terms.limits[TERMS_OF[at]] = tonumber(value)
      at = at + 1
    end
  end
  local spent = redis.call('HGET', SPENT, key)
  if spent then
    local fields = {}
    for value in string.gmatch(spent, '%S+') do fields[#fields + 1] = tonumber(value) end
    terms.spent = {
      daily = fields[1], weekly = fields[3], monthly = fields[5], total = fields[7],
      untils = { daily = fields[2], weekly = fields[4], monthly = fields[6] },
    }
  end
  books.terms[key] = terms
  return terms
end

-- Whether requests of a key need the balance alone to be admitted, so that they may take places
-- that were lent ahead: yes; not those of this key; not those of this account.
local function lending(books, terms)
  local is_lenient = books.mode == '' or books.mode == 'lenient'
  if books.status ~= 'open' or books.balance <= 0 or not is_lenient
    or books.lends_from > books.ts then
    return 'account'
  end
  local is_free = terms.known and not terms.spent and not next(terms.limits)
  return is_free and 'yes' or 'key'
end

-- Begins the periods that have begun, which end at `untils`; false, if those are not known.
local function roll(books, terms, untils)
  local spent = terms.spent
  if not spent then return true end
  local is_due = false
  for _, until_ts in pairs(spent.untils) do is_due = is_due or until_ts <= books.ts end
  if not is_due then return true end
  local daily, weekly, monthly = string.match(untils, '^(%d+) (%d+) (%d+)$')
  local next_of = {
    daily = tonumber(daily), weekly = tonumber(weekly), monthly = tonumber(monthly),
  }
  for period, until_ts in pairs(spent.untils) do
    if until_ts <= books.ts and (next_of[period] or 0) <= books.ts then return false end
  end
  for period, until_ts in pairs(spent.untils) do
    if until_ts <= books.ts then
      spent[period], spent.untils[period] = 0, next_of[period]
    end
  end
  terms.changed = true
  return true
end

local function write_terms(books)
  for key, terms in pairs(books.terms) do
    if terms.changed then
      local spent = terms.spent
      redis.call('HSET', SPENT, key, table.concat({
        text(spent.daily), text(spent.untils.daily), text(spent.weekly),
        text(spent.untils.weekly), text(spent.monthly), text(spent.untils.monthly),
        text(spent.total),
      }, ' '))
    end
    for name, level in pairs(terms.levels) do
      redis.call('HSET', RATE, name .. key, text(level) .. ' ' .. text(terms.ats[name]))
    end
  end
end

-- The level of one of a key's buckets, to be changed and written with the books.
local function bucket(books, terms, name, limit)
  if not terms.levels[name] then
    local packed = redis.call('HGET', RATE, name .. terms.key)
    terms.levels[name], terms.ats[name] = level_of(packed, limit, books.ts)
  end
  return terms.levels[name]
end
