#!/bin/sh
# Asks a question about an image: examples/images/sqlite.sh promptmill.db image.png 'What is this?'
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Through files, because a command line holds no image, and a question may have any quotes in it.
base64 <"$2" | tr -d '\n' >"$work/data"
printf %s "$3" >"$work/question"
sqlite3 -bail -cmd '.timeout 30000' "$1" <<SQL
INSERT INTO jobs (params) VALUES (
    json_object('messages', json_array(json_object('role', 'user', 'content', json_array(
        json_object('type', 'image', 'source', json_object(
            'type', 'base64', 'media_type', 'image/png', 'data', CAST(readfile('$work/data') AS TEXT))),
        json_object('type', 'text', 'text', CAST(readfile('$work/question') AS TEXT)))))));
SQL
