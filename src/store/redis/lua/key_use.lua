-- What is used of a key's limits. Writes nothing.
local _, key = unpack(ARGV)
local stored = redis.call('HGET', ACCT, 'ts')
if not stored then return { 'no_account' } end
local books = { ts = clock(tonumber(stored)), terms = {}, running = {} }
local terms = terms_of(books, key)
if not terms.known then return { 'no_key' } end
local running, spent = running_of(books, key), {}
if terms.spent then
  for _, period in ipairs({ 'daily', 'weekly', 'monthly', 'total' }) do
    local until_ts = terms.spent.untils[period]
    spent[#spent + 1] = text(until_ts and until_ts <= books.ts and 0 or terms.spent[period])
  end
end
local levels = {}
for _, name in ipairs({ 'requests', 'tokens' }) do
  local limit = terms.limits[name]
  levels[#levels + 1] = limit
    and text(math.ceil(bucket(books, terms, name .. ' ', limit) / PARTS)) or ''
end
return { 'ok', text(books.ts), text(running.count), text(running.held), levels, spent }
