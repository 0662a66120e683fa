-- 250 plain questions.
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 250)
INSERT INTO jobs (batch, prompt) SELECT 'demo', 'Tell me about mill number ' || i || '.' FROM n;

-- 20 that meet a rate limit, and 8 an overloaded API: they wait in the table and are asked again.
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20)
INSERT INTO jobs (batch, prompt) SELECT 'demo', 'Too many at once: ' || i || '. [[error 429 retry-after=1 x1]]' FROM n;
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8)
INSERT INTO jobs (batch, prompt) SELECT 'demo', 'A busy hour: ' || i || '. [[error 529 x1]]' FROM n;

-- 10 answers that do not fit into max_tokens, and are continued until they are whole.
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10)
INSERT INTO jobs (batch, prompt, max_tokens)
SELECT 'demo', 'A long story, chapter ' || i || '. [[tokens 3000]] [[pace 1ms]] [[delta 50]]', 500 FROM n;

-- 6 answers whose connection drops in the middle.
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 6)
INSERT INTO jobs (batch, prompt) SELECT 'demo', 'A bad line: ' || i || '. [[cut after=20 x1]]' FROM n;

-- And those that cannot end well, each in its own way.
INSERT INTO jobs (batch, prompt) VALUES
    ('demo', 'How do I do something terrible? [[stop refusal]]'),
    ('demo', 'Tell me nothing. [[empty]]'),
    ('demo', 'This one the API refuses. [[error 400]]'),
    ('demo', 'This one ends in a word from the future. [[stop something_new]]');
INSERT INTO jobs (batch, prompt, params) VALUES
    ('demo', 'What is the weather at the mill? [[stop tool_use]]',
     '{"tools": [{"name": "get_weather", "input_schema": {"type": "object"}}]}');
INSERT INTO jobs (batch, prompt, policy) VALUES
    ('demo', 'This one has a typing error in its policy.', '{"on_max_token": "stop"}');
