// MCP Toolbox for Databases, a server of the field, behind a broker and an agent:
// over HTTP, with PostgreSQL and a bearer token that only the agent has, and over
// stdio, with SQLite. Destructive SQL is blocked, and what is personal in its
// results, which are JSON in a string, is masked. Usage: node toolbox.mjs BROKER
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { createSign, generateKeyPairSync } from "node:crypto";
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Client as NewClient, StreamableHTTPClientTransport as NewHTTP } from "@modelcontextprotocol/client";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { House, certified, freePort } from "./house.mjs";

const toolbox = join(import.meta.dirname, "node_modules/@toolbox-sdk/server-linux-x64/bin/toolbox");
const postgres = existsSync("/usr/lib/postgresql") && `/usr/lib/postgresql/${readdirSync("/usr/lib/postgresql").sort().at(-1)}/bin`;
if (!postgres) {
  console.error("e2e: there is no PostgreSQL; install it (apt-get install postgresql)");
  process.exit(1);
}
const password = "pw-of-the-database-4711";
const house = new House(process.argv[2]);
const others = [];

// A database of its own. PostgreSQL does not run as root.
function startPostgres(port) {
  const dir = mkdtempSync(join(tmpdir(), "broker-pg-"));
  const as = process.getuid() === 0 ? { uid: Number(execFileSync("id", ["-u", "postgres"])), gid: Number(execFileSync("id", ["-g", "postgres"])) } : {};
  if (as.uid) chownSync(dir, as.uid, as.gid);
  chmodSync(dir, 0o700);
  const run = (command, ...args) => execFileSync(join(postgres, command), args, { ...as, cwd: dir, env: { PATH: process.env.PATH, HOME: dir }, stdio: ["pipe", "pipe", "pipe"] });
  run("initdb", "-D", join(dir, "data"), "-A", "trust", "-U", "postgres");
  // The Toolbox has to show its password.
  writeFileSync(join(dir, "data/pg_hba.conf"), "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n");
  const server = spawn(join(postgres, "postgres"), ["-D", join(dir, "data"), "-p", String(port), "-c", "listen_addresses=127.0.0.1", "-c", `unix_socket_directories=${dir}`], { ...as, cwd: dir, stdio: "ignore" });
  others.push({ kill: () => server.kill("SIGINT"), dir });
  const sql = (text) => execFileSync(join(postgres, "psql"), ["-h", "127.0.0.1", "-p", String(port), "-U", "postgres", "-Atqc", text], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }).trim();
  return { sql, ready: () => { try { return sql("SELECT 1") === "1"; } catch { return false; } } };
}

// The authorization server that the Toolbox asks for the keys of tokens.
async function startIssuer() {
  const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const server = createServer((req, res) => {
    const said = { "/.well-known/openid-configuration": { issuer: url, jwks_uri: `${url}/keys`, authorization_endpoint: `${url}/a`, token_endpoint: `${url}/t` }, "/keys": { keys: [{ ...publicKey.export({ format: "jwk" }), kid: "1", use: "sig", alg: "RS256" }] } }[req.url];
    res.writeHead(said ? 200 : 404, { "content-type": "application/json" }).end(JSON.stringify(said ?? {}));
  });
  await new Promise((r) => server.listen(port, "127.0.0.1", r));
  others.push({ kill: () => server.close() });
  const part = (v) => Buffer.from(JSON.stringify(v)).toString("base64url");
  const now = Math.floor(Date.now() / 1000);
  const signed = `${part({ alg: "RS256", kid: "1", typ: "JWT" })}.${part({ iss: url, aud: "broker", sub: "agent", iat: now, exp: now + 3600, email: "agent@example.com", scope: "" })}`;
  return { url, token: `${signed}.${createSign("RSA-SHA256").update(signed).sign(privateKey, "base64url")}` };
}

const source = (kind, rest) => `kind: source\nname: db\ntype: ${kind}\n${rest}---\n`;
const tools = (kind, find) => `kind: tool
name: query
type: ${kind}-execute-sql
source: db
description: Run any SQL.
---
kind: tool
name: find_customer
type: ${kind}-sql
source: db
description: Find a customer by name.
statement: SELECT id, name, email, card FROM customers WHERE name = ${find}
parameters:
  - {name: name, type: string, description: The name.}
`;
const rows = [["Ada", "ada@example.com", "4111111111111111"], ["Grace", "grace@example.org", "5555555555554444"]];
const table = `CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, email TEXT, card TEXT);
${rows.map((r, i) => `INSERT INTO customers VALUES (${i + 1}, '${r.join("', '")}');`).join("\n")}`;

