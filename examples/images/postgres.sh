#!/bin/sh
# Asks a question about an image: examples/images/postgres.sh "$DATABASE_URL" image.png 'What is this?'
set -eu
# psql runs base64 itself, because a command line holds no image.
psql -X -q -v ON_ERROR_STOP=1 -v file="$2" -v question="$3" "$1" <<'SQL'
\set data `base64 <:'file' | tr -d '\n'`
INSERT INTO promptmill.jobs (params) VALUES (
    json_build_object('messages', json_build_array(json_build_object('role', 'user', 'content', json_build_array(
        json_build_object('type', 'image', 'source', json_build_object(
            'type', 'base64', 'media_type', 'image/png', 'data', :'data')),
        json_build_object('type', 'text', 'text', :'question'))))));
SQL
