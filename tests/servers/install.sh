#!/bin/sh
# Installs what the tests drive beside Farebox, on Debian: Redis, unless REDIS_SERVER names one,
# strace, which makes calls to the disk fail, and openssl, which makes certificates.
# The service that the package brings is left as it is; tests start servers of their own.
set -eu

missing=""
command -v "${REDIS_SERVER:-redis-server}" >/dev/null || missing="redis-server"
for program in strace openssl; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0
echo "Installing Debian packages: $missing"
apt-get update -qq
# Unquoted: the words are packages of their own.
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
