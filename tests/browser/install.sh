#!/bin/sh
# Installs what the tests of the billing pages drive and use: Debian's Chromium, and the rules of
# accessibility (axe-core) under target/browser.
set -eu
cd "$(dirname "$0")/../.."

if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then
    echo "Installing Debian packages: chromium chromium-driver"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        chromium chromium-driver fonts-dejavu-core >/dev/null
fi
if [ ! -e target/browser/node_modules/axe-core/axe.min.js ]; then
    if ! command -v npm >/dev/null; then
        echo "Installing Debian packages: npm"
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends npm >/dev/null
    fi
    mkdir -p target/browser
    npm install --silent --no-audit --no-fund --prefix target/browser axe-core@4.14.1
fi
