-- One job for each row of a table of yours, in another file: sqlite3 promptmill.db <sqlite.sql
ATTACH 'shop.db' AS shop;

INSERT INTO jobs (batch, key, prompt, metadata)
SELECT 'summaries', 'summaries/' || p.id,
       -- %s takes any text as it is. A % of the template itself is written twice. NULL would become nothing at all,
       -- so that the model is asked about an empty text: rows without a text are left out below.
       printf('Summarise in 100%% plain words: %s

%s', p.title, p.body),
       json_object('product', p.id)
  FROM shop.products p
 WHERE p.title IS NOT NULL AND p.body IS NOT NULL
    ON CONFLICT (key) DO NOTHING;

-- The same with ||, and with API fields. || with a NULL is NULL, and a job without a prompt is refused.
-- JSON is made by json_object, never by gluing: a quote in a title would break it. A column that holds JSON
-- already needs json() around it, or it becomes a string.
INSERT INTO jobs (batch, key, params, metadata)
SELECT 'titles', 'titles/' || p.id,
       json_object(
           'system', 'Answer with one title.',
           'messages', json_array(json_object('role', 'user', 'content', 'A better title than "' || p.title || '"?')),
           'stop_sequences', json(p.stops)),
       json_object('product', p.id)
  FROM shop.products p
 WHERE p.title IS NOT NULL
    ON CONFLICT (key) DO NOTHING;
