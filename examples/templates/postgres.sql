-- One job for each row of a table of yours, in the same database: psql "$DATABASE_URL" -f postgres.sql

INSERT INTO promptmill.jobs (batch, key, prompt, metadata)
SELECT 'summaries', 'summaries/' || p.id,
       -- %s takes any text as it is. A % of the template itself is written twice. NULL would become nothing at all,
       -- so that the model is asked about an empty text: rows without a text are left out below.
       format('Summarise in 100%% plain words: %s

%s', p.title, p.body),
       jsonb_build_object('product', p.id)
  FROM products p
 WHERE p.title IS NOT NULL AND p.body IS NOT NULL
    ON CONFLICT (key) DO NOTHING;

-- The same with ||, and with API fields. || with a NULL is NULL, and a job without a prompt is refused.
-- JSON is made by json_build_object, never by gluing: a quote in a title would break it. json and not jsonb for
-- params, whose fields keep their order so. A text column that holds JSON needs ::json, or it becomes a string.
INSERT INTO promptmill.jobs (batch, key, params, metadata)
SELECT 'titles', 'titles/' || p.id,
       json_build_object(
           'system', 'Answer with one title.',
           'messages', json_build_array(
               json_build_object('role', 'user', 'content', 'A better title than "' || p.title || '"?')),
           'stop_sequences', p.stops::json),
       jsonb_build_object('product', p.id)
  FROM products p
 WHERE p.title IS NOT NULL
    ON CONFLICT (key) DO NOTHING;
