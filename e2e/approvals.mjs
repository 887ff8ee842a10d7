// Makes calls that need an approval with the TypeScript SDK, 1.x and 2.x, each in
// every way that a client can wait: over broker connect and by URL. Usage: node
// approvals.mjs BROKER
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v2 from "@modelcontextprotocol/client";
import { StdioClientTransport as StdioV2 } from "@modelcontextprotocol/client/stdio";
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js";
import { House, certified } from "./house.mjs";

const house = new House(process.argv[2]);
const as = (name) => ["--broker", house.addr, "--identity", join(house.dir, `${name}.pem`)];
const requests = () => JSON.parse(house.run("requests", "--json", ...as("grace")));
const approve = (id) => house.run("approve", id, ...as("grace"));
const sql = (n) => ({ name: "query", arguments: { sql: `SELECT ${n} FROM customers` } });

// to is how a client of the SDK's version reaches a server, as somebody.
const url = (server) => new URL(`https://${house.addr}/${server}/mcp`);
const fetchAs = (name) => ({ fetch: certified(readFileSync(join(house.dir, `${name}.pem`))) });
const command = (server, name) => ({ command: house.broker, args: ["connect", server, ...as(name)], env: house.env, stderr: "ignore" });
const ways = {
  "broker connect": {
    older: (server, name) => new StdioClientTransport(command(server, name)),
    newer: (server, name) => new StdioV2(command(server, name)),
  },
  URL: {
    older: (server, name) => new StreamableHTTPClientTransport(url(server), fetchAs(name)),
    newer: (server, name) => new v2.StreamableHTTPClientTransport(url(server), fetchAs(name)),
  },
};

// approveSoon approves the next request that comes.
async function approveSoon() {
  await house.until("somebody asks", () => requests().length > 0);
  const [r] = requests();
  assert.equal(r.call.name, "query");
  assert.match(r.call.arguments, /SELECT/);
  approve(r.id);
}

// ofPage is the request whose page a URL is.
const ofPage = (url) => {
  assert.ok(url.startsWith(`https://${house.addr}/requests/req-`), url);
  return url.split("/").at(-1);
};

const rowsOf = (result) => {
  assert.ok(!result.isError, JSON.stringify(result));
  return JSON.stringify(result.structuredContent ?? result.content);
};

async function older(way, to) {
  // One that shows URLs.
  let asked = 0;
  const client = new Client({ name: "e2e", version: "1" }, { capabilities: { elicitation: { url: {} } } });
  client.setRequestHandler(ElicitRequestSchema, async (r) => {
    asked++;
    assert.equal(r.params.mode, "url");
    approve(ofPage(r.params.url));
    return { action: "accept" };
  });
  await client.connect(to.older("demo", "ada"));
  assert.match(rowsOf(await client.callTool(sql(1))), /masked:email/);
  assert.equal(asked, 1);
  await client.close();

  // One that shows progress, and one that shows nothing.
  const plain = new Client({ name: "e2e", version: "1" });
  await plain.connect(to.older("demo", "ada"));
  const progress = [];
  const soon = approveSoon();
  assert.match(rowsOf(await plain.callTool(sql(2), undefined, { onprogress: (p) => progress.push(p.message) })), /masked:email/);
  await soon;
  assert.match(progress[0], /leads/);
  const refused = await plain.callTool(sql(3)).then(() => assert.fail("the call passes"), (e) => e);
  assert.equal(refused.code, 428, refused);
  approve(ofPage(refused.data.url));
  assert.match(rowsOf(await plain.callTool(sql(3))), /masked:email/);
  const other = await plain.callTool(sql(4)).then(() => assert.fail("a yes is good for another call"), (e) => e);
  assert.equal(other.code, 428);
  await plain.close();
  house.run("deny", ofPage(other.data.url), ...as("grace"));
  console.log(`TypeScript SDK 1.x, ${way}: a call is approved by URL elicitation, with progress, and by calling again`);
}

async function newer(way, to) {
  const client = new v2.Client({ name: "e2e", version: "2" }, {
    capabilities: { elicitation: { url: {} } }, versionNegotiation: { mode: { pin: "2026-07-28" } },
  });
  let asked = 0;
  client.setRequestHandler("elicitation/create", async (r) => {
    asked++;
    assert.equal(r.params.mode, "url");
    approve(ofPage(r.params.url));
    return { action: "accept" };
  });
  await client.connect(to.newer("demo", "ada"));
  assert.match(rowsOf(await client.callTool(sql(5))), /masked:email/);
  assert.equal(asked, 1);
  await client.close();
  console.log(`TypeScript SDK 2.x, ${way}: a call is approved by input_required and a URL elicitation`);
}

// waiting is a client without a grant: it finds one tool, asks with it, and goes
// on with the server in the same session.
async function waiting(way, to) {
  // The room speaks 2026-07-28 once the server has been seen to.
  const first = new v2.Client({ name: "e2e", version: "2" }, { versionNegotiation: { mode: { pin: "2026-07-28" } } });
  await first.connect(to.newer("locked", "bob"));
  await first.close();
  for (const [name, make] of Object.entries({
    "1.x": () => [new Client({ name: "e2e", version: "1" }), to.older],
    "2.x": () => [new v2.Client({ name: "e2e", version: "2" }, { versionNegotiation: { mode: { pin: "2026-07-28" } } }), to.newer],
  })) {
    const [client, reach] = make();
    await client.connect(reach("locked", "ada"));
    assert.deepEqual((await client.listTools()).tools.map((t) => t.name), ["request_access"]);
    const ask = client.callTool({ name: "request_access", arguments: { reason: "e2e" } });
    await house.until("somebody asks", () => requests().length > 0);
    const [r] = requests();
    assert.equal(r.reason, "e2e");
    approve(r.id);
    assert.ok(!(await ask).isError);
    await house.until("the server's tools are there", async () => (await client.listTools()).tools.some((t) => t.name === "query"));
    assert.match(rowsOf(await client.callTool(sql(6))), /Ada/);
    const [g] = JSON.parse(house.run("grants", "--json", ...as("ada"))).filter((g) => g.server === "locked");
    house.run("revoke", g.id, ...as("grace"));
    const ended = await client.callTool(sql(7)).then(() => assert.fail("a call passes after the grant was revoked"), (e) => e);
    // By URL the session is not there any more, or there is a new one, which waits.
    assert.ok([404, 410, 428].includes(ended.code) || /closed/i.test(ended.message), ended);
    await client.close().catch(() => {});
    console.log(`TypeScript SDK ${name}, ${way}: from the waiting room to the server and out again`);
  }
}

try {
  await house.serve(`servers: {demo: {stdio: ["${house.broker}", demo-server]}, locked: {stdio: ["${house.broker}", demo-server]}}
policy:
  - name: calls
    users: [ada]
    servers: [demo]
    access: allow
    calls: [{approval: 'tool == "query"'}]
    approvers: {groups: [leads]}
    hold: 2s
    mask: [secrets, email, credit_card]
  - {name: standing, users: [bob], servers: [locked], access: allow}
  - {name: locked, users: [ada], servers: [locked], access: approval, approvers: {groups: [leads]}}
`);
  house.run("ca", "issue", "--user", "ada", "--out", "ada.pem");
  house.run("ca", "issue", "--user", "bob", "--out", "bob.pem");
  house.run("ca", "issue", "--user", "grace", "--group", "leads", "--out", "grace.pem");
  for (const [way, to] of Object.entries(ways)) {
    await older(way, to);
    await newer(way, to);
    await waiting(way, to);
  }
  await house.over();
} catch (e) {
  await house.over(e);
  process.exit(1);
}