const seen = []; // everything that a client was answered
async function use(name, client, transport, argument) {
  await client.connect(transport);
  const call = async (tool, args) => {
    try {
      const r = await client.callTool({ name: tool, arguments: args });
      seen.push(JSON.stringify(r));
      return r;
    } catch (e) {
      seen.push(String(e) + JSON.stringify(e.data ?? null));
      return e;
    }
  };
  const names = (await client.listTools()).tools.map((t) => t.name).sort();
  assert.deepEqual(names, ["find_customer", "query"], name);
  const found = await call("find_customer", { name: "Ada" });
  const text = found.content.map((c) => c.text).join("\n");
  assert.match(text, /\[masked:email\]/, `${name}: ${text}`);
  assert.match(text, /\[masked:credit_card\]|"card":0/, name); // SQLite makes a number of it
  assert.match(text, /Ada/, name);
  for (const c of found.content) JSON.parse(c.text); // it is still JSON in a string
  const all = await call("query", { [argument]: "SELECT * FROM customers" });
  assert.equal(all.content.map((c) => c.text).join("").match(/\[masked:email\]/g)?.length, 2, name);
  for (const sql of ["DROP TABLE customers", "drop\ttable customers", "SELECT 1; TRUNCATE customers"]) {
    const refused = await call("query", { [argument]: sql });
    assert.equal(refused.code, 403, `${name}: ${sql}: ${JSON.stringify(refused)}`);
    assert.match(refused.message, /destructive SQL/, name);
  }
  const wrong = await call("query", { [argument]: "SELECT * FROM nothing_there" });
  assert.ok(wrong.isError || wrong.code, `${name}: ${JSON.stringify(wrong)}`);
  await client.close();
}

