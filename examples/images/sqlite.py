#!/usr/bin/env python3
"""Asks one question about many images, a job each: sqlite.py promptmill.db 'What is this?' image.png…"""
import base64, json, mimetypes, pathlib, sqlite3, sys

database, question, *files = sys.argv[1:]
with sqlite3.connect(database, timeout=30) as db:
    for file in files:
        source = {
            "type": "base64",
            "media_type": mimetypes.guess_type(file)[0],
            "data": base64.b64encode(pathlib.Path(file).read_bytes()).decode(),
        }
        content = [{"type": "image", "source": source}, {"type": "text", "text": question}]
        params = {"messages": [{"role": "user", "content": content}]}
        # The key makes it safe to run this again; the name of the file leads back from an answer.
        db.execute(
            "INSERT INTO jobs (key, params, metadata) VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING",
            ("image/" + file, json.dumps(params), json.dumps({"file": file})),
        )
