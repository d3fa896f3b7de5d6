-- What time does: lots that have ended are written off, places that were not lent on are free,
-- and an account that is closing is closed once nothing runs.
local books = open_with_flights()
if not books then return { 'no_account' } end
lapse(books)
close_if_idle(books)
write_with_flights(books)
return { 'ok', next_due(books), text(#books.lost) }
