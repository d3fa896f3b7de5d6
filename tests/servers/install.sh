#!/bin/sh
# Installs the servers that the tests drive, on Debian: Redis, unless REDIS_SERVER names one.
# The service that the package brings is left as it is; tests start servers of their own.
set -eu

command -v "${REDIS_SERVER:-redis-server}" >/dev/null && exit
echo "Installing Debian packages: redis-server"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends redis-server >/dev/null
