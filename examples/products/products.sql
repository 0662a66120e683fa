-- Your data, in a file of its own; promptmill's file stands beside it. On Postgres both may be one database.
CREATE TABLE IF NOT EXISTS products (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, text TEXT NOT NULL);

WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 1000),
     made(id, kind, material, color) AS (
         SELECT id,
                json_extract('["chair","table","shelf","lamp"]', '$[' || (id % 4) || ']'),
                json_extract('["oak","steel","bamboo","glass","linen"]', '$[' || (id / 4 % 5) || ']'),
                json_extract('["black","white","green","natural"]', '$[' || (id / 20 % 4) || ']')
           FROM n)
INSERT OR IGNORE INTO products (id, kind, text)
SELECT id, kind,
       printf('No. %04d. This %s %s of %s is made in small numbers and costs %d.%02d euros. It is %d cm high, weighs '
              || '%d kg, and comes with a warranty of %d years.%s',
              id, color, kind, material, 19 + id * 7 % 380, id * 5 % 100, 30 + id % 150, 1 + id % 40, 1 + id % 5,
              CASE WHEN id % 9 = 0 THEN ' Sold out until spring.' ELSE '' END)
  FROM made;

ATTACH 'promptmill.db' AS mill;

-- What all jobs of this queue are held to. A job's own policy comes before it, field by field.
INSERT INTO mill.queues (name, policy)
VALUES ('products', json('{
  "max_repairs": 1,
  "output_schema": {
    "type": "object",
    "properties": {
      "title":     {"type": "string", "minLength": 3, "maxLength": 60, "description": "What a shop would print above it."},
      "kind":      {"type": "string", "enum": ["Chair", "Table", "Shelf", "Lamp"]},
      "material":  {"type": "string"},
      "price_eur": {"type": "number", "minimum": 0},
      "height_cm": {"type": ["integer", "null"], "minimum": 1},
      "in_stock":  {"type": "boolean"},
      "tags":      {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3}
    },
    "required": ["title", "kind", "material", "price_eur", "height_cm", "in_stock", "tags"],
    "additionalProperties": false
  }
}'))
    ON CONFLICT (name) DO UPDATE SET policy = excluded.policy;

-- A key makes it safe to run this again.
INSERT INTO mill.jobs (queue, batch, key, system, prompt, max_tokens, policy)
SELECT 'products', 'products', 'product/' || id,
       'You read product texts for a catalogue. Take from the text only what stands in it.',
       text, 1000,
       -- For lamps we want to know something else.
       CASE kind WHEN 'lamp' THEN json('{"output_schema": {
         "type": "object",
         "properties": {
           "title":     {"type": "string", "minLength": 3, "maxLength": 60},
           "kind":      {"type": "string", "const": "Lamp"},
           "price_eur": {"type": "number", "minimum": 0},
           "warranty":  {"type": "object",
                         "properties": {"years": {"type": "integer", "minimum": 0, "maximum": 30}},
                         "required": ["years"]}
         },
         "required": ["title", "kind", "price_eur", "warranty"]
       }}') END
  FROM products
 WHERE true
    ON CONFLICT (key) DO NOTHING;
