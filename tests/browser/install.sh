#!/bin/sh
# Installs the browser that the tests of the billing pages drive, on Debian.
set -eu

command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit
echo "Installing Debian packages: chromium chromium-driver"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
    chromium chromium-driver fonts-dejavu-core >/dev/null
