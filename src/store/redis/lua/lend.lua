-- Lends the places that a process has ahead on, some fewer of them or all.
local _, process, fewer, lease = unpack(ARGV)
local books = open_with_flights()
if not books then return { 'no_account' } end
if redis.call('HEXISTS', LENT, process) == 1 then
  lend(books, process, -tonumber(fewer), tonumber(lease))
end
if books.status == 'closing' then
  lapse(books)
  close_if_idle(books)
  write_with_flights(books)
end
return { 'ok' }
