#!/bin/sh
# Makes the passwords of compose.yaml, once. Files that exist are kept.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
make() {
    if [ -s "secrets/$1" ]; then
        echo "kept secrets/$1"
    else
        printf '%s' "$2" > "secrets/$1"
        # Compose mounts the file with its own owner and rights, and user 10001 of the image must be able to read it.
        chmod 0444 "secrets/$1"
        echo "made secrets/$1"
    fi
}
# The folder protects the files from other users of this machine.
chmod 0700 secrets
make postgres_password "$(random)"
make redis_password "$(random)"
make api_auth "operator:$(random)"
