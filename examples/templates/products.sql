-- A table as you may have it.
CREATE TABLE products (id integer PRIMARY KEY, title text, body text, stops text);
INSERT INTO products VALUES
    (1, 'Shoe "Red"', 'Soft, 50 % off.
Says {{body}} and %s.', '["END"]'),
    (2, 'Tea', 'It''s green: 茶 \ {"a": 1}', '[]'),
    (3, 'A thing without a text', NULL, '["."]');
