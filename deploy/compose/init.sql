CREATE TABLE customers (id serial PRIMARY KEY, name text, email text, card text);
INSERT INTO customers (name, email, card) VALUES
  ('Ada Byron', 'ada@example.com', '4111 1111 1111 1111'),
  ('Grace Hopper', 'grace@example.org', '5555 5555 5555 4444');
-- The server's account may read and write rows, and nothing else.
\getenv password TOOLBOX_PG_PASSWORD
CREATE ROLE toolbox LOGIN PASSWORD :'password';
GRANT SELECT, INSERT, UPDATE ON customers TO toolbox;
