#!/bin/sh
# Puts secrets from files into the environment of a command, then becomes the command.
#
# NAME_FILE=/run/secrets/x sets NAME to the content of the file, for each NAME of the list below. A secret in a file is
# in no image layer, in no `docker inspect` and in no Compose file.
set -eu

for name in PREFECT_SERVER_DATABASE_PASSWORD PREFECT_SERVER_API_AUTH_STRING PREFECT_API_AUTH_STRING \
    JORA_REDIS_PASSWORD; do
    eval "file=\${${name}_FILE:-}"
    [ -n "$file" ] || continue
    if [ ! -r "$file" ]; then
        echo "error: ${name}_FILE: cannot read $file; mount the secret there, or unset ${name}_FILE" >&2
        exit 2
    fi
    # $(...) drops the line break at the end of the file.
    value=$(cat "$file")
    [ -n "$value" ] || { echo "error: ${name}_FILE: $file is empty; write the secret into it" >&2; exit 2; }
    export "$name=$value"
done

# Prefect has three settings for Redis: events, clean-up of workers, and Docket, its timers. One left out means
# localhost or memory, silently. Database 1 keeps Docket's keys apart from the others.
if [ -n "${JORA_REDIS_HOST:-}" ]; then
    # In a URL, signs such as @ and / of a password must be percent-encoded.
    password=$(JORA_REDIS_PASSWORD=${JORA_REDIS_PASSWORD:-} python3 -c \
        'import os, urllib.parse as u; print(u.quote(os.environ["JORA_REDIS_PASSWORD"], safe=""))')
    redis="${JORA_REDIS_SCHEME:-redis}://:${password}@${JORA_REDIS_HOST}:${JORA_REDIS_PORT:-6379}"
    export PREFECT_REDIS_MESSAGING_URL="${PREFECT_REDIS_MESSAGING_URL:-$redis/0}"
    export PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL="${PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL:-$redis/0}"
    export PREFECT_SERVER_DOCKET_URL="${PREFECT_SERVER_DOCKET_URL:-$redis/1}"
fi

exec "$@"
