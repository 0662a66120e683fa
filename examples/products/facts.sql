-- What came back, as a table. Only `complete` answers are valid against their schema.
ATTACH 'promptmill.db' AS mill;

DROP TABLE IF EXISTS facts;
CREATE TABLE facts AS
SELECT CAST(substr(key, 9) AS INTEGER) AS product_id,
       json_extract(output, '$.title') AS title,
       json_extract(output, '$.kind') AS kind,
       json_extract(output, '$.price_eur') AS price_eur,
       json_extract(output, '$.in_stock') AS in_stock,
       json_extract(output, '$.warranty.years') AS warranty_years,
       json_array_length(output, '$.tags') AS tags
  FROM mill.results
 WHERE queue = 'products' AND outcome = 'complete';

-- json_each makes rows of lists.
DROP TABLE IF EXISTS tags;
CREATE TABLE tags AS
SELECT CAST(substr(r.key, 9) AS INTEGER) AS product_id, tag.value AS tag
  FROM mill.results r, json_each(r.output, '$.tags') tag
 WHERE r.queue = 'products' AND r.outcome = 'complete';

.mode column
SELECT kind, count(*) AS products, round(avg(price_eur), 2) AS price_eur, sum(tags) AS tags,
       round(avg(warranty_years), 1) AS warranty_years
  FROM facts GROUP BY kind ORDER BY kind;
.print
SELECT outcome, count(*) AS jobs, max(error) AS error FROM mill.results WHERE queue = 'products' GROUP BY outcome;
