#!/bin/sh
# A tool server: answers the calls that wait in a promptmill database. postgres.sh "$DATABASE_URL"
set -eu
db=$1

get_weather() { # LOCATION
    [ -n "$1" ] || { echo "no location was given"; return 1; }
    echo "18 degrees and sunny in $1"
}

sql() { psql -X -q -At -v ON_ERROR_STOP=1 "$@" "$db"; }

while :; do
    # Takes one call, so that several servers never work on the same.
    call=$(sql <<'SQL'
UPDATE promptmill.tool_calls t SET taken_by = 'weather server', taken_at = now()
  FROM (SELECT job_id, claim, seq, position FROM promptmill.open_tool_calls
         WHERE name = 'get_weather' AND (taken_by IS NULL OR taken_at < now() - interval '1 minute')
         ORDER BY created_at LIMIT 1) o
 WHERE (t.job_id, t.claim, t.seq, t.position) = (o.job_id, o.claim, o.seq, o.position)
   AND t.result IS NULL AND t.result_content IS NULL
   AND (t.taken_by IS NULL OR t.taken_at < now() - interval '1 minute')
RETURNING t.job_id, t.claim, t.seq, t.position;
SQL
    )
    if [ -z "$call" ]; then
        sleep 0.5
        continue
    fi
    key=$(echo "$call" | tr '|' ',')
    location=$(echo "SELECT input ->> 'location' FROM promptmill.tool_calls WHERE (job_id, claim, seq, position) = ($key);" | sql)
    if answer=$(get_weather "$location"); then failed=false; else failed=true; fi
    sql -v answer="$answer" <<SQL
UPDATE promptmill.tool_calls SET result = :'answer', is_error = $failed
 WHERE (job_id, claim, seq, position) = ($key) AND result IS NULL AND result_content IS NULL;
SQL
done