async function main() {
  const port = await freePort();
  const db = startPostgres(port);
  const issuer = await startIssuer();
  await house.until("PostgreSQL is up", db.ready);
  db.sql(`${table} CREATE USER toolbox PASSWORD '${password}'; GRANT ALL ON customers TO toolbox; ALTER TABLE customers OWNER TO toolbox;`);

  const web = await freePort();
  const config = join(house.dir, "tools.yaml");
  writeFileSync(config, source("postgres", `host: 127.0.0.1\nport: ${port}\ndatabase: postgres\nuser: toolbox\npassword: ${password}\n`) +
    `kind: authService\nname: own\ntype: generic\nmcpEnabled: true\nauthorizationServer: "${issuer.url}"\naudience: broker\n---\n` + tools("postgres", "$1"));
  const quiet = ["--disable-version-check", "--disable-reload"];
  const server = spawn(toolbox, ["--config", config, "--address", "127.0.0.1", "--port", String(web), "--allowed-hosts", `127.0.0.1:${web}`, "--toolbox-url", `http://127.0.0.1:${web}`, ...quiet], { cwd: house.dir, env: house.env, stdio: ["ignore", "pipe", "pipe"] });
  server.log = "";
  for (const s of [server.stdout, server.stderr]) s.on("data", (d) => (server.log += d));
  house.children.push(server);

  const lite = join(house.dir, "lite.yaml");
  writeFileSync(lite, source("sqlite", `database: ${join(house.dir, "local.db")}\n`) + tools("sqlite", "?"));
  const sqlite = (sql) => execFileSync("python3", ["-c", "import sqlite3,sys; c=sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); print(c.execute('SELECT count(*) FROM customers').fetchone()[0])", join(house.dir, "local.db"), sql], { encoding: "utf8" }).trim();
  assert.equal(sqlite(table), "2");

  const argument = "sql";
  const serve = await house.serve(`servers: {shop: {agent: e2e}, local: {agent: e2e}}
policy:
  - name: customers
    users: [ada]
    servers: [shop, local]
    access: allow
    calls:
      - deny: tool == "query" && args.${argument}.matches("(?i)\\\\b(drop|truncate)\\\\b")
        reason: destructive SQL
    mask: [email, credit_card]
`);
  house.run("ca", "issue", "--user", "ada", "--out", "ada.pem");
  const bearer = join(house.dir, "bearer");
  writeFileSync(bearer, issuer.token, { mode: 0o600 });
  writeFileSync(join(house.dir, "agent.yaml"), `broker: ${house.addr}
name: e2e
${house.run("token", "create", "--agent", "e2e")}servers:
  shop:
    http: http://127.0.0.1:${web}/mcp
    credential: {header: {name: Authorization, prefix: "Bearer ", value: "file:${bearer}"}}
  local:
    stdio: [${toolbox}, --config, ${lite}, --stdio, ${quiet.join(", ")}]
`);
  const agent = house.start("agent");
  await house.until("the agent is connected", () => serve.log.includes("tunnel is up"));
  const reach = (headers = {}) => globalThis.fetch(`http://127.0.0.1:${web}/mcp`, { method: "POST", headers: { "content-type": "application/json", accept: "application/json, text/event-stream", ...headers }, body: '{"jsonrpc":"2.0","id":1,"method":"tools/list"}' }).then((r) => r.status, () => 0);
  await house.until("the Toolbox is up", async () => (await reach()) !== 0);
  assert.equal(await reach(), 401, "without the token");
  assert.equal(await reach({ authorization: `Bearer ${issuer.token}` }), 200, `with it: ${server.log}`);

  const fetch = certified(readFileSync(join(house.dir, "ada.pem")));
  const url = (name) => new URL(`https://${house.addr}/${name}/mcp`);
  const by = {
    "PostgreSQL over HTTP, by URL": () => [new Client({ name: "e2e", version: "1" }), new StreamableHTTPClientTransport(url("shop"), { fetch })],
    "PostgreSQL over HTTP, by URL, newer era": () => [new NewClient({ name: "e2e", version: "1" }), new NewHTTP(url("shop"), { fetch })],
    "PostgreSQL over HTTP, broker connect": () => [new Client({ name: "e2e", version: "1" }), new StdioClientTransport({ command: house.broker, args: ["connect", "shop", "--broker", house.addr, "--identity", join(house.dir, "ada.pem")], env: house.env, stderr: "ignore" })],
    "SQLite over stdio, by URL": () => [new Client({ name: "e2e", version: "1" }), new StreamableHTTPClientTransport(url("local"), { fetch })],
    "SQLite over stdio, broker connect": () => [new Client({ name: "e2e", version: "1" }), new StdioClientTransport({ command: house.broker, args: ["connect", "local", "--broker", house.addr, "--identity", join(house.dir, "ada.pem")], env: house.env, stderr: "ignore" })],
  };
  for (const [name, make] of Object.entries(by)) {
    const [client, transport] = make();
    await use(name, client, transport, argument);
  }
  // What a connection carried is what is replayed, byte for byte.
  const frames = [
    { id: 0, method: "initialize", params: { protocolVersion: "2025-06-18", capabilities: {}, clientInfo: { name: "e2e", version: "1" } } },
    { method: "notifications/initialized" },
    { id: 1, method: "tools/call", params: { name: "query", arguments: { [argument]: "SELECT * FROM customers" } } },
  ].map((f) => JSON.stringify({ jsonrpc: "2.0", ...f }) + "\n").join("");
  const known = new Set(house.run("sessions", "--json").trim().split("\n").map((l) => JSON.parse(l).id));
  const received = execFileSync(house.broker, ["connect", "shop", "--broker", house.addr, "--identity", join(house.dir, "ada.pem")], { env: house.env, input: frames, encoding: "utf8", stdio: ["pipe", "pipe", "ignore"] });
  assert.match(received, /masked:email/);
  const { id } = house.run("sessions", "--json").trim().split("\n").map((l) => JSON.parse(l)).find((s) => !known.has(s.id));
  assert.equal(house.run("replay", "--direction", "s2c", id), received, "s2c");
  assert.equal(house.run("replay", "--direction", "c2s", id), frames, "c2s");
  seen.push(received);

  assert.equal(db.sql("SELECT count(*) FROM customers"), "2", "the table is there");
  assert.equal(sqlite(""), "2", "the table is there");

  // Nobody but the agent has seen the token, and nobody the password or the rows.
  const sessions = JSON.parse(`[${house.run("sessions", "--json").trim().split("\n").join(",")}]`).flat();
  assert.ok(sessions.length >= 5, `${sessions.length} sessions`);
  const recorded = sessions.map((s) => house.run("replay", "--blocked", s.id)).join("\n");
  assert.match(recorded, /DROP TABLE customers/);
  assert.match(recorded, /\[masked:credit_card\]/);
  const raw = [];
  const walk = (dir) => readdirSync(dir).forEach((f) => {
    const s = statSync(join(dir, f));
    if (s.isDirectory()) walk(join(dir, f));
    else if (s.isFile()) raw.push(readFileSync(join(dir, f)));
  });
  walk(join(house.dir, "data"));
  for (const secret of [issuer.token, password, ...rows.flatMap((r) => r.slice(1))])
    for (const [where, text] of Object.entries({ "the recordings": recorded, "the broker's log": serve.log, "the agent's log": agent.log, "an answer": seen.join("\n") }))
      assert.ok(!text.includes(secret), `${secret.slice(0, 20)} is in ${where}`);
  for (const secret of [issuer.token, password]) assert.ok(!raw.some((b) => b.includes(secret)), "a secret is in the broker's folder");
  console.log(`toolbox: ${Object.keys(by).length} clients, ${sessions.length} sessions, ${seen.length} calls: masked, blocked, on record, and no secret in it`);
}

let failure;
try {
  await main();
} catch (e) {
  failure = e;
}
await house.over(failure);
for (const o of others) {
  o.kill();
  if (o.dir) setTimeout(() => rmSync(o.dir, { recursive: true, force: true }), 1500);
}
setTimeout(() => process.exit(failure ? 1 : 0), 2000);
