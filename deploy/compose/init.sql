CREATE TABLE customers (id serial PRIMARY KEY, name text, email text, card text);
INSERT INTO customers (name, email, card) VALUES
  ('Ada Byron', 'ada@example.com', '4111 1111 1111 1111'),
  ('Grace Hopper', 'grace@example.org', '5555 5555 5555 4444');
