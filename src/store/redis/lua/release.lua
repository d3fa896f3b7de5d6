-- Gives places back; nothing is charged.
local books = open_with_flights()
if not books then return { 'no_account' } end
for at = 2, #ARGV do
  local flight = redis.call('HGET', FLY, ARGV[at])
  if flight and not books.gone[ARGV[at]] then
    flight = unpack_flight(flight)
    give_back(books, ARGV[at], flight)
    local terms = terms_of(books, flight.key)
    local limit = terms.limits.tokens
    if limit then
      local level = bucket(books, terms, 'tokens ', limit)
      terms.levels['tokens '] = math.max(level - flight.tokens * PARTS, 0)
    end
  end
end
close_if_idle(books)
write_with_flights(books)
write_terms(books)
return { 'ok' }
