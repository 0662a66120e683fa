#!/bin/sh
# Makes 1,000 product texts, has each of them answered as JSON by a schema, and reads the answers into a table.
# products.db holds your tables, promptmill.db the jobs and results.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mill=${PROMPTMILL:-promptmill}
cd "${1:-.}"
export DATABASE_URL=sqlite:promptmill.db

if [ -z "${ANTHROPIC_API_KEY:-}${ANTHROPIC_AUTH_TOKEN:-}${ANTHROPIC_BASE_URL:-}" ]; then
    "$mill" stand-in --listen 127.0.0.1:0 > stand-in.url 2> stand-in.log &
    trap 'kill $! 2> /dev/null || :; rm -f stand-in.url' EXIT
    until [ -s stand-in.url ]; do sleep 0.1; done
    ANTHROPIC_BASE_URL=$(cat stand-in.url)
    ANTHROPIC_API_KEY=any
    export ANTHROPIC_BASE_URL ANTHROPIC_API_KEY
fi

"$mill" migrate
sqlite3 -bail products.db < "$here/products.sql"
# 7: some job did not end as complete. The table tells which.
"$mill" run --drain || [ $? -eq 7 ]
sqlite3 -bail products.db < "$here/facts.sql"
